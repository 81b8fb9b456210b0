"""Training by segments: each batch continues where the batch before it ended."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_cosattn import limits, scope
from keras_cosattn.streaming import Streaming

Tensor = Any
Nest = Any  # a tensor, or lists, tuples and dicts of tensors


@keras.saving.register_keras_serializable("keras_cosattn")
class CarriedState(keras.Model):
    """Train a model on long streams by segments, with its state carried from batch to batch.

    Outputs are those of `model` on the whole streams. Gradients stop where a batch begins
    (truncated backpropagation through time, as with `stateful=True` in Keras's recurrent layers).
    So the cost of a batch is that of its own steps, and memory does not grow with the streams.
    `model` shares the weights.

    There are two states, and both are saved with the weights. Calls with `training=True` (`fit`,
    `train_on_batch`) continue from the training state and change it. All other calls continue from
    the evaluation state and change it. `evaluate`, so also `validation_data`, and `predict` first
    set the evaluation state to zeros: they read streams from the start, and training goes on as
    if they had not been called.

    A stream longer than a layer's `max_length` raises an error; see `Streaming`. With
    `jit_compile=True`, which `compile` chooses where it can, nothing can be raised, and outputs
    beyond the limit are finite, but not those of `model`. Call `reset_state` in time.

    Args:
        model: What `Streaming` takes, functional or sequential.
        batch_size: int, the number of streams. Every batch must have this size, any other is an
            error: use `shuffle=False`, and no smaller batch at the end.
        **kwargs: As for `keras.Model`, such as `name`.

    Reference:

    - [Dai et al., 2019, section 3.2](https://arxiv.org/abs/1901.02860)

    Example:
    Batch i holds the steps from `6 * i` to `6 * (i + 1)` of four streams.

    >>> x = keras.Input((None, 2))
    >>> model = keras.Model(x, keras_cosattn.RunningMean()(x))
    >>> carried = keras_cosattn.CarriedState(model, batch_size=4)
    >>> carried.compile("adam", "mse")
    >>> segments = np.ones((5 * 4, 6, 2), "float32")
    >>> history = carried.fit(segments, segments, batch_size=4, shuffle=False, verbose=0)
    >>> int(carried.carried["running_mean_0_position"][0])
    30
    >>> stream = keras_cosattn.Streaming(model)  # the trained model
    """

    def __init__(self, model: keras.Model, batch_size: int, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.model, self.batch_size = model, batch_size
        spec = Streaming(model).state_spec
        self.carried = self._zeros(spec)
        self.carried_in_evaluation = self._zeros(spec, "evaluation_")
        self.built = True

    def call(self, inputs: Nest, training: bool | None = None) -> Nest:
        inputs = limits.check_batch(
            inputs,
            self.batch_size,
            f"'{self.name}' carries the state of {self.batch_size} streams, so every batch must "
            f"have {self.batch_size} examples",
            "Give batches of that size in the order of time, and `fit` also `shuffle=False`.",
        )
        carried = self.carried if training else self.carried_in_evaluation
        state = {name: ops.convert_to_tensor(x) for name, x in carried.items()}
        with scope.opened(scope.Stream(state)) as stream:
            outputs = self.model(inputs, training=training)
        outputs, state = limits.check_end(outputs, stream.next_state, stream.limits, self.name)
        for name, x in state.items():
            carried[name].assign(ops.stop_gradient(x))
        return outputs

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate on streams from their start. Arguments as in `keras.Model.evaluate`."""
        _set_to_zeros(self.carried_in_evaluation)
        return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict for streams from their start. Arguments as in `keras.Model.predict`."""
        _set_to_zeros(self.carried_in_evaluation)
        return super().predict(*args, **kwargs)

    def reset_state(self) -> None:
        """Set both states to zeros, so that all streams start again."""
        _set_to_zeros(self.carried)
        _set_to_zeros(self.carried_in_evaluation)

    def compute_output_spec(self, inputs: Nest, training: bool | None = None) -> Nest:
        return self.model.compute_output_spec(inputs)

    def get_config(self) -> dict[str, Any]:
        return {
            "model": keras.saving.serialize_keras_object(self.model),
            "batch_size": self.batch_size,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> CarriedState:
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects)
        return cls(**{**config, "model": model})

    def _zeros(self, spec, prefix=""):
        return {
            name: self.add_weight(
                name=f"{prefix}{name}",
                shape=(self.batch_size, *shape),
                dtype=dtype,
                initializer="zeros",
                trainable=False,
                autocast=False,
            )
            for name, (shape, dtype) in spec.items()
        }


def _set_to_zeros(variables):
    for x in variables.values():
        x.assign(ops.zeros(x.shape, x.dtype))
