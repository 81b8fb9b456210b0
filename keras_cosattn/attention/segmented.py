"""Softmax attention inside segments."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal

import keras
from keras import ops

from keras_cosattn.attention.arguments import not_negative, optional, positive
from keras_cosattn.attention.base import Attention
from keras_cosattn.ops import segmented, timesteps
from keras_cosattn.ops.windows import window_attention, window_length

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.attention.options import AttentionOptions

SUMMARIES = (None, "mean", "attention")


@keras.saving.register_keras_serializable("keras_cosattn")
class SegmentedAttention(Attention):
    """Softmax attention to a segment, the segments near it, and summaries of all others.

    `out_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s` over the steps s that t attends to: those of
    its segment of C steps, of the w segments before it and of the w segments after it. If causal,
    only steps `s <= t`. With w = 0 no information passes between segments. With w > 0 the windows
    overlap: a sliding window that moves by segments.

    With `summaries`, each other segment j is one more step of the same softmax, with the key
    `sum_s a_s k_s`, the value `sum_s a_s v_s` and the score `q_t . key_j / sqrt(d) + log c_j`, of
    its c_j steps s. `a_s` is `1 / c_j` ("mean"), or `softmax_s(u . k_s / sqrt(d))` with a learned
    u for each key head ("attention"). So every step reaches every step. If causal, it reaches every
    step of the past, through finished segments. A summary has the position of its middle step.

    Both directions, causal, cross (queries attend to keys around the same positions), packed. With
    S = (2 w + 1) C, if causal (w + 1) C, the cost is O(t S (d + e)) time and O(t S) memory per
    head. Streams without end: a step costs O(S (d + e)), and the state has that size. The
    summaries add O(t (s / C) (d + e)) time and O(t (s / C) (1 + (d + e) / C)) memory; with
    C = sqrt(s) the total is O(t sqrt(s) (d + e)). A stream then keeps a summary of each finished
    segment, for `max_length` steps: O((max_length / C) (d + e)) per step and in the state. More
    steps raise ValueError, or fail an assertion in a TensorFlow graph; under XLA the segments
    beyond them get no summary. Dropout is applied to the attention weights.

    Where this differs from the papers: windows move by segments, so that blocks are dense. The
    long range has one summary of each segment, pooled from its own steps with weights that sum to
    one, where Zhu et al. learn several of the whole sequence. With `log c` a summary weighs as
    much as c steps with its key; Bolya et al. call this "proportional attention".

    Args:
        num_heads: Integer, h, the number of query heads.
        key_dim: Integer, d, the size of a query or key head.
        segment_length: Integer, C, the number of steps in a segment. Defaults to `64`.
        look_back: Integer, w, in segments. Without `use_causal_mask`, the window has as many
            segments ahead. Defaults to `0`.
        summaries: `None`, `"mean"` or `"attention"`. Defaults to `None`, no summaries.
        max_length: Integer, the number of steps that a stream with `summaries` can hold. With
            `None` the layer cannot stream with them. Without `summaries` a stream has no end, and
            `max_length` must be `None`. Whole sequences may have any length. Defaults to `None`.
        block_size: Integer, the number of steps whose weights are in memory at once, rounded up to
            whole segments. The layer then loops over the sequence, which is slower and needs less
            memory. With `None`, and in training with dropout, it computes all steps at once.
            Defaults to `None`.
        **kwargs: Other arguments of `Attention`, such as `dropout`, `num_key_value_heads` and
            `seed`.

    Raises:
        ValueError: If `summaries` is none of its choices, or if `max_length` is given without
            `summaries`.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import SegmentedAttention
    >>> layer = SegmentedAttention(num_heads=2, key_dim=4, segment_length=4, summaries="mean")
    >>> x = np.ones((1, 10, 8), "float32")
    >>> tuple(layer(x, x, use_causal_mask=True).shape)
    (1, 10, 8)

    Reference:
        - [Liu et al., 2018](https://arxiv.org/abs/1801.10198), section 4.2.4, "local attention":
          segments alone
        - [Beltagy et al., 2020 (Longformer)](https://arxiv.org/abs/2004.05150), section 3.1:
          windows that overlap
        - [Zhu et al., 2021 (Long-Short Transformer)](https://arxiv.org/abs/2107.02192): window and
          summaries in one softmax
        - [Bolya et al., 2023 (Token Merging)](https://arxiv.org/abs/2210.09461), equation 1:
          the score's `log c`
    """

    accepts_positions = ("rotation", "encoding", "bias")
    needs_valid_first = True

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *args: Any,
        segment_length: int = 64,
        look_back: int = 0,
        summaries: Literal["mean", "attention"] | None = None,
        max_length: int | None = None,
        block_size: int | None = None,
        **kwargs: Unpack[AttentionOptions],
    ):
        super().__init__(num_heads, key_dim, *args, **kwargs)
        self.segment_length = positive("segment_length", segment_length)
        if summaries not in SUMMARIES:
            raise ValueError(
                f"`summaries` must be one of {SUMMARIES}. Received: summaries={summaries!r}"
            )
        if max_length is not None and summaries is None:
            raise ValueError(
                "`max_length` is for `summaries`: without them a stream has no end. "
                f"Received: max_length={max_length!r}, summaries=None"
            )
        self.look_back = not_negative("look_back", look_back)
        self.summaries = summaries
        self.max_length = optional(positive, "max_length", max_length)
        self.block_size = optional(positive, "block_size", block_size)

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        self.summary_query = None
        if self.summaries == "attention":
            self.summary_query = self.add_weight(
                name="summary_query",
                shape=(self.num_key_value_heads, self.key_dim),
                initializer="glorot_uniform",
                dtype=self.sum_dtype,
                autocast=False,
            )

    @property
    def cannot(self) -> dict[str, str]:
        """What the layer refuses: use -> reason."""
        if self.summaries is None or self.max_length is not None:
            return {}
        return {
            "stream": "it keeps a summary of every segment, so it needs to know how many. "
            "Build it with `max_length`, or with `summaries=None`."
        }

    def _mix(self, q, k, v, layout, training):
        options = {
            "causal": layout.causal,
            "mask": layout.key_mask,
            "segments": layout.segments,
        }
        return self._segmented(q, k, v, training, **options)[0]

    def _attend_in_stream(self, q, k, v, layout, stream, training):
        spec = self._state_spec()
        slot, state = stream.read(self, ops.shape(q)[0], limit=self.max_length, **spec)
        mixed, state = self._segmented(
            q, k, v, training, causal=True, mask=layout.key_mask, state=state
        )
        if self.max_length is None:
            state["position"] = timesteps.wrap(state["position"], self.segment_length)
        stream.write(slot, {name: ops.cast(state[name], d) for name, (_, d) in spec.items()})
        return mixed

    def _state_spec(self):
        sizes = {"key": self.key_dim, "value": self.value_dim}
        length = window_length(self.segment_length, self.look_back * self.segment_length)
        parts = {"": (length, self.compute_dtype)}
        if self.summaries is not None:
            n = -(-self.max_length // self.segment_length)
            parts["summary_"] = max(n - 1 - self.look_back, 1), self.sum_dtype
        spec = {
            prefix + name: ((length, self.num_key_value_heads, size), dtype)
            for prefix, (length, dtype) in parts.items()
            for name, size in sizes.items()
        }
        return {**spec, "position": ((), "int32")}

    def _segmented(self, q, k, v, training, **options):
        attend = window_attention
        if self.summaries is not None:
            summarise = functools.partial(segmented.summary, query=self.summary_query)
            attend = functools.partial(segmented.segmented_attention, summarise=summarise)
        reach = self.look_back * self.segment_length
        return attend(
            q,
            k,
            v,
            size=self.segment_length,
            look_back=reach,
            look_ahead=reach,
            encode_positions=None if self.position is None else self._encode_positions,
            dropout=self._drop(training),
            block_size=self.block_size,
            **options,
        )

    def get_config(self):
        return {
            **super().get_config(),
            "segment_length": self.segment_length,
            "look_back": self.look_back,
            "summaries": self.summaries,
            "max_length": self.max_length,
            "block_size": self.block_size,
        }
