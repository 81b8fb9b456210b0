"""Attention to a segment and to a compressed memory of all segments before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_cosattn.attention.arguments import positive
from keras_cosattn.attention.base import Attention
from keras_cosattn.ops import timesteps
from keras_cosattn.ops.compressive import compressive_memory
from keras_cosattn.ops.windows import window_attention, window_length

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.attention.options import AttentionOptions


@keras.saving.register_keras_serializable("keras_cosattn")
class CompressiveMemoryAttention(Attention):
    """Infini-attention: softmax inside a segment, and a memory of all segments before it.

    `out_t = g A_mem + (1 - g) A_local`, g = sigmoid(beta) learned for each head. A_local is causal
    softmax attention among the C steps of the segment of t.
    `A_mem = sigma(q_t) M / sigma(q_t) z`, sigma = elu + 1, reads the finished segments. Each is
    written at its end, `M <- M + sigma(K)^T V`, `z <- z + sum_s sigma(k_s)`, or by the delta rule
    `M <- M + sigma(K)^T (V - sigma(K) M / sigma(K) z)`. In the first segment A_mem is zero, and
    the gate does not change.

    Causal, cross, packed; streams without end. O(t (C (d + e) + d e)) time and
    O(t (C + d e / C)) memory per head. With the delta rule the segments are a loop, also in a
    TFLite file (the op WHILE). A streamed step and its state are O(C (d + e) + d e). Dropout is
    applied to the weights of A_local, and `position` to its scores: the memory has no positions.

    With both rules z counts every key, as in the paper. With the delta rule, what the memory gives
    for a key that is written many times is therefore smaller than its value.

    Where this differs from the paper: gradients flow back through the memory over all segments of
    a sequence.

    Args:
        num_heads: Integer, h, the number of query heads.
        key_dim: Integer, d, the size of a query or key head.
        segment_length: Integer, C, the number of steps in a segment. Defaults to `64`.
        delta_rule: Boolean, whether to write only what the memory does not give yet. Defaults to
            `False`.
        **kwargs: Other arguments of `Attention`, such as `dropout`, `num_key_value_heads` and
            `seed`.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import CompressiveMemoryAttention
    >>> layer = CompressiveMemoryAttention(num_heads=2, key_dim=4, segment_length=4)
    >>> x = np.ones((1, 10, 8), "float32")
    >>> tuple(layer(x, x, use_causal_mask=True).shape)
    (1, 10, 8)

    Reference:
        - [Munkhdalai et al., 2024](https://arxiv.org/abs/2404.07143), equations 2-6
    """

    accepts_positions = ("rotation", "encoding", "bias")
    needs_valid_first = True

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *args: Any,
        segment_length: int = 64,
        delta_rule: bool = False,
        **kwargs: Unpack[AttentionOptions],
    ):
        super().__init__(num_heads, key_dim, *args, **kwargs)
        self.segment_length = positive("segment_length", segment_length)
        self.delta_rule = delta_rule

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        self.gate = self.add_weight(
            name="gate", shape=(self.num_heads,), initializer="zeros", autocast=False
        )

    @property
    def cannot(self) -> dict[str, str]:
        """What the layer refuses: use -> reason."""
        return {
            "both ways": "its memory is of the past. Call it with `use_causal_mask=True`, or use "
            "LinearAttention, whose sums may run over everything."
        }

    def _mix(self, q, k, v, layout, training):
        options = {"mask": layout.key_mask, "segments": layout.segments}
        return self._mix_both(q, k, v, training, **options)[0]

    def _attend_in_stream(self, q, k, v, layout, stream, training):
        length, heads = window_length(self.segment_length, 0), self.num_key_value_heads
        sums = ((heads, self.key_dim, self.value_dim + 1), self.sum_dtype)
        slot, state = stream.read(
            self,
            ops.shape(q)[0],
            averages=True,
            key=((length, heads, self.key_dim), self.compute_dtype),
            value=((length, heads, self.value_dim), self.compute_dtype),
            position=((), "int32"),
            sums=sums,
            pending=sums,
        )
        mixed, state = self._mix_both(
            q, k, v, training, means=stream.means, mask=layout.key_mask, state=state
        )
        state["position"] = timesteps.wrap(state["position"], self.segment_length)
        stream.write(slot, state)
        return mixed

    def _mix_both(self, q, k, v, training, means=False, **options):
        """What the segment and the memory give, mixed by the gate; and the new state."""
        local, state = window_attention(
            q,
            k,
            v,
            size=self.segment_length,
            causal=True,
            encode_positions=self._encode_positions,
            dropout=self._drop(training),
            **options,
        )
        memory, sums = compressive_memory(
            q, k, v, size=self.segment_length, delta_rule=self.delta_rule, means=means, **options
        )
        gate = ops.expand_dims(ops.sigmoid(ops.cast(self.gate, memory.dtype)), -1)
        mixed = gate * memory + (1.0 - gate) * local
        if state is None:
            return mixed, None
        state |= {name: ops.cast(state[name], self.compute_dtype) for name in ("key", "value")}
        return mixed, state | sums

    def get_config(self):
        return {
            **super().get_config(),
            "segment_length": self.segment_length,
            "delta_rule": self.delta_rule,
        }
