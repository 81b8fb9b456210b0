"""Linear attention: weights are products of features, so keys and values can be summed first."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_cosattn.ops import arrays, chunks, dense, timesteps
from keras_cosattn.ops.chunked import CHUNK_SIZE, causal_sums

Tensor = Any
State = dict[str, Any]


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rotated: tuple[Tensor, Tensor] | None = None,
    causal: bool = False,
    mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
    state: State | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Tensor, State]:
    """Linear attention: `out_t = sum_s (q_t . k_s) v_s / sum_s (q_t . k_s)`.

    The sums run over all s, or over s <= t if `causal`, and in either case over the steps that
    `state` holds. A row with weights that sum to zero is zero.

    It takes O((t + s) f e) time for each head. Segments add O((t / chunk_size)^1.5 f e) time. The
    state has O(f e) numbers.

    Args:
        q: tensor `(b, t, h, f)`, the features of the queries; h is a multiple of hk.
        k: tensor `(b, s, hk, f)`, the features of the keys.
        v: tensor `(b, s, hk, e)`.
        rotated: pair of tensors like q and k, which replace them in the numerator. The normaliser
            uses q and k, so it cannot be zero (Su et al., 2021, equation 19).
        causal: bool. If True, query t attends to keys s <= t, both counted from the start. Defaults
            to `False`.
        mask: bool tensor `(b, s)`, the valid keys.
        segment_ids: integer tensor `(b, t)`, t = s. A step attends to its own run of equal ids.
        state: state that an earlier call returned. It belongs to the first segment. If it has a
            "count" `(b,)` of the earlier steps, its sums are means over these steps; such a state
            cannot be used with segments.
        chunk_size: int, the number of steps in a chunk of the causal form. Defaults to `64`.

    Returns:
        The output `(b, t, h, e)` and the new state, in float32, or in float64 for float64 features.
        The state is `{"sums": (b, hk, f, e + 1)}`, or with `rotated`
        `{"sums": (b, hk, f, e), "totals": (b, hk, f, 1)}`, and it has a "count" if `state` has.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops import linear_attention
    >>> q, v = np.ones((2, 5, 4, 3), "float32"), np.ones((2, 5, 4, 6), "float32")
    >>> output, state = linear_attention(q, q, v, causal=True)
    >>> tuple(output.shape), tuple(state["sums"].shape)
    ((2, 5, 4, 6), (2, 4, 3, 7))

    Reference:
        - [Katharopoulos et al., 2020](https://arxiv.org/abs/2006.16236), equations 5-6 and 9-12
        - [Su et al., 2021](https://arxiv.org/abs/2104.09864), equation 19
    """
    group = arrays.group_size(q, k)
    segments = timesteps.segment_numbers(segment_ids)
    v = arrays.zero_masked(arrays.accumulate(v), mask)
    count = None if state is None else state.get("count")  # a state of means has it
    if count is not None:
        new = ops.shape(k)[1] if mask is None else ops.sum(ops.cast(mask, "int32"), axis=1)
        keep, share = arrays.shares_of_mean(count, new)

    def sums(q, k, v, name):
        k = arrays.zero_masked(arrays.accumulate(k), mask)
        q = arrays.fold_groups(arrays.accumulate(q), group)
        past = zero_sums(k, v) if state is None else {"sums": state[name]}
        if count is not None:
            k, past = k * share, {"sums": past["sums"] * keep}
        options = {"group": group, "chunk_size": chunk_size}
        if causal:
            k, v = (arrays.fit_length(x, ops.shape(q)[1] // group) for x in (k, v))
            out, past = causal_sums(q, k, v, past, runs=segments, **options)
        elif segments is not None:
            out, past = both_ways(q, k, v, past, runs=segments, **options)
        else:
            past = {"sums": past["sums"] + chunks.outer_sum(k, v)}
            out = chunks.read(q, past["sums"])
        return out, past["sums"]

    after = {} if count is None else {"count": count + new}
    if rotated is None:
        out, after["sums"] = sums(q, k, arrays.append_ones(v), "sums")
        return arrays.unfold_groups(arrays.divide(out), group), after
    numerator, after["sums"] = sums(*rotated, v, "sums")
    normaliser, after["totals"] = sums(q, k, ops.ones_like(v[..., :1]), "totals")
    out = arrays.divide(ops.concatenate([numerator, normaliser], axis=-1))
    return arrays.unfold_groups(out, group), after


def linear_weights(
    q: Tensor,
    k: Tensor,
    *,
    rotated: tuple[Tensor, Tensor] | None = None,
    causal: bool = False,
    query_mask: Tensor | None = None,
    mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> Tensor:
    """Return the normalised weights `(b, h, t, s)` that `linear_attention` implies.

    This takes O(t s f) time and O(t s) memory for each head. The arguments are those of
    `linear_attention`, and `query_mask (b, t)` has the valid queries.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops import linear_weights
    >>> q, k = np.ones((2, 5, 4, 3), "float32"), np.ones((2, 7, 2, 3), "float32")
    >>> tuple(linear_weights(q, k).shape)
    (2, 4, 5, 7)
    """
    allowed = timesteps.pair_mask(
        ops.shape(q)[1],
        ops.shape(k)[1],
        query_mask=query_mask,
        key_mask=mask,
        segments=timesteps.segment_numbers(segment_ids),
        causal=causal,
    )
    weights = dense.scores(q, arrays.zero_masked(k, mask))
    if rotated is None:
        return dense.normalise(weights, allowed)
    numerator = dense.scores(rotated[0], arrays.zero_masked(rotated[1], mask))
    return dense.normalise(numerator, allowed, weights)


def both_ways(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: State,
    *,
    runs: Tensor,
    q_read: Tensor | None = None,
    k_write: Tensor | None = None,
    positions: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, State]:
    """Sum over the whole segment of each step, by two causal sums.

    The second sum runs over the steps after each step. Arguments and returns are those of
    `causal_sums`, and the state is that of the first sum.
    """

    def flip(x):
        return None if x is None else ops.flip(x, axis=1)

    features: dict[str, Any] = {"q_read": q_read, "k_write": k_write, "positions": positions}
    out, state_after = causal_sums(q, k, v, state, runs=runs, **features, **options)
    empty = {"sums": ops.zeros_like(state["sums"])}
    features = {name: flip(x) for name, x in features.items()}
    runs = runs[:, -1:] - flip(runs)
    later, _ = causal_sums(
        flip(q), flip(k), flip(v), empty, runs=runs, strict=True, **features, **options
    )
    return out + flip(later), state_after


def zero_sums(k: Tensor, v: Tensor) -> State:
    """Return the state before the first step of `k (b, t, h, f)` and `v (b, t, h, e)`."""
    return {"sums": ops.zeros((ops.shape(k)[0], *k.shape[2:], v.shape[3]), k.dtype)}
