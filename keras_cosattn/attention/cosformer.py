"""cosFormer attention."""

import keras

from keras_cosattn.attention.arguments import optional, positive
from keras_cosattn.attention.sums import SumsAttention
from keras_cosattn.ops.chunked import CHUNK_SIZE
from keras_cosattn.ops.cosine import causal_cosine_attention, cosine_attention, cosine_weights


@keras.saving.register_keras_serializable("keras_cosattn")
class CosFormerAttention(SumsAttention):
    """cosFormer: `out_t = sum_s w_ts v_s / sum_s w_ts`.

    `w_ts = relu(q_t) . relu(k_s) cos(pi/2 (t - s) / M)`: no weight is negative, and near steps
    weigh more. O((t + s) d e) time and O(t + s) memory per head, with a horizon or packed another
    O((t / chunk_size)^1.5 d e) time; a streamed step and its float32 state are O(d e).
    Qin et al., 2022, "cos-based re-weighting".

    Say what M is:

    - `max_length=M`: sequences of up to M valid steps, both directions, causal, cross and packed.
      Longer ones raise ValueError where their length is known, and fail an assertion in a
      TensorFlow graph. Under XLA all steps from M on share position M - 1: beyond M the cosine
      would be negative.
    - `horizon=M`: causal input without end. A step sees its own and the previous half-horizon of
      M / 2 steps, counted from the start, so between M / 2 and M steps, in constant state. No
      weight is ever negative. While the input has at most M / 2 steps it is `max_length=M`.
    - neither: the paper's code, M = the larger number of real queries or keys in the call, for
      each example. Outputs then change when steps are appended, so it neither streams nor packs.

    Sums run over at most M steps, so in a stream for a device that computes in float16 they stay in
    its range where M times the largest `relu(k) v` is below 65,504; an export for such a device
    measures it. `horizon` keeps seeing new steps there, however long the stream.

    Where we leave the paper: M may be fixed, and padding counts neither in the sums nor in the
    positions. The paper asks for an M of at least the length, its code takes that of the padded
    batch.

    Args:
        num_heads, key_dim, *args, **kwargs: as `Attention`.
        max_length, horizon: M in steps, at most one of them; the horizon is even.
        chunk_size: steps per chunk of the causal form.
    """

    bounded = True
    limit_advice = (
        "Build the layer with a larger `max_length`, or for causal input without end with "
        "`horizon` instead."
    )

    def __init__(
        self,
        num_heads,
        key_dim,
        *args,
        max_length=None,
        horizon=None,
        chunk_size=CHUNK_SIZE,
        **kwargs,
    ):
        super().__init__(num_heads, key_dim, *args, **kwargs)
        if max_length is not None and horizon is not None:
            raise ValueError(
                "Give `max_length` for sequences with an end or `horizon` for those without, not "
                f"both. Received: max_length={max_length}, horizon={horizon}"
            )
        if horizon is not None and positive("horizon", horizon) % 2:
            raise ValueError(f"`horizon` must be even: two halves. Received: horizon={horizon}")
        self.max_length = optional(positive, "max_length", max_length)
        self.horizon = horizon
        self.chunk_size = positive("chunk_size", chunk_size)
        self.limit = self.max_length

    @property
    def cannot(self):
        """What the layer refuses: use -> reason."""
        if self.horizon is not None:
            return {"both ways": "`horizon` is for causal input without end. Call it with "
                    "`use_causal_mask=True`, or build it with `max_length`."}  # fmt: skip
        if self.max_length is not None:
            return {}
        changes = (
            "without `max_length` or `horizon` the cosine's length changes with every call. "
            "Build it with one of them."
        )
        return {"packed": changes, "stream": changes}

    @property
    def sequence_limit(self) -> int | None:
        """`max_length`."""
        return self.max_length

    def _sums(self, q, k, v, layout, state):
        options = {
            "max_length": self.max_length,
            "query_mask": layout.query_mask,
            "mask": layout.key_mask,
            "segment_ids": layout.segments,
            "chunk_size": self.chunk_size,
        }
        if layout.causal:
            return causal_cosine_attention(q, k, v, horizon=self.horizon, state=state, **options)
        lengths = layout.query_steps, layout.key_steps
        return cosine_attention(q, k, v, lengths=lengths, **options), None

    def _weights(self, q, k, layout):
        return cosine_weights(
            q,
            k,
            max_length=self.max_length,
            horizon=self.horizon,
            causal=layout.causal,
            query_mask=layout.query_mask,
            mask=layout.key_mask,
            segment_ids=layout.segments,
        )

    def _state_spec(self):
        sums = (self.num_key_value_heads, 2 * self.key_dim, self.value_dim + 1), self.sum_dtype
        spec = {"sums": sums, "position": ((), "int32")}
        return spec if self.horizon is None else {**spec, "previous": sums}

    def get_config(self):
        return {
            **super().get_config(),
            "max_length": self.max_length,
            "horizon": self.horizon,
            "chunk_size": self.chunk_size,
        }
