"""Linear attention: weights are products of features, so keys and values can be summed first."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_cosattn.ops import arrays, chunks, dense, timesteps
from keras_cosattn.ops.block_size import pairs_are_cheaper, sizes
from keras_cosattn.ops.causal_scan import both_ways, causal_scan
from keras_cosattn.ops.chunked import causal_sums
from keras_cosattn.ops.full_sums import read_sums, sum_steps

Tensor = Any
State = dict[str, Any]
Pairs = list[tuple[Tensor, Tensor]]
Features = Callable[[Tensor, Tensor, Any], Pairs]


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    features: Features | None = None,
    positions: tuple[Tensor, Tensor] | None = None,
    causal: bool = False,
    mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
    state: State | None = None,
    lengths: tuple[Any, Any] | None = None,
    chunk_size: int | None = None,
    block_size: int | None = None,
) -> tuple[Tensor, State]:
    """Linear attention: `out_t = sum_s (q_t . k_s) v_s / sum_s (q_t . k_s)`.

    The sums run over all s, or over s <= t if `causal`, and in either case over the steps that
    `state` holds. A row with weights that sum to zero is zero.

    It takes O((t + s) f e) time for each head. Where this is cheaper, as with few queries, the
    weights of all pairs are computed, in O(t s (f + e)) time. The state has O(f e) numbers.

    Args:
        q: tensor `(b, t, h, d)`, the queries; h is a multiple of hk.
        k: tensor `(b, s, hk, d)`, the keys.
        v: tensor `(b, s, hk, e)`.
        features: function `(q, k, positions)` of the queries and keys of some steps, which maps
            each step by itself. It returns a list of one pair of tensors, which replace q and k and
            have f features in place of d; or of two pairs, one for the numerator and one for the
            normaliser (Su et al., 2021, equation 19). Defaults to `None`: q and k are features.
        positions: pair of int32 tensors `(b or 1, t)` and `(b or 1, s)` for `features`. Defaults to
            `None`.
        causal: bool. If True, query t attends to keys s <= t, both counted from the start. Defaults
            to `False`.
        mask: bool tensor `(b, s)`, the valid keys.
        segment_ids: integer tensor `(b, t)`, t = s. A step attends to its own run of equal ids.
        state: state that an earlier call returned. It belongs to the first segment. If it has a
            "count" `(b,)` of the earlier steps, its sums are means over these steps; such a state
            cannot be used with segments.
        lengths: pair (t, s), if these numbers were already read earlier in the graph. With one and
            the same tensor for both, the keys are known to be as many as the queries.
        chunk_size: int, the number of steps that one matrix product covers. Defaults to 128 on
            CPUs and to 64 elsewhere.
        block_size: int, the number of steps that one iteration of the loop over the sequence takes.
            Defaults to one chunk on CPUs and to 8,192 steps elsewhere.

    Returns:
        The output `(b, t, h, e)` and the new state, in float32, or in float64 for float64 features.
        The state is `{"sums": (b, hk, f, e + 1)}`, or with two pairs
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
    arrays.group_size(q, k)
    t, s = lengths or (ops.shape(q)[1], ops.shape(k)[1])
    features = features or _as_they_are
    past, count, share = _zero_state(q, k, v, features, positions), None, None
    if state is not None:
        past, count = {name: state[name] for name in past}, state.get("count")
    if count is not None:
        new = s if mask is None else ops.sum(ops.cast(mask, "int32"), axis=1)
        keep, share = arrays.shares_of_mean(count, new)
        past = {name: x * keep for name, x in past.items()}
        count = count + new
    segments, steps = timesteps.segment_numbers(segment_ids), sizes(chunk_size, block_size)
    f = past["sums"].shape[2]
    few = state is None and segments is None and pairs_are_cheaper(t, s, f, v.shape[3], f)
    if causal:
        few = few and t == s and mask is None
        positions = None if positions is None else (positions[0], positions[0])
    if few or not (causal or segments is not None):
        pairs = features(q, k, positions)
        after = _sums_of_all(pairs, v, mask, share, past, steps.block)
        if few:
            allowed = timesteps.pair_mask(t, s, key_mask=mask, causal=causal)
            weights = _weights_of_pairs(pairs, allowed, mask)
            out = dense.mix(weights, arrays.zero_masked(arrays.accumulate(v), mask))
        else:
            out = _read_all(pairs, after, steps.block)
    else:
        if causal and state is None and steps.takes_all(t):
            past = {}  # one block without a past has nothing to read
        k, v, mask = arrays.align_keys(k, v, mask, t, s)
        positions = None if positions is None else positions[0]
        xs = arrays.without_none({"q": q, "k": k, "v": v, "mask": mask, "positions": positions})
        step = functools.partial(
            _causal_step, features=features, share=share, chunk_size=steps.chunk_of_block
        )
        scan = causal_scan if causal else both_ways
        out, after = scan(step, xs, past, segments, steps.block)
    return out, after if count is None else {**after, "count": count}


