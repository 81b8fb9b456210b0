"""Short causal convolutions of queries, keys and values, with their weights and states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_cosattn.ops import arrays
from keras_cosattn.ops.short_convolution import short_convolution

Tensor = Any

NAMES = {"q": "query", "k": "key", "v": "value"}


class ShortConvolutions:
    """A convolution of each channel of q, k and v over the last steps, with SiLU after it.

    Args:
        layer: the attention layer, which gets the weights `query_conv`, `key_conv` and
            `value_conv`, each `(size, heads, d or e)`.
        size: int, the number of steps K of a kernel.
        sizes: dict of `"q"`, `"k"` and `"v"` to the number of heads and their size.
        use_bias: bool, whether the weights have biases, too.
    """

    def __init__(
        self,
        layer: Any,
        size: int,
        sizes: Mapping[str, tuple[int, int]],
        use_bias: bool = False,
    ) -> None:
        self.size, self.sizes, self.history_dtype = size, sizes, layer.compute_dtype
        largest, options = size**-0.5, {"dtype": layer.sum_dtype, "autocast": False}
        self.kernels, self.biases = {}, {}
        for name, shape in sizes.items():
            self.kernels[name] = layer.add_weight(
                name=f"{NAMES[name]}_conv",
                shape=(size, *shape),
                initializer=keras.initializers.RandomUniform(-largest, largest),
                **options,
            )
            if use_bias:
                self.biases[name] = layer.add_weight(
                    name=f"{NAMES[name]}_conv_bias", shape=shape, initializer="zeros", **options
                )

    def state_spec(self) -> dict[str, Any]:
        """Return the shapes and dtypes of the last inputs, by the name in a layer's state."""
        return {
            f"{name}_inputs": ((self.size - 1, heads * size), self.history_dtype)
            for name, (heads, size) in self.sizes.items()
        }

    def __call__(
        self, name: str, x: Tensor, state: dict[str, Any], mask: Tensor | None, runs: Tensor | None
    ) -> Tensor:
        """Return the convolution of `x (b, t, h, d)` in the dtype of sums, and update `state`.

        Args:
            name: `"q"`, `"k"` or `"v"`.
            x: tensor `(b, t, h, d)`. Valid steps come first.
            state: dict of the last inputs, with the entries of `state_spec`.
            mask: bool tensor `(b, t)`, the valid steps, or None.
            runs: int32 tensor `(b, t)` of packed sequences, or None; 0 continues the state.
        """
        kernel, key = self.kernels[name], f"{name}_inputs"
        (b, t), (heads, size) = ops.shape(x)[:2], kernel.shape[1:]
        x = ops.reshape(arrays.zero_masked(arrays.accumulate(x), mask), (b, t, heads * size))
        taps = ops.reshape(kernel, (self.size, heads * size))
        out, history = short_convolution(x, taps, state[key], mask=mask, runs=runs)
        state[key] = ops.cast(history, state[key].dtype)
        out = ops.reshape(out, (b, t, heads, size))
        if name in self.biases:
            out = out + ops.convert_to_tensor(self.biases[name])
        return ops.silu(out)
