"""Softmax attention inside segments."""

import functools

import keras
from keras import ops

from keras_cosattn.attention.arguments import not_negative, optional, positive
from keras_cosattn.attention.base import Attention
from keras_cosattn.ops import segmented, timesteps
from keras_cosattn.ops.windows import window_attention, window_length

SUMMARIES = (None, "mean", "attention")


@keras.saving.register_keras_serializable("keras_cosattn")
class SegmentedAttention(Attention):
    """Softmax attention to the own segment, the segments near it, and summaries of all others.

    `out_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s` over the steps s that t sees: those of its
    segment of C steps, of the w segments before it and of the w after it; if causal, of those only
    `s <= t`. With w = 0 segments know nothing of each other; with w > 0 the views overlap: a
    sliding window that moves by segments.

    With `summaries` every other segment j stands in the same softmax as one step, with the key
    `sum_s a_s k_s`, the value `sum_s a_s v_s` and the score `q_t . key_j / sqrt(d) + log c_j`, of
    its c_j steps s. `a_s` is `1 / c_j` ("mean"), or `softmax_s(u . k_s / sqrt(d))` with a learned
    u for each key head ("attention"). So every step reaches every step; if causal, every step of
    the past, through finished segments. A summary has the position of its middle step.

    Both directions, causal, cross (queries and keys of the same positions meet), packed. With
    S = (2 w + 1) C, if causal (w + 1) C: O(t S (d + e)) time and O(t S) memory per head. Streams
    without end: a step costs O(S (d + e)), the float32 state is as large. The summaries add
    O(t (s / C) (d + e)) time and O(t (s / C) (1 + (d + e) / C)) memory: with C = sqrt(s) it is
    O(t sqrt(s) (d + e)) in all. A stream then keeps a summary of each finished segment, for
    `max_length` steps, O((max_length / C) (d + e)) per step and in state. More steps raise
    ValueError, or fail an assertion in a TensorFlow graph; under XLA segments beyond them get no
    summary. Dropout acts on the weights.

    Liu et al., 2018, section 4.2.4 (segments alone: "local attention"); Beltagy et al., 2020
    (Longformer), section 3.1 (windows that overlap); Zhu et al., 2021 (Long-Short
    Transformer): window and summaries in one softmax.

    Where we leave the papers: windows move by segments, so that blocks are dense; the long range
    has one summary of each segment, pooled from its own steps with weights that sum to one, where
    Zhu et al. learn several of the whole sequence. `log c` lets a summary weigh as much as c steps
    of its key would; it is "proportional attention", Bolya et al., 2023 (Token Merging), eq. 1.

    Args:
        num_heads, key_dim, *args, **kwargs: as `Attention`.
        segment_length: C.
        look_back: w, in segments; both ways the view goes as far ahead.
        summaries: None, "mean" or "attention".
        max_length: steps that a stream can hold, with `summaries`; None cannot stream with them.
            Without them streams have no end. Whole sequences may have any length.
    """

    accepts_positions = ("rotation", "encoding", "bias")
    needs_valid_first = True

    def __init__(
        self,
        num_heads,
        key_dim,
        *args,
        segment_length=64,
        look_back=0,
        summaries=None,
        max_length=None,
        **kwargs,
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
    def cannot(self):
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
        lengths = {"": length}
        if self.summaries is not None:
            n = -(-self.max_length // self.segment_length)
            lengths["summary_"] = max(n - 1 - self.look_back, 1)
        spec = {
            prefix + name: ((length, self.num_key_value_heads, size), self.sum_dtype)
            for prefix, length in lengths.items()
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
            place=None if self.position is None else self._encode_positions,
            dropout=self._drop(training),
            **options,
        )

    def get_config(self):
        return {
            **super().get_config(),
            "segment_length": self.segment_length,
            "look_back": self.look_back,
            "summaries": self.summaries,
            "max_length": self.max_length,
        }
