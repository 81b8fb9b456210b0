"""Softmax attention through landmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_cosattn.attention.arguments import positive
from keras_cosattn.attention.base import Attention
from keras_cosattn.ops import arrays
from keras_cosattn.ops.nystrom import convolve_steps, nystrom_attention

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.attention.options import AttentionOptions


@keras.saving.register_keras_serializable("keras_cosattn")
class NystromAttention(Attention):
    """Nystromformer: softmax attention through landmarks, the means of groups of steps.

    `out = softmax(q K~^T) pinv(softmax(Q~ K~^T)) softmax(Q~ k^T) v`

    Q~ and K~ are the means of L groups of queries and of keys, and all scores are divided by
    sqrt(d). Of n valid steps, step i is averaged into landmark `floor(i L / n)`. If n < L, each
    step is its own landmark, and the other landmarks do not exist. The result is then softmax
    attention, as near as the iteration comes to the inverse. Weights can be negative.

    The layer attends in both directions, also to other values (cross-attention), with a `position`
    that changes q and k. It can neither be causal nor pack sequences nor stream. Dropout acts on
    the mixed values: with dropped weights, the three factors would no longer cancel.

    It takes O((t + s) L (d + e) + pinv_iterations L^3) time and
    O((t + s) L + pinv_iterations L^2) memory for each head. The convolution adds
    O(t conv_kernel_size e) time.

    Where this differs from the paper: n need not be a multiple of L, where the paper adds padding.
    The iteration starts from the norms of each head's own matrix, as in the paper's text. The
    paper's code takes the largest norms of the batch, so that examples influence each other.

    Args:
        num_heads: int, h, the number of query heads.
        key_dim: int, d, the size of a query or key head.
        num_landmarks: int, L, the number of landmarks. Defaults to `64`.
        pinv_iterations: int, the number of iterations towards the Moore-Penrose inverse. If
            landmarks are similar, more iterations come nearer to it, up to about 16. Beyond that,
            singular values that are only rounding errors are inverted too. Defaults to `6`.
        conv_kernel_size: odd int. If given, a convolution of each head's values along time, over
            this number of steps, is added to the output. This is for self-attention only. A step
            that is masked as a value gets no such term. Defaults to `None`, no convolution.
        *args, **kwargs: Other arguments of `Attention`, such as `dropout`, `num_key_value_heads`
            and `seed`.

    Raises:
        ValueError: If `conv_kernel_size` is even, or if a call asks for what the layer cannot do.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import NystromAttention
    >>> layer = NystromAttention(num_heads=2, key_dim=4, num_landmarks=4)
    >>> x = np.ones((1, 10, 8), "float32")
    >>> tuple(layer(x, x).shape)
    (1, 10, 8)

    Reference:
        - [Xiong et al., 2021](https://arxiv.org/abs/2102.03902), equations 13-17
    """

    accepts_positions = ("rotation", "encoding")

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *args: Any,
        num_landmarks: int = 64,
        pinv_iterations: int = 6,
        conv_kernel_size: int | None = None,
        **kwargs: Unpack[AttentionOptions],
    ):
        super().__init__(num_heads, key_dim, *args, **kwargs)
        self.num_landmarks = positive("num_landmarks", num_landmarks)
        self.pinv_iterations = positive("pinv_iterations", pinv_iterations)
        self.conv_kernel_size = conv_kernel_size
        if conv_kernel_size is not None and positive("conv_kernel_size", conv_kernel_size) % 2 == 0:
            raise ValueError(
                "`conv_kernel_size` must be odd: as many steps before as after. Received: "
                f"conv_kernel_size={conv_kernel_size}"
            )

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        if self.conv_kernel_size is not None:
            self.conv_kernel = self.add_weight(
                name="conv_kernel",
                shape=(self.conv_kernel_size, self.num_key_value_heads),
                initializer=self.kernel_initializer.clone(),
                autocast=False,
            )

    @property
    def cannot(self) -> dict[str, str]:
        """What the layer refuses, each with its reason."""
        reasons = {
            "causal": "its landmarks are means over the whole sequence, also of the future. Use "
            "LinearAttention or SoftmaxAttention.",
            "packed": "its landmarks would mix the segments. Put each in a row of its own, padded.",
            "stream": "each new step changes all landmarks.",
        }
        if self.conv_kernel_size is not None:
            reasons["cross"] = (
                "its convolution adds the values around a step to that step's query. "
                "Build it without `conv_kernel_size`."
            )
        return reasons

    def _mix(self, q, k, v, layout, training):
        q, k, _ = self._encode_positions(q, k, layout.query_positions, layout.key_positions)
        mixed = nystrom_attention(
            q,
            k,
            v,
            num_landmarks=self.num_landmarks,
            pinv_iterations=self.pinv_iterations,
            query_mask=layout.query_mask,
            mask=layout.key_mask,
        )
        if self.conv_kernel_size is not None:
            around = convolve_steps(v, ops.convert_to_tensor(self.conv_kernel), layout.key_mask)
            mixed = mixed + arrays.repeat_heads(around, self.num_heads // self.num_key_value_heads)
        return self.dropout_layer(mixed, training=training)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_landmarks": self.num_landmarks,
            "pinv_iterations": self.pinv_iterations,
            "conv_kernel_size": self.conv_kernel_size,
        }
