"""Linear attention: the weights are inner products of features, so the sums come first."""

from keras import ops

from keras_cosattn.ops import arrays, dense, timesteps
from keras_cosattn.ops.chunked import CHUNK_SIZE, causal_sums


def linear_attention(
    q,
    k,
    v,
    *,
    rotated=None,
    causal=False,
    mask=None,
    segment_ids=None,
    state=None,
    chunk_size=CHUNK_SIZE,
):
    """Linear attention: `out_t = sum_s (q_t . k_s) v_s / sum_s (q_t . k_s)`.

    The sum runs over all s, or over s <= t if `causal`, in either case also over the steps that
    `state` holds. A row whose weights sum to nothing is zero.

    Args:
        q: features of the queries, `(b, t, h, f)`; h a multiple of the key heads.
        k: features of the keys, `(b, s, hk, f)`.
        v: `(b, s, hk, e)`.
        rotated: `(q', k')`, which replace q and k in the numerator. The normaliser keeps q and k,
            so it cannot vanish. Su et al., 2021, eq. 19.
        causal: let query t see keys s <= t, both counted from the start.
        mask: `(b, s)`, True where a key takes part.
        segment_ids: `(b, t)`, t = s: a step sees its own run of equal ids only.
        state: what an earlier call returned; it belongs to the first segment. With a "count" `(b,)`
            of the steps so far its sums are means over these, without segments.
        chunk_size: steps per chunk of the causal form.

    Returns:
        `(b, t, h, e)` and the state, `{"sums": (b, hk, f, e + 1)}`, or with `rotated`
        `{"sums": (b, hk, f, e), "totals": (b, hk, f, 1)}`: float32, or float64 for float64
        features; and "count" if there was one.

    O((t + s) f e) time, with segments another O((t / chunk_size)^1.5 f e); O(f e) state.
    Katharopoulos et al., 2020, eq. 5-6 and 9-12.
    """
    group = arrays.group_size(q, k)
    segments = timesteps.segment_numbers(segment_ids)
    v = arrays.zero_masked(arrays.accumulate(v), mask)
    means = state is not None and "count" in state
    if means:
        new = ops.shape(k)[1] if mask is None else ops.sum(ops.cast(mask, "int32"), axis=1)
        keep, share = arrays.shares_of_mean(state["count"], new)

    def sums(q, k, v, name):
        k = arrays.zero_masked(arrays.accumulate(k), mask)
        q = arrays.fold_groups(arrays.accumulate(q), group)
        past = zero_sums(k, v) if state is None else {"sums": state[name]}
        if means:
            k, past = k * share, {"sums": past["sums"] * keep}
        options = {"group": group, "chunk_size": chunk_size}
        if causal:
            k, v = (arrays.fit_length(x, ops.shape(q)[1] // group) for x in (k, v))
            out, past = causal_sums(q, k, v, past, runs=segments, **options)
        elif segments is not None:
            out, past = both_ways(q, k, v, past, runs=segments, **options)
        else:
            past = {"sums": past["sums"] + ops.einsum("bshf,bshe->bhfe", k, v)}
            out = ops.einsum("bthf,bhfe->bthe", q, past["sums"])
        return out, past["sums"]

    after = {"count": state["count"] + new} if means else {}
    if rotated is None:
        out, after["sums"] = sums(q, k, arrays.append_ones(v), "sums")
        return arrays.unfold_groups(arrays.divide(out), group), after
    numerator, after["sums"] = sums(*rotated, v, "sums")
    normaliser, after["totals"] = sums(q, k, ops.ones_like(v[..., :1]), "totals")
    out = arrays.divide(ops.concatenate([numerator, normaliser], axis=-1))
    return arrays.unfold_groups(out, group), after


def linear_weights(
    q, k, *, rotated=None, causal=False, query_mask=None, mask=None, segment_ids=None
):
    """The weights that `linear_attention` implies, normalised, `(b, h, t, s)`.

    Arguments as there. O(t s f) time and O(t s) memory.
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


def both_ways(q, k, v, state, *, runs, q_read=None, k_write=None, positions=None, **options):
    """Sums over the whole segment of each step: those up to it and, strictly, those after it."""

    def flip(x):
        return None if x is None else ops.flip(x, axis=1)

    features = {"q_read": q_read, "k_write": k_write, "positions": positions}
    out, state_after = causal_sums(q, k, v, state, runs=runs, **features, **options)
    nothing = {"sums": ops.zeros_like(state["sums"])}
    features = {name: flip(x) for name, x in features.items()}
    runs = runs[:, -1:] - flip(runs)
    later, _ = causal_sums(
        flip(q), flip(k), flip(v), nothing, runs=runs, strict=True, **features, **options
    )
    return out + flip(later), state_after


def zero_sums(k, v):
    """The state before the first step, for features `k (b, t, h, f)` and `v (b, t, h, e)`."""
    return {"sums": ops.zeros((ops.shape(k)[0], *k.shape[2:], v.shape[3]), k.dtype)}
