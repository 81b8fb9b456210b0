"""Training by segments: each batch goes on where the one before it ended."""

import keras
from keras import ops

from keras_cosattn import scope
from keras_cosattn.streaming import Streaming


@keras.saving.register_keras_serializable("keras_cosattn")
class CarriedState(keras.Model):
    """A model whose state is carried from batch to batch, for streams cut into segments.

    ```python
    carried = CarriedState(model, batch_size=8)
    carried.compile("adam", "mse")
    carried.fit(segments)  # batch i: step i n to (i + 1) n of 8 streams, in order
    Streaming(model)  # the trained model
    ```

    Outputs are those of `model` on the whole streams; gradients stop where a batch begins
    (truncated backpropagation through time, as `stateful=True` of Keras's recurrent layers). So a
    batch costs its own steps only, and memory does not grow with the streams. `model` shares the
    weights. The state is kept in variables: `fit`, `evaluate`, `predict` and calls all go on from
    it and change it, and it is saved with the weights. Dai et al., 2019, section 3.2.

    Args:
        model: what `Streaming` takes, functional or sequential.
        batch_size: b, the number of streams. Every batch must have it: `shuffle=False`, and no
            smaller batch at the end.

    A stream that is longer than a layer's `max_length` gives NaN: `reset_state` in time.
    """

    def __init__(self, model, batch_size, **kwargs):
        super().__init__(**kwargs)
        self.model, self.batch_size = model, batch_size
        self.carried = {
            name: self.add_weight(
                name=name,
                shape=(batch_size, *shape),
                dtype=dtype,
                initializer="zeros",
                trainable=False,
                autocast=False,
            )
            for name, (shape, dtype) in Streaming(model).state_spec.items()
        }
        self.built = True

    def call(self, inputs, training=None):
        b = keras.tree.flatten(inputs)[0].shape[0]
        if b not in (None, self.batch_size):
            raise ValueError(
                f"'{self.name}' carries the state of {self.batch_size} streams, so every batch "
                f"must have {self.batch_size} examples. Received: a batch of {b}. Give `fit` "
                f"batches of that size in the order of time, with `shuffle=False`."
            )
        state = {name: ops.convert_to_tensor(x) for name, x in self.carried.items()}
        with scope.opened(scope.Stream(state)) as stream:
            outputs = self.model(inputs, training=training)
        for name, x in stream.next_state.items():
            self.carried[name].assign(ops.stop_gradient(x))
        return outputs

    def reset_state(self):
        """Begin all streams again."""
        for x in self.carried.values():
            x.assign(ops.zeros(x.shape, x.dtype))

    def compute_output_spec(self, inputs, training=None):
        return self.model.compute_output_spec(inputs)

    def get_config(self):
        return {
            "model": keras.saving.serialize_keras_object(self.model),
            "batch_size": self.batch_size,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        model = keras.saving.deserialize_keras_object(config["model"])
        return cls(**{**config, "model": model})
