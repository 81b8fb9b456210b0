"""Attention to a segment and a memory of the steps before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_cosattn.attention.arguments import not_negative, optional, positive
from keras_cosattn.attention.base import Attention
from keras_cosattn.ops import arrays, dense, timesteps
from keras_cosattn.ops.memory_tokens import read_tokens, tokens_of_segments
from keras_cosattn.ops.windows import window_attention, window_length

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.attention.options import AttentionOptions


@keras.saving.register_keras_serializable("keras_cosattn")
class RecurrentMemoryAttention(Attention):
    """Softmax attention to a segment and to a memory of the steps before it.

    `out_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s` over `start_t - m <= s <= t`: a segment has
    C steps, `start_t = C floor(t / C)` is the first step of the segment of t, and m is the length
    of the memory. Steps before `start_t` are memory, `k_s = W_k SG(x_s)`: the layer's inputs get
    no gradient from it, its kernels do. So training equals that of segments which are fed one
    after the other, with all of them at once.

    Causal, cross, packed; streams without end. O(t (C + m) (d + e)) time and O(t (C + m)) memory
    per head, twice that when packed. With a memory, keys and values are projected twice, in a
    stream in training only. A streamed step and its state are O((C + m) (d + e)). Dropout
    is applied to the attention weights. The positions of Dai et al. are
    `position=TransformerXL()`.

    With r memory tokens the steps of segment c also attend, in the same softmax, to the tokens
    `M_c (r, m)` of the input's width, through the same projections. When the segment is finished,
    `M_(c+1) = N(M_c + A(M_c; [M_c, X_c]))`: A is the layer's attention of the tokens, without
    mask, to themselves and to the steps `X_c`; N divides each token by its root mean square; M_0
    is learned. So a step can use what was long ago, and gradients flow through the tokens from
    segment to segment of a call. Tokens have no position: no rotation, no bias. The returned
    attention weights are those of the steps; the rest of a row belongs to the tokens. The end of a
    segment costs O(r (C + r) (d + e)) per head and the projections of r tokens, and segments are
    computed one after the other; a streamed step has that cost, too. The state has `M (r, m)`
    more. Memory tokens need self-attention without packing.

    Where this differs from the papers: of the steps of earlier calls, a stream keeps keys and
    values. Dai et al. keep the hidden states, and project them again with the current kernels. In
    inference the numbers are the same. In training by pieces (`CarriedState`) the kernels learn
    from the memory inside a piece only, so a piece should be several segments long. Inside a stream
    gradients are stopped in training only (`training=True`). The tokens of Bulatov et al. pass with
    the segment through all layers of a Transformer, and from the last layer to the first. Here
    each layer has its own tokens, which never leave it; without N their sum would grow without end.

    Args:
        num_heads: Integer, h, the number of query heads.
        key_dim: Integer, d, the size of a query or key head.
        segment_length: Integer, C, the number of steps in a segment. Defaults to `64`.
        memory_length: Integer, m, in steps. With `0` a step attends to its segment alone.
            Defaults to `64`.
        num_memory_tokens: Integer, r. With tokens the layer's output must be as wide as its
            input. Defaults to `0`, no tokens.
        block_size: Integer, the number of steps whose weights are in memory at once, rounded up to
            whole segments. The layer then loops over the sequence, which is slower and needs less
            memory. With `None`, and in training with dropout, it computes all steps at once.
            Defaults to `None`.
        **kwargs: Other arguments of `Attention`, such as `dropout`, `num_key_value_heads` and
            `seed`.

    Raises:
        ValueError: If there are memory tokens, and `output_shape` is not the input's width or
            there is an `activity_regularizer`.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import RecurrentMemoryAttention
    >>> layer = RecurrentMemoryAttention(num_heads=2, key_dim=4, segment_length=4, memory_length=4)
    >>> x = np.ones((1, 10, 8), "float32")
    >>> tuple(layer(x, x, use_causal_mask=True).shape)
    (1, 10, 8)

    Reference:
        - [Dai et al., 2019 (Transformer-XL)](https://arxiv.org/abs/1901.02860), sections 3.2, 3.3
        - [Bulatov et al., 2022 (Recurrent Memory Transformer)](https://arxiv.org/abs/2207.06881),
          section 3
    """

    accepts_positions = ("rotation", "encoding", "bias")
    needs_valid_first = True

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *args: Any,
        segment_length: int = 64,
        memory_length: int = 64,
        num_memory_tokens: int = 0,
        block_size: int | None = None,
        **kwargs: Unpack[AttentionOptions],
    ):
        super().__init__(num_heads, key_dim, *args, **kwargs)
        self.segment_length = positive("segment_length", segment_length)
        self.memory_length = not_negative("memory_length", memory_length)
        self.num_memory_tokens = not_negative("num_memory_tokens", num_memory_tokens)
        self.block_size = optional(positive, "block_size", block_size)
        if self.num_memory_tokens and self._activity_regularizer is not None:
            raise ValueError(
                "`activity_regularizer` must be None with memory tokens, which are projected in a "
                "loop. Use `num_memory_tokens=0`, or a regularizer of the kernels. Received: "
                f"activity_regularizer={self._activity_regularizer}, "
                f"num_memory_tokens={num_memory_tokens}"
            )

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
    def cannot(self) -> dict[str, str]:
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
        return q, [k, self._keys(key)], [v, self.value_dense(value)]

    def _attend(self, q, k, v, layout, training, return_weights):
        # Keys and values of the memory are additional heads of k and v.
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
            lambda values: share * self._mix(q, k, values, layout, False), v, layout
        )
        return mixed, weights

    def _mix(self, q, k, v, layout, training, **options):
        options |= {"mask": layout.key_mask, "segments": layout.segments}
        return self._windows(q, k, v, training, **options)[0]

    def _attend_in_stream(self, q, k, v, layout, stream, training):
        length = window_length(self.segment_length, self.memory_length)
        spec = {
            "key": ((length, self.num_key_value_heads, self.key_dim), self.compute_dtype),
            "value": ((length, self.num_key_value_heads, self.value_dim), self.compute_dtype),
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
            encode_positions=self._encode_positions,
            dropout=self._drop(training),
            block_size=self.block_size,
            **options,
        )

    def _with_tokens(self, of_steps, of_tokens):
        """One softmax over steps and tokens, from a softmax over each; and the steps' share."""
        (mixed, steps_total), (read, tokens_total) = of_steps, of_tokens
        share = ops.expand_dims(ops.sigmoid(steps_total - tokens_total), 3)
        return share * mixed + (1 - share) * read, share

    def _read_tokens(self, q, k, v, training, mask=None, state=None):
        """What steps read from their segment's tokens, with log totals; and the last tokens."""
        b, n, r = ops.shape(q)[0], self.num_key_value_heads, self.num_memory_tokens
        width = self.memory_tokens.shape[1]
        tokens = ops.broadcast_to(ops.reshape(self.memory_tokens, (1, -1)), (b, r * width))
        position = None
        if state is not None:
            position = state["position"]
            is_first = ops.expand_dims(position == 0, 1)
            tokens = ops.where(is_first, tokens, ops.reshape(state["tokens"], (b, r * width)))
        of_segments, tokens = tokens_of_segments(
            self._rewrite_tokens, k[:, :, :n], v[:, :, :n], tokens,
            size=self.segment_length, mask=mask, state=state,
        )  # fmt: skip
        token_count = ops.shape(of_segments)[1] * r
        k, v = self._keys_and_values(ops.reshape(of_segments, (b, token_count, width)))
        read = read_tokens(
            q, k, v, size=self.segment_length, count=r, position=position,
            dropout=self._drop(training),
        )  # fmt: skip
        return read, tokens

    def _keys_and_values(self, tokens):
        tokens = ops.cast(tokens, self.compute_dtype)
        return self._keys(tokens), self.value_dense(tokens)

    def _rewrite_tokens(self, tokens, k, v, valid):
        """The tokens `(b, r * m)` after a segment of keys and values `(b, C, hk, ..)`."""
        r, width = self.memory_tokens.shape
        x = ops.reshape(tokens, (-1, r, width))
        own_k, own_v = self._keys_and_values(x)
        k = ops.concatenate([own_k, ops.cast(k, own_k.dtype)], axis=1)
        v = ops.concatenate([own_v, ops.cast(v, own_v.dtype)], axis=1)
        allowed = ops.concatenate([*[ops.ones_like(valid[:, :1])] * r, valid], axis=1)
        allowed = ops.expand_dims(allowed, (1, 2))
        # XLA has no gradient of repeated key heads in a loop.
        group = self.num_heads // self.num_key_value_heads
        q = arrays.fold_groups(self._queries(ops.cast(x, self.compute_dtype)), group)
        mixed = arrays.unfold_groups(dense.attend(q, k, v, allowed)[0], group)
        new = self._project_back(x, mixed)
        return ops.reshape(_unit_scale(x + ops.cast(new, x.dtype)), ops.shape(tokens))

    def get_config(self):
        return {
            **super().get_config(),
            "segment_length": self.segment_length,
            "memory_length": self.memory_length,
            "num_memory_tokens": self.num_memory_tokens,
            "block_size": self.block_size,
        }


def _unit_scale(x):
    """Each vector of the last axis divided by its root mean square."""
    return x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-6)
