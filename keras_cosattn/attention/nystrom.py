"""Softmax attention through landmarks."""

import keras
from keras import ops

from keras_cosattn.attention.arguments import positive
from keras_cosattn.attention.base import Attention
from keras_cosattn.ops import arrays
from keras_cosattn.ops.nystrom import convolve_steps, nystrom_attention


@keras.saving.register_keras_serializable("keras_cosattn")
class NystromAttention(Attention):
    """Nystromformer: `softmax(q K~^T) pinv(softmax(Q~ K~^T)) softmax(Q~ k^T) v`.

    Q~ and K~ are means of runs of queries and of keys; all scores are divided by sqrt(d). Both
    directions and cross, with a `position` that changes q and k; not causal, not packed, no
    streams. With L landmarks O((t + s) L (d + e) + pinv_iterations L^3) time and
    O((t + s) L + pinv_iterations L^2) memory per head; the convolution adds
    O(t conv_kernel_size e) time.

    Of n real steps, step i is averaged into landmark `floor(i L / n)`. If n < L each step is its
    own landmark and the rest do not exist: the result is then softmax attention, as near as the
    iteration comes to the inverse. Weights can be negative. Dropout acts on the mixed values:
    dropped weights would no longer cancel in the product.
    Xiong et al., 2021, eq. 13-17.

    Where we leave the paper: n need not be a multiple of L, where the paper pads. The iteration
    starts from the norms of each head's own matrix, as in the paper's text; its code takes the
    largest of the batch, and so mixes the examples.

    Args:
        num_heads, key_dim, *args, **kwargs: as `Attention`.
        num_landmarks: L.
        pinv_iterations: steps towards the Moore-Penrose inverse. Where landmarks are alike, more
            come nearer to it, until about 16: then singular values that are but rounding are
            inverted too.
        conv_kernel_size: add a convolution of each head's values along time, over this odd number
            of steps; for self-attention. None adds none. A step that is masked as a value gets
            none.
    """

    accepts_positions = ("rotation", "encoding")

    def __init__(
        self,
        num_heads,
        key_dim,
        *args,
        num_landmarks=64,
        pinv_iterations=6,
        conv_kernel_size=None,
        **kwargs,
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
    def cannot(self):
        """What the layer refuses: use -> reason."""
        reasons = {
            "causal": "its landmarks are means over the whole sequence, the future too. Use "
            "LinearAttention or SoftmaxAttention.",
            "packed": "its landmarks would mix the segments. Put each in a row of its own, padded.",
            "stream": "each new step moves all landmarks.",
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
            mixed = mixed + arrays.each_head(around, self.num_heads // self.num_key_value_heads)
        return self.dropout_layer(mixed, training=training)

    def get_config(self):
        return {
            **super().get_config(),
            "num_landmarks": self.num_landmarks,
            "pinv_iterations": self.pinv_iterations,
            "conv_kernel_size": self.conv_kernel_size,
        }
