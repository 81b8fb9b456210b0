"""Attention to a segment and a memory of the steps before it."""

import keras
from keras import ops

from keras_cosattn.attention.arguments import not_negative, positive
from keras_cosattn.attention.base import Attention
from keras_cosattn.ops import arrays, dense, timesteps
from keras_cosattn.ops.memory_tokens import read_tokens, tokens_of_segments
from keras_cosattn.ops.windows import window_attention, window_length


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

    With r memory tokens the steps of segment c also attend, in the same softmax, to the tokens
    `M_c (r, m)` of the input's width, through the same projections. When the segment is finished
    `M_(c+1) = N(M_c + A(M_c; [M_c, X_c]))`: A is the layer's attention of the tokens, without
    mask, to themselves and to the steps `X_c`; N divides each token by its root mean square; M_0
    is learned. So what was long ago can be known, and gradients flow through the tokens from
    segment to segment of a call. They stand at no position: no rotation, no bias. Attention
    weights are those of the steps; the rest of a row is the tokens'. A segment's end costs
    O(r (C + r) (d + e)) per head and the projections of r tokens, and comes after the one before
    it; so much a streamed step costs, too. The state has `M (r, m)` more. Self-attention, not
    packed. Bulatov et al., 2022 (Recurrent Memory Transformer), section 3.

    Where we leave that paper: its tokens pass with the segment through all layers of a
    Transformer, and come from the last layer to the first. Here each layer has its own, which
    never leave it; without N their sum would grow without end.

    Args:
        num_heads, key_dim, *args, **kwargs: as `Attention`.
        segment_length: C.
        memory_length: m, in steps; 0 is a segment alone.
        num_memory_tokens: r; with tokens the layer's output is as wide as its input.
    """

    accepts_positions = ("rotation", "encoding", "bias")
    needs_valid_first = True

    def __init__(
        self,
        num_heads,
        key_dim,
        *args,
        segment_length=64,
        memory_length=64,
        num_memory_tokens=0,
        **kwargs,
    ):
        super().__init__(num_heads, key_dim, *args, **kwargs)
        self.segment_length = positive("segment_length", segment_length)
        self.memory_length = not_negative("memory_length", memory_length)
        self.num_memory_tokens = not_negative("num_memory_tokens", num_memory_tokens)

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        if self.num_memory_tokens == 0:
            return
        width = query_shape[-1]
        if self.output_sizes not in (None, (width,)):
            raise ValueError(
                f"{self.name}: memory tokens are of the width of the input, and so is what is "
                "added to them. Leave out `output_shape`, or use `num_memory_tokens=0`. Received: "
                f"output_shape={self.output_sizes}, query.shape={tuple(query_shape)}"
            )
        self.memory_tokens = self.add_weight(
            name="memory_tokens",
            shape=(self.num_memory_tokens, width),
            initializer=keras.initializers.RandomNormal(stddev=1.0),
            dtype=self.sum_dtype,
            autocast=False,
        )

    @property
    def cannot(self):
        """What the layer refuses: use -> reason."""
        reasons = {
            "both ways": "its memory is of the past. Call it with `use_causal_mask=True`, or use "
            "a layer whose window looks both ways."
        }
        if self.num_memory_tokens:
            reasons["cross"] = (
                "its memory tokens are queries and values among the steps that read them. Use "
                "`num_memory_tokens=0`."
            )
            reasons["packed"] = (
                "its memory tokens begin once in a row, not anew with each sequence. Give each "
                "sequence a row of its own, or use `num_memory_tokens=0`."
            )
        return reasons

    def _project(self, query, key, value):
        q, k, v = super()._project(query, key, value)
        if self.memory_length == 0:
            return q, [k], [v]
        key, value = ops.stop_gradient(key), ops.stop_gradient(value)
        return q, [k, self.key_dense(key)], [v, self.value_dense(value)]

    def _attend(self, q, k, v, layout, training, return_weights):
        # Those of the memory are more heads, wherever the layer handles keys and values.
        k, v = ops.concatenate(k, axis=2), ops.concatenate(v, axis=2)
        if self.num_memory_tokens == 0:
            return super()._attend(q, k, v, layout, training, return_weights)
        mixed, share = self._with_tokens(
            self._mix(q, k, v, layout, training, log_totals=True),
            self._read_tokens(q, k, v, training, mask=layout.key_mask)[0],
        )
        if not return_weights:
            return mixed, None
        weights = self._implied_weights(
            lambda each: share * self._mix(q, k, each, layout, False), v, layout
        )
        return mixed, weights

    def _mix(self, q, k, v, layout, training, **options):
        options |= {"mask": layout.key_mask, "segments": layout.segments}
        return self._windows(q, k, v, training, **options)[0]

    def _attend_in_stream(self, q, k, v, layout, stream, training):
        length = window_length(self.segment_length, self.memory_length)
        spec = {
            "key": ((length, self.num_key_value_heads, self.key_dim), self.sum_dtype),
            "value": ((length, self.num_key_value_heads, self.value_dim), self.sum_dtype),
            "position": ((), "int32"),
        }
        if self.num_memory_tokens:
            spec["tokens"] = tuple(self.memory_tokens.shape), self.sum_dtype
        slot, state = stream.read(self, ops.shape(q)[0], **spec)
        k, v = (ops.concatenate(x if training else x[:1], axis=2) for x in (k, v))
        options = {"mask": layout.key_mask, "state": state}
        if self.num_memory_tokens == 0:
            mixed, new = self._windows(q, k, v, training, **options)
        else:
            mixed, new = self._windows(q, k, v, training, log_totals=True, **options)
            read, tokens = self._read_tokens(q, k, v, training, **options)
            mixed, _ = self._with_tokens(mixed, read)
            new["tokens"] = ops.reshape(tokens, ops.shape(state["tokens"]))
        new["position"] = timesteps.wrap(new["position"], self.segment_length)
        stream.write(slot, {name: ops.cast(x, spec[name][1]) for name, x in new.items()})
        return mixed

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
            place=self._encode_positions,
            dropout=self._drop(training),
            **options,
        )

    def _with_tokens(self, of_steps, of_tokens):
        """One softmax over steps and tokens, from those over each; and the steps' share of it."""
        (mixed, total), (read, other) = of_steps, of_tokens
        share = ops.expand_dims(ops.sigmoid(total - other), 3)
        return share * mixed + (1 - share) * read, share

    def _read_tokens(self, q, k, v, training, mask=None, state=None):
        """What steps get from their segment's tokens, with log totals; the tokens they leave."""
        b, n, r = ops.shape(q)[0], self.num_key_value_heads, self.num_memory_tokens
        width = self.memory_tokens.shape[1]
        tokens = ops.broadcast_to(ops.reshape(self.memory_tokens, (1, -1)), (b, r * width))
        position = None
        if state is not None:
            position = state["position"]
            new = ops.expand_dims(position == 0, 1)
            tokens = ops.where(new, tokens, ops.reshape(state["tokens"], (b, r * width)))
        found, tokens = tokens_of_segments(
            self._rewritten, k[:, :, :n], v[:, :, :n], tokens,
            size=self.segment_length, mask=mask, state=state,
        )  # fmt: skip
        tokens_in_all = ops.shape(found)[1] * r
        k, v = self._keys_and_values(ops.reshape(found, (b, tokens_in_all, width)))
        read = read_tokens(
            q, k, v, size=self.segment_length, count=r, position=position,
            dropout=self._drop(training),
        )  # fmt: skip
        return read, tokens

    def _keys_and_values(self, tokens):
        tokens = ops.cast(tokens, self.compute_dtype)
        return self.key_dense(tokens), self.value_dense(tokens)

    def _rewritten(self, tokens, k, v, real):
        """The tokens `(b, r * m)` after a segment of keys and values `(b, C, hk, ..)`."""
        r, width = self.memory_tokens.shape
        x = ops.reshape(tokens, (-1, r, width))
        own_k, own_v = self._keys_and_values(x)
        k = ops.concatenate([own_k, ops.cast(k, own_k.dtype)], axis=1)
        v = ops.concatenate([own_v, ops.cast(v, own_v.dtype)], axis=1)
        seen = ops.concatenate([*[ops.ones_like(real[:, :1])] * r, real], axis=1)
        seen = ops.expand_dims(ops.expand_dims(seen, 1), 1)
        # XLA has no gradient of repeated key heads in a loop.
        group = self.num_heads // self.num_key_value_heads
        q = arrays.fold_groups(self.query_dense(ops.cast(x, self.compute_dtype)), group)
        mixed = arrays.unfold_groups(dense.attend(q, k, v, seen)[0], group)
        new = self.output_dense(self._gated(x, mixed))
        return ops.reshape(_unit_scale(x + ops.cast(new, x.dtype)), ops.shape(tokens))

    def get_config(self):
        return {
            **super().get_config(),
            "segment_length": self.segment_length,
            "memory_length": self.memory_length,
            "num_memory_tokens": self.num_memory_tokens,
        }


def _unit_scale(x):
    """Each vector of the last axis divided by its root mean square."""
    return x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-6)
