"""A learned vector for each position."""

from __future__ import annotations

import numbers
from typing import Any

import keras
from keras import ops

from keras_cosattn import limits, scope
from keras_cosattn.keras3_only import Keras3Only
from keras_cosattn.ops import arrays, timesteps

Tensor = Any


@keras.saving.register_keras_serializable("keras_cosattn")
class PositionEmbedding(Keras3Only, keras.layers.Layer):
    """Add a learned vector to each step: `out_t = x_t + e_t`.

    Positions count the valid steps, so masked steps before a step do not move it. In a stream the
    state is the number of steps so far. More than `sequence_length` valid steps raise a ValueError
    where the number is known; a TensorFlow graph has an assertion. XLA and `jax.jit` cannot raise:
    there all steps beyond the limit share the last vector. Cost: O(t m).

    Args:
        sequence_length: int, the number of positions.
        initializer: Initializer of the vectors. Defaults to `"glorot_uniform"`.
        add_to_inputs: bool, whether the output is `x_t + e_t`. Otherwise it is `e_t`, as that of
            `keras_hub.layers.PositionEmbedding`. Defaults to `True`.
        **kwargs: As for `keras.layers.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Tensor `(b, t, m)`.
        mask: Boolean `(b, t)`, `False` for steps that do not count. Their inputs are taken as
            zeros. Defaults to `None`, Keras's implicit mask.

    Returns:
        Tensor `(b, t, m)`.

    Raises:
        ValueError: If there are more than `sequence_length` valid steps.

    Reference:

    - [Gehring et al., 2017, section 3.1](https://arxiv.org/abs/1705.03122)

    Example:
    >>> layer = keras_cosattn.PositionEmbedding(100)
    >>> tuple(layer(np.ones((2, 7, 4), "float32")).shape)
    (2, 7, 4)
    """

    sequence_length: int
    initializer: Any
    add_to_inputs: bool

    def __init__(
        self,
        sequence_length: int,
        initializer: Any = "glorot_uniform",
        add_to_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (
            isinstance(sequence_length, bool)
            or not isinstance(sequence_length, numbers.Integral)
            or sequence_length < 1
        ):
            raise ValueError(
                "`sequence_length` must be an integer of at least 1. "
                f"Received: sequence_length={sequence_length!r}"
            )
        self.sequence_length = int(sequence_length)
        self.initializer = keras.initializers.get(initializer)
        self.add_to_inputs = add_to_inputs
        self.input_spec = keras.layers.InputSpec(ndim=3)
        self.supports_masking = True

    def build(self, inputs_shape):
        initializer = self.initializer
        if isinstance(initializer, keras.initializers.Initializer):
            initializer = initializer.clone()
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.sequence_length, inputs_shape[-1]),
            initializer=initializer,
        )

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        inputs = ops.cast(inputs, self.compute_dtype)
        b, t = ops.shape(inputs)[:2]
        stream = scope.current()
        if stream is None:
            inputs = self._check_steps(inputs, t, mask)
            positions = timesteps.positions(t, mask)
        else:
            mask = timesteps.combine(stream.mask, mask)
            slot, state = stream.read(self, b, limit=self.sequence_length, position=((), "int32"))
            start = state["position"]
            positions = timesteps.positions(t, mask, start=start)
            count = timesteps.advance(start, t, mask)
            stream.write(slot, {"position": ops.minimum(count, timesteps.LARGEST_COUNT)})
        vectors = ops.take(
            ops.convert_to_tensor(self.embeddings),
            ops.minimum(positions, self.sequence_length - 1),
            axis=0,
        )
        inputs = arrays.zero_masked(inputs, mask)
        return inputs + vectors if self.add_to_inputs else vectors + ops.zeros_like(inputs)

    def _check_steps(self, inputs, t, mask):
        return limits.check_steps(
            inputs,
            t if mask is None else ops.sum(ops.cast(mask, "int32"), axis=1),
            self.sequence_length,
            self.name,
            "Cut the input, or build the layer with a larger `sequence_length`, which is "
            f"{self.sequence_length} now.",
        )

    def compute_output_spec(self, inputs: Tensor, mask: Tensor | None = None) -> keras.KerasTensor:
        if mask is None:
            self._check_steps(inputs, inputs.shape[1], None)
        return super().compute_output_spec(inputs)

    def compute_output_shape(self, inputs_shape):
        return inputs_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "sequence_length": self.sequence_length,
            "initializer": keras.initializers.serialize(self.initializer),
            "add_to_inputs": self.add_to_inputs,
        }
