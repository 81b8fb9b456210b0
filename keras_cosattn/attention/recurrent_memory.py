"""Attention to a segment and a memory of the steps before it."""

import keras
from keras import ops

from keras_cosattn.attention.base import Attention, positive, real_steps_first
from keras_cosattn.ops import masks
from keras_cosattn.ops.blocks import window_attention, window_length


@keras.saving.register_keras_serializable("keras_cosattn")
class RecurrentMemoryAttention(Attention):
    """Softmax attention to the own segment, and to a memory of what came before it.

    `out_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s` over `start_t - m <= s <= t`: C steps are a
    segment, `start_t = C floor(t / C)` is where that of step t begins, m is the length of the
    memory. Steps before `start_t` are memory, `k_s = W_k SG(x_s)`: the layer's inputs get no
    gradient from it, its kernels do. So training is that of segments which are fed one after the
    other, with all of them at once.

    Causal, cross, packed; streams without end. O(t (C + m) (d + e)) time and O(t (C + m)) memory
    per head, twice that when packed; a memory has the projections of keys and values made twice,
    in a stream in training only. A streamed step and its float32 state are O((C + m) (d + e)).
    Dropout acts on the weights. Dai et al., 2019 (Transformer-XL), sections 3.2 and 3.3; its
    positions are `position=TransformerXL()`.

    Where we leave the paper: of the steps of earlier calls a stream keeps keys and values, where
    the paper keeps the hidden states that they are projected from, and projects them again with
    the kernels of today. In inference the numbers are the same. In training by pieces
    (`CarriedState`) the kernels learn from the memory inside a piece only, so a piece should be
    several segments long. Inside a stream gradients are stopped in training only
    (`training=True`).

    Args:
        num_heads, key_dim, **kwargs: as `Attention`.
        segment_length: C.
        memory_length: m, in steps; 0 is a segment alone.
    """

    accepts_positions = ("rotation", "encoding", "bias")

    def __init__(self, num_heads, key_dim, *, segment_length=64, memory_length=64, **kwargs):
        super().__init__(num_heads, key_dim, **kwargs)
        self.segment_length = positive("segment_length", segment_length)
        if not isinstance(memory_length, int) or memory_length < 0:
            raise ValueError(
                "`memory_length` must be an integer of at least 0. "
                f"Received: memory_length={memory_length!r}"
            )
        self.memory_length = memory_length

    @property
    def cannot(self):
        """What the layer refuses: use -> reason."""
        return {
            "both ways": "its memory is of the past. Call it with `use_causal_mask=True`, or use "
            "a layer whose window looks both ways."
        }

    def _project(self, query, key, value):
        q, k, v = super()._project(query, key, value)
        if self.memory_length == 0:
            return q, [k], [v]
        key, value = ops.stop_gradient(key), ops.stop_gradient(value)
        return q, [k, self.key_dense(key)], [v, self.value_dense(value)]

    def _attend(self, q, k, v, *args):
        # Those of the memory are more heads, wherever the layer handles keys and values.
        k, v = ops.concatenate(k, axis=2), ops.concatenate(v, axis=2)
        return super()._attend(q, k, v, *args)

    def _mix(self, q, k, v, how, training):
        q, k, v, how, restore = real_steps_first(q, k, v, how)
        segments = masks.segment_numbers(how.segments)
        mixed, _ = self._windows(q, k, v, training, mask=how.key, segments=segments)
        return mixed if restore is None else masks.take_steps(mixed, restore)

    def _attend_in_stream(self, q, k, v, mask, stream, training):
        length = window_length(self.segment_length, self.memory_length)
        slot, state = stream.read(
            self,
            ops.shape(q)[0],
            key=((length, self.num_key_value_heads, self.key_dim), "float32"),
            value=((length, self.num_key_value_heads, self.value_dim), "float32"),
            position=((), "int32"),
        )
        restore = None
        k, v = (ops.concatenate(x if training else x[:1], axis=2) for x in (k, v))
        if mask is not None:
            order, restore = masks.real_first(mask)
            q, k, v, mask = (masks.take_steps(x, order) for x in (q, k, v, mask))
        mixed, state = self._windows(q, k, v, training, mask=mask, state=state)
        state |= {name: ops.cast(state[name], "float32") for name in ("key", "value")}
        stream.write(slot, state)
        return mixed if restore is None else masks.take_steps(mixed, restore)

    def _windows(self, q, k, v, training, **options):
        n, memory = self.num_key_value_heads, None
        if k.shape[2] > n:
            memory = k[:, :, n:], v[:, :, n:]
        return window_attention(
            q,
            k[:, :, :n],
            v[:, :, :n],
            size=self.segment_length,
            look_back=self.memory_length,
            causal=True,
            memory=memory,
            place=self._place,
            dropout=self._drop(training),
            **options,
        )

    def get_config(self):
        return {
            **super().get_config(),
            "segment_length": self.segment_length,
            "memory_length": self.memory_length,
        }
