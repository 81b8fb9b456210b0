"""cosFormer attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras

from keras_cosattn.attention.arguments import optional, positive
from keras_cosattn.attention.sums import SumsAttention
from keras_cosattn.ops.cosine import causal_cosine_attention, cosine_attention
from keras_cosattn.ops.cosine_weights import cosine_weights

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.attention.options import SumsOptions


@keras.saving.register_keras_serializable("keras_cosattn")
class CosFormerAttention(SumsAttention):
    """cosFormer: linear attention with weights that fall with the distance of two steps.

    `out_t = sum_s w_ts v_s / sum_s w_ts`, with
    `w_ts = relu(q_t) . relu(k_s) cos(pi/2 (t - s) / M)`

    No weight is negative while `|t - s| < M`, and near steps weigh more than distant ones. There
    are three ways to choose M:

    - `max_length=M`: for sequences of up to M valid steps, in both directions, causal, cross and
      packed. Longer sequences raise ValueError where their length is known, and fail an assertion
      in a TensorFlow graph. Under XLA all steps from M on share position M - 1, as the cosine is
      negative beyond M.
    - `horizon=M`: for causal input without end. A step attends to its own and the previous
      half-horizon of M / 2 steps, counted from the start. So it attends to between M / 2 and M
      steps, with a state of constant size, and no weight is ever negative. While the input has at
      most M / 2 steps, the result is that of `max_length=M`.
    - Neither: M is the larger number of valid queries or keys of the call, for each example, as in
      the paper's code. Outputs then change when steps are appended, so the layer can neither
      stream nor pack sequences.

    The layer takes O((t + s) d e) time and O(t + s) memory for each head. A streamed step takes
    O(d e) time, and the float32 state has O(d e) numbers. Dropout acts on the mixed values.

    Sums run over at most M steps. In a stream on a device that computes in float16 they stay in
    range if M times the largest `relu(k) v` is below 65,504. An export for such a device measures
    this. With `horizon` new steps have their full effect on such a device too, however long the
    stream is.

    Where this differs from the paper: M can be fixed. Padding counts neither in the sums nor in the
    positions. The paper asks for an M of at least the length, and its code takes the length of the
    padded batch.

    Args:
        num_heads: int, h, the number of query heads.
        key_dim: int, d, the size of a query or key head.
        max_length: int, M in steps, for sequences with an end. Defaults to `None`.
        horizon: even int, M in steps, for causal input without end. At most one of `max_length`
            and `horizon` can be given. Defaults to `None`.
        chunk_size: int, the number of steps that one matrix product of the causal form covers.
            Defaults to `None`: 128 on CPUs, 64 elsewhere.
        block_size: int, the number of steps that one iteration of the loop over the sequence takes.
            Defaults to `None`: one chunk on CPUs, 8,192 steps elsewhere.
        conv_size: int, the number of steps of a short causal convolution of queries, keys and
            values, each channel by itself, with SiLU after it. Defaults to `None`, none.
        *args, **kwargs: Other arguments of `Attention`, such as `dropout`, `num_key_value_heads`
            and `seed`.

    Raises:
        ValueError: If both `max_length` and `horizon` are given, if `horizon` is odd, if a call has
            more than `max_length` valid steps, or if a layer with `horizon` is called without
            `use_causal_mask=True`.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import CosFormerAttention
    >>> layer = CosFormerAttention(num_heads=2, key_dim=4, max_length=16)
    >>> x = np.ones((1, 10, 8), "float32")
    >>> tuple(layer(x, x).shape)
    (1, 10, 8)

    With `horizon` the sequence may have any length:

    >>> layer = CosFormerAttention(num_heads=2, key_dim=4, horizon=16)
    >>> x = np.ones((1, 100, 8), "float32")
    >>> tuple(layer(x, x, use_causal_mask=True).shape)
    (1, 100, 8)

    Reference:
        - [Qin et al., 2022](https://arxiv.org/abs/2202.08791), section "cos-based re-weighting"
    """

    bounded = True
    limit_advice = (
        "Build the layer with a larger `max_length`, or for causal input without end with "
        "`horizon` instead."
    )

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *args: Any,
        max_length: int | None = None,
        horizon: int | None = None,
        chunk_size: int | None = None,
        block_size: int | None = None,
        **kwargs: Unpack[SumsOptions],
    ):
        super().__init__(num_heads, key_dim, *args, **kwargs)
        if max_length is not None and horizon is not None:
            raise ValueError(
                "Give `max_length` for sequences with an end or `horizon` for those without, not "
                f"both. Received: max_length={max_length}, horizon={horizon}"
            )
        if horizon is not None and positive("horizon", horizon) % 2:
            raise ValueError(
                f"`horizon` must be even, because it has two halves. Received: horizon={horizon}"
            )
        self.max_length = optional(positive, "max_length", max_length)
        self.horizon = horizon
        self.chunk_size = optional(positive, "chunk_size", chunk_size)
        self.block_size = optional(positive, "block_size", block_size)
        self.limit = self.max_length

    @property
    def cannot(self) -> dict[str, str]:
        """What the layer refuses, each with its reason."""
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
        """The value of `max_length`."""
        return self.max_length

    def _sums(self, q, k, v, layout, state):
        options = {
            "max_length": self.max_length,
            "query_mask": layout.query_mask,
            "mask": layout.key_mask,
            "segment_ids": layout.segments,
            "chunk_size": self.chunk_size,
            "block_size": self.block_size,
            "lengths": (layout.query_steps, layout.key_steps),
        }
        if layout.causal:
            return causal_cosine_attention(q, k, v, horizon=self.horizon, state=state, **options)
        return cosine_attention(q, k, v, **options), None

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

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "max_length": self.max_length,
            "horizon": self.horizon,
            "chunk_size": self.chunk_size,
            "block_size": self.block_size,
        }