def _as_they_are(q, k, positions):
    return [(q, k)]


def _values(v, pairs):
    """Return the values of each sum, with the name of the sum in the state."""
    if len(pairs) == 1:
        return {"sums": arrays.append_ones(v)}
    return {"sums": v, "totals": ops.ones_like(v[..., :1])}


def _zero_state(q, k, v, features, positions):
    """Return the sums before the first step. One step tells the number of features."""
    positions = positions and tuple(x[:, :1] for x in positions)
    pairs = features(q[:, :1], k[:, :1], positions)
    values = _values(arrays.accumulate(v[:, :1]), pairs)
    return {
        name: ops.zeros((ops.shape(k)[0], *k.shape[2:], v.shape[3]), v.dtype)
        for (_, k), (name, v) in zip(pairs, values.items(), strict=True)
    }


def _sums_of_all(pairs, v, mask, share, state, block_size):
    """Return the state after all keys."""

    def write(block):
        valid = block.get("mask")
        v = arrays.zero_masked(arrays.accumulate(block["v"]), valid)
        keys = [arrays.zero_masked(arrays.accumulate(k), valid) for k in block["k"]]
        keys = keys if share is None else [k * share for k in keys]
        if len(keys) == 1:
            return {"sums": arrays.sums_and_totals(keys[0], v)}
        totals = ops.expand_dims(ops.sum(keys[1], axis=1), -1)
        return {"sums": chunks.outer_sum(keys[0], v), "totals": totals}

    keys = arrays.without_none({"k": [k for _, k in pairs], "v": v, "mask": mask})
    return sum_steps(write, keys, state, block_size)


def _read_all(pairs, sums, block_size):
    """Return what all queries read of the sums."""

    def read(block):
        return dict(zip(sums, map(arrays.accumulate, block["q"]), strict=True))

    return read_sums(read, {"q": [q for q, _ in pairs]}, sums, block_size)


def _causal_step(state, block, runs, *, features, share, chunk_size, strict=False, divide=True):
    """Attention among the steps of a block and to its past, a step of `causal_scan`."""
    mask, positions, outputs, after = block.get("mask"), block.get("positions"), [], {}
    positions = None if positions is None else (positions, positions)
    pairs = features(block["q"], block["k"], positions)
    values = _values(arrays.zero_masked(arrays.accumulate(block["v"]), mask), pairs)
    for (q, k), (name, v) in zip(pairs, values.items(), strict=True):
        k = arrays.zero_masked(arrays.accumulate(k), mask)
        out, sums = causal_sums(
            arrays.accumulate(q), k if share is None else k * share, v,
            {"sums": state[name]} if state else None,
            runs=runs, strict=strict, chunk_size=chunk_size,
        )  # fmt: skip
        outputs.append(out)
        after[name] = sums["sums"]
    out = outputs[0] if len(outputs) == 1 else ops.concatenate(outputs, axis=-1)
    return arrays.divide(out) if divide else out, after


def linear_weights(
    q: Tensor,
    k: Tensor,
    *,
    features: Features | None = None,
    positions: tuple[Tensor, Tensor] | None = None,
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
    return _weights_of_pairs((features or _as_they_are)(q, k, positions), allowed, mask)


def _weights_of_pairs(pairs, allowed, mask):
    scores = [dense.scores(q, arrays.zero_masked(k, mask)) for q, k in pairs]
    return dense.normalise(scores[0], allowed, scores[-1])
