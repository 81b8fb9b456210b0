"""The papers' sums in NumPy float64, written out term by term: O(t s), no chunks, no states.

Axes: b batch, t queries, s keys, h heads, d head size, e value size, m model width.

Every attention here is `out_t = sum_s w_ts v_s / sum_s w_ts`. A variant is its weights w before
that division: `REFERENCES[class name](q, k, how, **constructor arguments) -> (b, h, t, s)`, and
`PULL_BACKS[class name]` is how a change of w comes back to q and k. A variant in `FINAL` mixes with
w itself, and one in `WHOLE` is written out from its inputs to its outputs. A variant with weights
beyond the four projections finds them in the argument `more`, by name.
"""

from typing import NamedTuple

import numpy as np
import recurrent_references


class How(NamedTuple):
    """Which key each query may see. None stands for all; True means takes part."""

    query_mask: np.ndarray | None = None  # (b, t)
    key_mask: np.ndarray | None = None  # (b, s)
    segment_ids: np.ndarray | None = None  # (b, t), t = s
    attention_mask: np.ndarray | None = None  # (b, h, t, s), (b, t, s), (t, s) or (s)
    causal: bool = False
    first_query: int = 0  # where among the keys' positions the queries begin


EVERYTHING = How()


# Who sees whom.


def segments(ids):
    """Numbers of the runs of equal ids, `(b, t)`."""
    return np.cumsum(np.diff(ids, axis=1, prepend=ids[:, :1]) != 0, axis=1)


def positions(length, mask=None, segment_ids=None):
    """How many real steps of its segment lie before each step, `(b or 1, length)`."""
    if mask is None and segment_ids is None:
        return np.arange(length)[None]
    real = np.ones((1, length), bool) if mask is None else np.asarray(mask, bool)
    segment = np.zeros((1, length), int) if segment_ids is None else segments(segment_ids)
    earlier = np.tri(length, k=-1, dtype=bool)
    same = segment[:, :, None] == segment[:, None, :]
    return np.sum(earlier & same & real[:, None, :], axis=2)


def _both_positions(t, s, how):
    """Positions of the queries `(b or 1, 1, t, 1)` and of the keys `(b or 1, 1, 1, s)`."""
    query = how.first_query + positions(t, how.query_mask, how.segment_ids)
    key = positions(s, how.key_mask, how.segment_ids)
    return query[:, None, :, None], key[:, None, None, :]


def allowed(t, s, how):
    """Which key each query may see, `(b or 1, h or 1, t, s)`."""
    sees = np.ones((1, 1, t, s), bool)
    if how.query_mask is not None:
        sees = sees & np.asarray(how.query_mask, bool)[:, None, :, None]
    if how.key_mask is not None:
        sees = sees & np.asarray(how.key_mask, bool)[:, None, None, :]
    if how.segment_ids is not None:
        segment = segments(how.segment_ids)
        sees = sees & (segment[:, None, :, None] == segment[:, None, None, :])
    if how.attention_mask is not None:
        mask = np.asarray(how.attention_mask, bool)
        sees = sees & (mask[:, None] if mask.ndim == 3 else mask)
    if how.causal:
        query, key = _both_positions(t, s, how)
        sees = sees & (query >= key)
    return sees


# Inner products, with `h / hk` query heads for each key head.


def _each_head(x, heads):
    """`(b, s, hk, d) -> (b, s, h, d)`: query head j has key head `j // (h / hk)`."""
    return np.repeat(x, heads // x.shape[2], axis=2)


def _shared_heads(x, shared):
    """`(b, s, h, d) -> (b, s, hk, d)`: the sum over the query heads of each key head."""
    b, s, h, d = x.shape
    return x.reshape(b, s, shared, h // shared, d).sum(axis=3)


def inner(q, k):
    """`q_t . k_s`, `(b, h, t, s)`."""
    q, k = np.swapaxes(q, 1, 2), np.swapaxes(_each_head(k, q.shape[2]), 1, 2)
    return q @ np.swapaxes(k, 2, 3)


def mix(weights, v):
    """`sum_s w_ts v_s`, `(b, t, h, e)`."""
    return np.swapaxes(weights @ np.swapaxes(_each_head(v, weights.shape[1]), 1, 2), 1, 2)


def _pull_back_inner(d_inner, q, k):
    """The gradients of `inner` with respect to q and k."""
    d_k = mix(np.swapaxes(d_inner, 2, 3), q)
    return mix(d_inner, k), _shared_heads(d_k, k.shape[2])


# Feature maps and their derivatives.


FEATURE_MAPS = {
    "elu+1": lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))),
    "relu": lambda x: np.maximum(x, 0),
    "squared_relu": lambda x: np.maximum(x, 0) ** 2,
    "identity": lambda x: x,
}


def taylor(x):
    """`[1, y_i, y_i y_j / sqrt(2)]` for all i and j, `y = x / d^(1/4)`. Arora et al., 2024."""
    y = x / x.shape[-1] ** 0.25
    pairs = np.einsum("...i,...j->...ij", y, y).reshape(*x.shape[:-1], -1)
    return np.concatenate([np.ones_like(x[..., :1]), y, pairs / np.sqrt(2)], axis=-1)


def dpfp(x, nu):
    """`r_i r_(i + j)`, `r = relu([x, -x])`, j = 1 ... nu. Schlag et al., 2021, eq. 37."""
    r, n = np.maximum(np.concatenate([x, -x], axis=-1), 0), 2 * x.shape[-1]
    products = [r[..., i] * r[..., (i + j) % n] for j in range(1, nu + 1) for i in range(n)]
    return np.stack(products, axis=-1)


def hedgehog(q, k, normalized, more):
    """`[exp(W x + b), exp(-W x - b)]`, or each softmax, for each head. Zhang et al., 2024."""
    q, k = (
        np.stack(
            [
                x[:, :, head] @ more[f"{name}_feature_kernel"][head]
                + more[f"{name}_feature_bias"][head]
                for head in range(x.shape[2])
            ],
            axis=2,
        )
        for name, x in (("query", q), ("key", k))
    )

    def both(phi, x):
        return np.concatenate([phi(x), phi(-x)], axis=-1)

    if normalized:
        return [both(lambda x: normalise(np.exp(x - x.max(-1, keepdims=True))), x) for x in (q, k)]
    # Of each row of queries any factor is divided out.
    q = np.exp(both(lambda x: x, q) - np.max(np.abs(q), axis=-1, keepdims=True))
    return q, both(lambda x: np.exp(np.clip(x, -40, 30)), k)


FEATURE_MAPS["taylor"] = taylor
FEATURE_OBJECTS = {
    "DPFPFeatures": lambda q, k, given, more: (dpfp(q, given.nu), dpfp(k, given.nu)),
    "HedgehogFeatures": lambda q, k, given, more: hedgehog(q, k, given.normalized, more),
}

SLOPES = {
    "elu+1": lambda x: np.exp(np.minimum(x, 0)),
    "relu": lambda x: (x > 0).astype(x.dtype),
    "squared_relu": lambda x: 2 * np.maximum(x, 0),
    "identity": np.ones_like,
}


# The variants: weights before they are divided by their sum, and their gradients.


def softmax_weights(q, k, how=EVERYTHING, logit_soft_cap=None, **_):
    """`exp(x)`, x = `q_t . k_s / sqrt(d)`, up to a factor for each row. Vaswani et al., 2017.

    It is equation 1. With a cap c it is `exp(c tanh(x / c))`. Gemma Team, 2024, section 2.
    """
    sees = allowed(q.shape[1], k.shape[1], how)
    logits = inner(q, k) / np.sqrt(q.shape[3])
    if logit_soft_cap is not None:
        logits = logit_soft_cap * np.tanh(logits / logit_soft_cap)
    logits = np.where(sees, logits, -np.inf)
    largest = np.max(logits, axis=-1, keepdims=True)
    return np.exp(logits - np.where(np.isfinite(largest), largest, 0))


def _pull_back_softmax(d_weights, q, k, how, logit_soft_cap=None, **_):
    d_logits = d_weights * softmax_weights(q, k, how, logit_soft_cap)
    if logit_soft_cap is not None:
        d_logits = d_logits / np.cosh(inner(q, k) / np.sqrt(q.shape[3]) / logit_soft_cap) ** 2
    return _pull_back_inner(d_logits / np.sqrt(q.shape[3]), q, k)


def linear_weights(q, k, how=EVERYTHING, feature_map="elu+1", more=None, **_):
    """`phi(q_t) . phi(k_s)`. Katharopoulos et al., 2020, eq. 4."""
    if isinstance(feature_map, str):
        q, k = FEATURE_MAPS[feature_map](q), FEATURE_MAPS[feature_map](k)
    else:
        q, k = FEATURE_OBJECTS[type(feature_map).__name__](q, k, feature_map, more)
    return inner(q, k) * allowed(q.shape[1], k.shape[1], how)


def _pull_back_linear(d_weights, q, k, how, feature_map="elu+1", **_):
    phi, slope = FEATURE_MAPS[feature_map], SLOPES[feature_map]
    d_inner = d_weights * allowed(q.shape[1], k.shape[1], how)
    d_q, d_k = _pull_back_inner(d_inner, phi(q), phi(k))
    return d_q * slope(q), d_k * slope(k)


def performer_weights(q, k, how=EVERYTHING, features=None, more=None, **_):
    """`sum_i phi_i(q_t) phi_i(k_s)` for the directions w_i in the columns of the projection.

    `phi_i(x) = exp(w_i . x - |x|^2 / 2)` of `x / d^(1/4)`: Choromanski et al., 2021, lemma 1, with
    the exponents of keys between -40 and 30. With a sigma, `sin(w_i . x)` and `cos(w_i . x)` of
    `x / (sigma |x|)`: Peng et al., 2021, section 3.1.
    """
    projection = more["projection"]
    if hasattr(features, "sigma"):
        q, k = (
            x / (features.sigma * np.linalg.norm(x, axis=-1, keepdims=True)) @ projection
            for x in (q, k)
        )
        phi = [np.concatenate([np.sin(x), np.cos(x)], axis=-1) for x in (q, k)]
    else:
        q, k = (x / q.shape[3] ** 0.25 for x in (q, k))
        q, k = (x @ projection - np.sum(x**2, axis=-1, keepdims=True) / 2 for x in (q, k))
        phi = [np.exp(q - np.max(q, axis=-1, keepdims=True)), np.exp(np.clip(k, -40, 30))]
    return inner(*phi) * allowed(q.shape[1], k.shape[1], how)


def cosine_table(t, s, how=EVERYTHING, max_length=None, horizon=None):
    """`cos(pi/2 (t - s) / M)`, zero where t does not see s; `(b or 1, 1, t, s)`."""
    query, key = _both_positions(t, s, how)
    length = max_length or horizon or _longest(t, s, how)
    table = np.cos(np.pi / 2 * (query - key) / length) * allowed(t, s, how)
    if horizon is None:
        return table
    half = horizon // 2
    return table * (query // half - key // half <= 1)


def _longest(t, s, how):
    """The paper's M: the larger number of real queries or keys, `(b or 1, 1, 1, 1)`."""
    queries = t if how.query_mask is None else np.sum(how.query_mask, axis=1)
    keys = s if how.key_mask is None else np.sum(how.key_mask, axis=1)
    return np.maximum(np.maximum(queries, keys), 1).reshape(-1, 1, 1, 1)


def cosformer_weights(q, k, how=EVERYTHING, max_length=None, horizon=None, **_):
    """`relu(q_t) . relu(k_s) cos(pi/2 (t - s) / M)`. Qin et al., 2022.

    M is `max_length`, the horizon, or the paper's. With a horizon t sees the keys of its own and
    of the previous half-horizon only.
    """
    table = cosine_table(q.shape[1], k.shape[1], how, max_length, horizon)
    return inner(np.maximum(q, 0), np.maximum(k, 0)) * table


def _pull_back_cosformer(d_weights, q, k, how, max_length=None, horizon=None, **_):
    d_inner = d_weights * cosine_table(q.shape[1], k.shape[1], how, max_length, horizon)
    d_q, d_k = _pull_back_inner(d_inner, np.maximum(q, 0), np.maximum(k, 0))
    return d_q * (q > 0), d_k * (k > 0)


def recurrent_memory_weights(
    q, k, how=EVERYTHING, segment_length=64, memory_length=64, still_k=None, **_
):
    """Softmax over `start_t - m <= s <= t`, start_t being where the segment of t begins.

    Dai et al., 2019, section 3.2. `still_k` stands for the keys before `start_t`.
    """
    query, key = _both_positions(q.shape[1], k.shape[1], how)
    start = query // segment_length * segment_length
    sees = allowed(q.shape[1], k.shape[1], how) & (key >= start - memory_length)
    logits = np.where(key >= start, inner(q, k), inner(q, k if still_k is None else still_k))
    logits = np.where(sees, logits / np.sqrt(q.shape[3]), -np.inf)
    largest = np.max(logits, axis=-1, keepdims=True)
    return np.exp(logits - np.where(np.isfinite(largest), largest, 0))


def _each_example(q, k, how, weights):
    """`weights(b, h, q (t, d), k (s, d)) -> (t, s)` of the real steps of each example and head."""
    k = _each_head(k, q.shape[2])
    out = np.zeros((q.shape[0], q.shape[2], q.shape[1], k.shape[1]))
    for b, h in np.ndindex(out.shape[:2]):
        queries = _real(how.query_mask, b, q.shape[1])
        keys = _real(how.key_mask, b, k.shape[1])
        if len(queries) and len(keys):
            out[b, h][np.ix_(queries, keys)] = weights(b, h, q[b, queries, h], k[b, keys, h])
    return out


def _real(mask, b, length):
    return np.arange(length) if mask is None else np.flatnonzero(np.asarray(mask)[b])


def _softmax(logits):
    weights = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return weights / np.sum(weights, axis=-1, keepdims=True)


def low_rank_weights(q, k, how=EVERYTHING, more=None, **_):
    """`softmax(q (E k)^T / sqrt(d)) F`. Wang et al., 2020, eq. 7.

    n real keys have the first n columns of E and F. A row of E that is zero there is left out.
    """
    shared = k.shape[2]

    def rows(projection, h, n):
        if projection.ndim == 3:
            projection = projection[:, h // (q.shape[2] // shared)]
        return projection[:n].T  # (r, n)

    def weights(b, h, q, k):
        keys = rows(more["key_projection"], h, len(k))
        values = rows(more.get("value_projection", more["key_projection"]), h, len(k))
        used = np.any(keys != 0, axis=1)
        return _softmax(q @ (keys[used] @ k).T / np.sqrt(q.shape[1])) @ values[used]

    return _each_example(q, k, how, weights)


def nystrom_weights(
    q, k, how=EVERYTHING, more=None, num_landmarks=64, pinv_iterations=6, conv_kernel_size=None, **_
):
    """`softmax(q K~^T) Z softmax(Q~ k^T)`, and the taps of the convolution over the values.

    Z comes near the inverse of `softmax(Q~ K~^T)`. Of n real steps, step i is averaged into
    landmark `floor(i L / n)`, or with n < L into its own. Xiong et al., 2021, eq. 13-17.
    """
    group = q.shape[2] // k.shape[2]

    def landmarks(x):
        n = len(x)
        of = np.array([i * min(num_landmarks, n) // n for i in range(n)])
        return np.array([np.mean(x[of == j], axis=0) for j in range(of[-1] + 1)])

    def weights(b, h, q, k):
        scale = np.sqrt(q.shape[1])
        q_means, k_means = landmarks(q), landmarks(k)
        inverse = nearly_inverse(_softmax(q_means @ k_means.T / scale), pinv_iterations)
        found = _softmax(q @ k_means.T / scale) @ inverse @ _softmax(q_means @ k.T / scale)
        if conv_kernel_size is not None:
            reach = conv_kernel_size // 2
            for t, s in np.ndindex(found.shape):
                if abs(s - t) <= reach:
                    found[t, s] += more["conv_kernel"][s - t + reach, h // group]
        return found

    return _each_example(q, k, how, weights)


def nearly_inverse(matrix, iterations):
    """The Moore-Penrose inverse by iteration. Xiong et al., 2021, eq. 14."""
    z = matrix.T / (np.abs(matrix).sum(axis=0).max() * np.abs(matrix).sum(axis=1).max())
    eye = np.eye(len(matrix))
    for _ in range(iterations):
        az = matrix @ z
        z = z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))) / 4
    return z


def segmented_weights(
    q, k, how=EVERYTHING, segment_length=64, look_back=0, summaries=None, more=None, **_
):
    """Softmax over the segments near a step and, `exp(q . K_j + log c_j)`, the means of others.

    Each step s of such a segment j, which has c_j steps, has its share a_s of that weight:
    `K_j = sum_s a_s k_s`, where a_s is `1 / c_j` or `softmax_s(u . k_s)`.
    """
    t, s, scale = q.shape[1], k.shape[1], np.sqrt(q.shape[3])
    query, key = (x // segment_length for x in _both_positions(t, s, how))
    near = np.abs(query - key) <= look_back
    weights = np.exp(inner(q, k) / scale) * (near & allowed(t, s, how))
    if summaries is None:
        return weights
    far = allowed(t, s, how) & ~near & ((key < query) | (not how.causal))
    both = How(how.key_mask, how.key_mask, how.segment_ids)
    same = (np.swapaxes(key, 2, 3) == key) & allowed(s, s, both)  # (b or 1, 1, s, s)
    k = _each_head(k, q.shape[2])
    share = np.ones((k.shape[0], q.shape[2], 1, s))
    if summaries == "attention":
        u = np.repeat(more["summary_query"], q.shape[2] // len(more["summary_query"]), axis=0)
        share = np.exp(np.einsum("bshd,hd->bhs", k, u) / scale)[:, :, None]
    total = np.sum(same * share, axis=3, keepdims=True)  # that of each step's segment
    means = mix(_divide(same * share, total), k)
    count = np.sum(same, axis=3)[:, :, None]
    own = _divide(share, np.swapaxes(total, 2, 3))
    return weights + far * np.exp(inner(q, means) / scale) * count * own


def compressive_memory_weights(
    q, k, how=EVERYTHING, segment_length=64, delta_rule=False, *, more, **_
):
    """`g w_mem + (1 - g) w_local` with `g = sigmoid(beta)`. Munkhdalai et al., 2024, eq. 2-6.

    w_local is softmax over the segment up to t. w_mem reads the segments before it: without the
    delta rule `sigma(q_t) . sigma(k_s)`, normalised; with it, the memory is written out as the
    matrix M `(d, s)` that multiplies all values.
    """
    t, s, heads = q.shape[1], k.shape[1], q.shape[2]
    query, key = _both_positions(t, s, how)
    seen = np.broadcast_to(allowed(t, s, how), (len(q), 1, t, s))
    start = query // segment_length * segment_length
    logits = np.where(seen & (key >= start), inner(q, k) / np.sqrt(q.shape[3]), -np.inf)
    largest = np.max(logits, axis=-1, keepdims=True)
    local = normalise(np.exp(logits - np.where(np.isfinite(largest), largest, 0)))
    phi_q, phi_k = (FEATURE_MAPS["elu+1"](x) for x in (q, _each_head(k, heads)))
    past = seen & (key < start)
    if delta_rule:
        key = np.broadcast_to(key, past.shape)
        memory = np.zeros((len(q), heads, t, s))
        for b, h, i in np.ndindex(memory.shape[:3]):
            memory[b, h, i] = _read_by_delta_rule(
                phi_q[b, i, h], phi_k[b, :, h], past[b, 0, i], key[b, 0, i] // segment_length
            )
    else:
        memory = normalise(inner(phi_q, phi_k) * past)
    gate = 1 / (1 + np.exp(-more["gate"]))[:, None, None]
    return gate * memory + (1 - gate) * local


def _read_by_delta_rule(q, k, sees, segment):
    """`q M / q z` after the seen segments of k have been written, `(s,)`."""
    matrix, total = np.zeros((k.shape[1], len(k))), np.zeros(k.shape[1])
    for number in np.unique(segment[sees]):
        own = sees & (segment == number)
        known = _divide(k[own] @ matrix, (k[own] @ total)[:, None])
        matrix = matrix + k[own].T @ (np.eye(len(k))[own] - known)
        total = total + np.sum(k[own], axis=0)
    return _divide(q @ matrix, q @ total)


def windowed_linear_weights(q, k, how=EVERYTHING, window=64, feature_map=None, *, more, **_):
    """`g exp(q_t . k_s / sqrt(d) - c_t)` for `t - w < s <= t`, `phi(q_t) . phi(k_s)` before that.

    `c_t` is the largest score in the window, and `g = sigmoid(beta)`. Zhang et al., 2024
    (LoLCATs), eq. 7. Without a feature map, phi is Hedgehog's with softmax.
    """
    query, key = _both_positions(q.shape[1], k.shape[1], how)
    in_window = query - key < window
    sees = allowed(q.shape[1], k.shape[1], how)
    logits = np.where(sees & in_window, inner(q, k) / np.sqrt(q.shape[3]), -np.inf)
    largest = np.max(logits, axis=-1, keepdims=True)
    weights = np.exp(logits - np.where(np.isfinite(largest), largest, 0))
    if feature_map is None:
        phi_q, phi_k = hedgehog(q, k, True, more)
        linear = inner(phi_q, phi_k) * sees
    else:
        linear = linear_weights(q, k, how, feature_map, more)
    g = 1 / (1 + np.exp(-more["window_factor"]))[:, None, None]
    return g * weights + linear * ~in_window


def _in_one_sequence(bucket, how):
    """Which pairs of real steps share segment and bucket, `(b, h, t, t)`, of `bucket (b, t, h)`."""
    bucket, t = np.swapaxes(bucket, 1, 2), bucket.shape[1]
    same = bucket[:, :, :, None] == bucket[:, :, None, :]
    return same & allowed(t, t, how._replace(causal=False))


def _near_in_bucket(bucket, size, how):
    """Pairs of one bucket, in one chunk of `size` of its steps or the query's one later.

    A step's chunk is the number of earlier steps in its bucket, divided by `size`.
    """
    t = bucket.shape[1]
    same = _in_one_sequence(bucket, how)
    chunk = np.sum(same & np.tri(t, k=-1, dtype=bool), axis=-1) // size
    back = chunk[:, :, :, None] - chunk[:, :, None, :]
    return same & (back >= 0) & (back <= 1) & allowed(t, t, how)


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def lsh_weights(q, k, how=EVERYTHING, more=None, num_hashes=4, num_buckets=32, bucket_size=64, **_):
    """`exp(q_t . k_s / sqrt(d))`, `k = q / ||q||`, where t sees s in a round of hashing.

    Kitaev et al., 2020, section 2, with chunks inside each bucket; a step's own key only if there
    is no other. A pair seen in two rounds counts once.
    """
    seen = np.zeros((1, 1, 1, 1), bool)
    for round in range(num_hashes):
        half = num_buckets // 2
        bucket = np.zeros(q.shape[:3], int)
        if half:
            rotations = more["rotations"][:, :, round * half : (round + 1) * half]
            turned = np.einsum("bthd,hdf->bthf", q, rotations)
            bucket = np.argmax(np.concatenate([turned, -turned], axis=-1), axis=-1)
        seen = seen | _near_in_bucket(bucket, bucket_size, how)
    own = np.eye(q.shape[1], dtype=bool)
    others = seen & ~own
    seen = np.where(np.any(others, axis=-1, keepdims=True), others, seen & own)
    return np.exp(inner(q, _unit(q)) / np.sqrt(q.shape[3])) * seen


def clustered_routing_weights(q, k, how=EVERYTHING, more=None, cluster_size=64, strict=True, **_):
    """`exp(sqrt(d) x_t . x_s)`, x the unit q, divided by its sum over a cluster.

    Roy et al., 2021, algorithm 1: a cluster has the steps most similar to its centroid, and the
    result of a step is the mean over its clusters. Causal and strict: as LSH, with the nearest
    centroid for the bucket.
    """
    x, centroids, (b, t) = _unit(q), _unit(more["centroids"]), q.shape[:2]
    similarity = np.einsum("bthd,hkd->bhkt", x, centroids)
    weights = np.exp(inner(x, x) * np.sqrt(q.shape[3]))
    if how.causal and strict:
        nearest = np.swapaxes(np.argmax(similarity, axis=2), 1, 2)
        return normalise(weights * _near_in_bucket(nearest, cluster_size, how))
    alone = _in_one_sequence(np.zeros((b, t, 1), int), how)  # (b, 1, t, t)
    total, times = 0, 0
    for cluster in range(centroids.shape[1]):
        each = similarity[:, :, cluster]
        closer = each[:, :, None, :] > each[:, :, :, None]
        member = np.sum(closer & alone, axis=-1) < cluster_size
        pairs = member[..., None] & member[:, :, None, :] & alone
        total = total + normalise(weights * pairs * allowed(t, t, how))
        times = times + np.any(pairs, axis=-1, keepdims=True)
    return total / np.maximum(times, 1)


REFERENCES = {
    "SoftmaxAttention": softmax_weights,
    "LinearAttention": linear_weights,
    "CosFormerAttention": cosformer_weights,
    "PerformerAttention": performer_weights,
    "RecurrentMemoryAttention": recurrent_memory_weights,
    "CompressiveMemoryAttention": compressive_memory_weights,
    "LowRankAttention": low_rank_weights,
    "NystromAttention": nystrom_weights,
    "SegmentedAttention": segmented_weights,
    "WindowedLinearAttention": windowed_linear_weights,
    "LSHAttention": lsh_weights,
    "ClusteredRoutingAttention": clustered_routing_weights,
}

PULL_BACKS = {
    "SoftmaxAttention": _pull_back_softmax,
    "LinearAttention": _pull_back_linear,
    "CosFormerAttention": _pull_back_cosformer,
}

FINAL = {
    "LowRankAttention",
    "NystromAttention",
    "CompressiveMemoryAttention",
    "ClusteredRoutingAttention",
}
"""Variants whose weights are not divided by their sum."""


def route_weights(x, kernel, outputs, routing_iterations=0):
    """`softmax(x_t W_r)`, or by agreement: for each step on its own. Sabour et al., 2017.

    x `(b, t, m)`, kernel `(m, p)`, outputs `(p, b, t, m')` -> `(b, t, p)`.
    """
    logits = np.asarray(x, np.float64) @ kernel

    def softmax(x):
        exponents = np.exp(x - np.max(x))
        return exponents / np.sum(exponents)

    for i, t in np.ndindex(logits.shape[:2]):
        for _ in range(routing_iterations):
            s = softmax(logits[i, t]) @ outputs[:, i, t]
            length = np.sqrt(s @ s)
            v = length / (1 + length**2) * s
            logits[i, t] += outputs[:, i, t] @ v
        logits[i, t] = softmax(logits[i, t])
    return logits


def routed_attention(weights, query, value, key, how, paths=(), routing_iterations=0, **common):
    """`sum_p r_tp path_p(x)_t`; `paths` are pairs of class name and arguments."""
    outputs = np.stack(
        [
            projected(name, of_path, query, value, key, how, **{**common, **arguments})
            for of_path, (name, arguments) in zip(weights["paths"], paths, strict=True)
        ]
    )
    real = np.ones(query.shape[:2], bool) if how.query_mask is None else how.query_mask
    x = np.where(real[..., None], query, 0)
    routes = route_weights(x, weights["more"]["route_kernel"], outputs, routing_iterations)
    return np.einsum("btp,pbtm->btm", routes, outputs)


def hierarchical_attention(
    weights,
    query,
    value,
    key,
    how,
    unit_sizes=(16, 16),
    aggregator="attention",
    unit_ids=None,
    **_,
):
    """Each level's softmax inside its units, and what the units got from the level above.

    `aggregator` may be a function of a unit's steps `(c, m)` and their level, from 0, to `(m')`.
    """
    more = weights["more"]

    def project(x, name, level):
        kernel, bias = (
            weights[name]
            if level == 0
            else (more[f"{name}_{level + 1}/{part}"] for part in ("kernel", "bias"))
        )
        return np.einsum("tm,mhd->thd", x, kernel) + bias

    def aggregate(x, level):
        if callable(aggregator):
            return aggregator(x, level)
        if aggregator == "mean":
            return x.mean(axis=0)
        return _softmax(x @ more[f"pool_query_{level + 1}"][0] / np.sqrt(x.shape[1])) @ x

    def units_of(n, level, ids):
        if level == len(unit_sizes):
            return [np.arange(n)]
        runs = np.split(np.arange(n), np.flatnonzero(np.diff(ids)) + 1)
        size = unit_sizes[level]
        return [run[i : i + size] for run in runs for i in range(0, len(run), size)]

    def mixed(x, level, ids):
        q, k, v = (project(x, name, level) for name in ("query", "key", "value"))
        k, v = (np.repeat(y, q.shape[1] // y.shape[1], axis=1) for y in (k, v))
        out, units = np.zeros((*q.shape[:2], v.shape[2])), units_of(len(x), level, ids)
        for unit in units:
            for i, h in np.ndindex(len(unit), q.shape[1]):
                seen = unit[: i + 1] if how.causal else unit
                logits = k[seen, h] @ q[unit[i], h] / np.sqrt(q.shape[2])
                out[unit[i], h] = _softmax(logits) @ v[seen, h]
        if level == len(unit_sizes):
            return out
        above = np.stack([aggregate(x[unit], level) for unit in units])
        above = mixed(above, level + 1, np.zeros(len(units)))
        for u, unit in enumerate(units):
            if not how.causal:
                out[unit] += above[u]
            elif u > 0:
                out[unit] += above[u - 1]
        return out

    kernel, bias = weights["attention_output"]
    x = np.asarray(query, np.float64)
    outputs = np.zeros((*x.shape[:2], kernel.shape[-1])) + bias
    for b in range(len(x)):
        real = _real(how.key_mask, b, x.shape[1])
        if len(real):
            none = np.zeros(x.shape[:2], int)
            ids, packed = (
                (none if y is None else segments(y))[b, real] for y in (unit_ids, how.segment_ids)
            )
            for number in np.unique(packed):
                own = packed == number
                found = mixed(x[b, real[own]], 0, ids[own])
                outputs[b, real[own]] += np.einsum("the,hem->tm", found, kernel)
    return outputs


def recurrent_memory_tokens(
    weights, query, how, segment_length=64, memory_length=64, num_memory_tokens=0, **_
):
    """One segment after the other: its steps read the tokens, which are then written anew.

    `M <- N(M + A(M; [M, steps]))`, A the layer's attention without mask, N a division by the root
    mean square. Bulatov et al., 2022.
    """

    def heads(x, name):
        kernel, bias = weights[name]
        y = np.einsum("tm,mhd->thd", x, kernel) + bias
        return np.repeat(y, weights["query"][0].shape[1] // y.shape[1], axis=1)

    def attend(x, seen):
        q, k, v = heads(x, "query"), heads(seen, "key"), heads(seen, "value")
        kernel, bias = weights["attention_output"]
        logits = np.einsum("thd,shd->hts", q, k) / np.sqrt(q.shape[2])
        return np.einsum("hts,she,hem->tm", _softmax(logits), v, kernel) + bias

    start, bias = weights["more"]["memory_tokens"], weights["attention_output"][1]
    x = np.asarray(query, np.float64)
    outputs = np.zeros((*x.shape[:2], len(bias))) + bias
    for b in range(len(x)):
        real = _real(how.key_mask, b, x.shape[1])
        tokens, steps = start, x[b, real]
        for first in range(0, len(real), segment_length):
            segment = steps[first : first + segment_length]
            for t in range(first, first + len(segment)):
                seen = [tokens, steps[max(first - memory_length, 0) : t + 1]]
                outputs[b, real[t]] = attend(steps[t : t + 1], np.concatenate(seen))[0]
            tokens = tokens + attend(tokens, np.concatenate([tokens, segment]))
            tokens = tokens / np.sqrt(np.mean(tokens**2, axis=1, keepdims=True) + 1e-6)
    return outputs


WHOLE = {
    "RoutedAttention": routed_attention,
    "HierarchicalAttention": hierarchical_attention,
    **recurrent_references.WHOLE,
}
"""Class name -> function `(weights, query, value, key, how, **arguments) -> (b, t, m)`."""


# What every variant does with its weights.


def _divide(x, total):
    """`x / total`, and zero where there is nothing to divide by."""
    return x / np.where(total == 0, np.inf, total)


def normalise(weights):
    """`w_ts / sum_s w_ts`; a row with nothing to attend to is zero."""
    return _divide(weights, np.sum(weights, axis=-1, keepdims=True))


def attention(name, q, k, v, how=EVERYTHING, **arguments):
    """`sum_s w_ts v_s / sum_s w_ts`, `(b, t, h, e)`."""
    q, k, v = _float64(q, k, v)
    weights = REFERENCES[name](q, k, how, **arguments)
    return mix(weights if name in FINAL else normalise(weights), v)


def attention_gradients(name, q, k, v, g, how=EVERYTHING, **arguments):
    """The gradients of `sum(attention * g)` with respect to q, k and v."""
    q, k, v, g = _float64(q, k, v, g)
    weights = REFERENCES[name](q, k, how, **arguments)
    total = np.sum(weights, axis=-1, keepdims=True)
    normalised = _divide(weights, total)
    d_v = _shared_heads(mix(np.swapaxes(normalised, 2, 3), g), v.shape[2])
    d_normalised = inner(g, v)
    shift = np.sum(d_normalised * normalised, axis=-1, keepdims=True)
    d_weights = _divide(d_normalised - shift, total)
    return *PULL_BACKS[name](d_weights, q, k, how, **arguments), d_v


def projected(name, weights, query, value, key=None, how=EVERYTHING, **arguments):
    """The whole layer, `(b, t, m)`.

    `weights` has a pair of kernel and bias for each of query, key, value `(m, h, d), (h, d)` and
    attention_output `(h, e, m), (m)`, and a dict of what else there is, "more". Without "key" the
    variant gets q for k.
    """
    if name in WHOLE:
        return WHOLE[name](weights, query, value, key, how, **arguments)
    if "memory_tokens" in weights.get("more", ()):
        return recurrent_memory_tokens(weights, query, how, **arguments)

    def heads(x, name):
        kernel, bias = weights[name]
        return np.einsum("btm,mhd->bthd", x, kernel) + bias

    query, value, key = _float64(query, value, value if key is None else key)
    q, v = heads(query, "query"), heads(value, "value")
    k = heads(key, "key") if "key" in weights else q
    more = weights.get("more", {})
    if "query_norm/scale" in more:
        q, k = (
            recurrent_references.root_mean_square_norm(x, more[f"{name}_norm/scale"], 1e-6)
            for name, x in (("query", q), ("key", k))
        )
    if "query_conv" in more:
        q = short_convolution(q, more["query_conv"], how.query_mask, how.segment_ids)
        k, v = (
            short_convolution(x, more[f"{name}_conv"], how.key_mask, how.segment_ids)
            for name, x in (("key", k), ("value", v))
        )
    if more:
        arguments = {**arguments, "more": more}
    kernel, bias = weights["attention_output"]
    mixed = attention(name, q, k, v, how, **arguments)
    return np.einsum("bthe,hem->btm", mixed, kernel) + bias


def short_convolution(x, kernel, mask=None, segment_ids=None):
    """`silu(sum_j w_j x_(t - K + 1 + j))` over the real steps of each segment, x `(b, t, h, d)`."""
    b, t = x.shape[:2]
    real = np.ones((b, t), bool) if mask is None else np.asarray(mask, bool)
    segment = np.zeros((b, t), int) if segment_ids is None else segments(segment_ids)
    out = np.zeros_like(x)
    for i in range(b):
        for number in np.unique(segment[i]):
            steps = np.flatnonzero(real[i] & (segment[i] == number))
            out[i, steps] = recurrent_references.convolve(x[i, steps], kernel)
    return recurrent_references.silu(out)


def _float64(*arrays):
    return [np.asarray(x, np.float64) for x in arrays]


# What stands beside attention. A masked step does not exist; zeros stand where it was.


def _over_real_steps(function, x, mask):
    """`function (t, m) -> (t, m')` applied to the real steps of each example."""
    x = np.asarray(x, np.float64)
    if mask is None:
        return np.stack([function(example) for example in x])
    out = [function(example[real]) for example, real in zip(x, mask, strict=True)]
    whole = np.zeros((*x.shape[:2], out[0].shape[-1]))
    whole[mask] = np.concatenate(out)
    return whole


def causal_conv1d(x, kernel, bias=0.0, dilation_rate=1, mask=None):
    """`sum_j x_(t - (n - 1 - j) r) W_j + b`: n taps, r apart, W `(n, m, m')`, the last at t."""
    return _over_real_steps(
        lambda steps: _taps(steps, len(kernel), dilation_rate, lambda x, j: x @ kernel[j]) + bias,
        x,
        mask,
    )


def causal_depthwise_conv1d(x, kernel, bias=0.0, dilation_rate=1, mask=None):
    """As `causal_conv1d`, each channel alone: W `(n, m, multiplier)`, `m' = m multiplier`."""

    def each_channel(x, j):
        return (x[:, :, None] * kernel[j]).reshape(len(x), kernel[j].size)

    return _over_real_steps(
        lambda steps: _taps(steps, len(kernel), dilation_rate, each_channel) + bias, x, mask
    )


def _taps(steps, taps, dilation_rate, multiply):
    reach = (taps - 1) * dilation_rate
    behind = np.concatenate([np.zeros((reach, steps.shape[1])), steps])
    starts = range(0, reach + 1, dilation_rate)
    return sum(multiply(behind[i : i + len(steps)], j) for j, i in enumerate(starts))


def running_mean(x, mask=None):
    """The mean of the real steps up to each step; zero before the first."""
    x = np.asarray(x, np.float64)
    real = np.ones(x.shape[:2], bool) if mask is None else mask
    total = np.cumsum(np.where(real[..., None], x, 0), axis=1)
    return total / np.maximum(np.cumsum(real, axis=1), 1)[..., None]


def position_embedding(x, embeddings, mask=None):
    """`x_t + e_p`, p the number of real steps before t; to be read at real steps only."""
    return np.asarray(x, np.float64) + embeddings[positions(x.shape[1], mask)]


# Positions: the scaled scores of softmax attention with each, pair by pair.


def _sinusoid(position, size, base=10_000.0):
    """`[sin p w_0, cos p w_0, sin p w_1, ...]`, `w_i = base^(-2i/size)`. Vaswani et al., 2017."""
    return np.array(
        [
            (np.cos if i % 2 else np.sin)(position * base ** (-2 * (i // 2) / size))
            for i in range(size)
        ]
    )


def _llama_rate(rate, factor, low, high, length):
    """Of one pair of features, in radians per step: the published code of Llama 3.1, by cases."""
    wavelength = 2 * np.pi / rate
    if wavelength > length / low:
        return rate / factor
    if wavelength < length / high:
        return rate
    smooth = (length / wavelength - low) / (high - low)
    return (1 - smooth) * rate / factor + smooth * rate


def _rotation(position, size, base=10_000.0, adjustment=None):
    """The block-diagonal matrix R of a position. Su et al., 2021, eq. 15."""
    matrix = np.eye(size)
    for i in range(size // 2):
        rate = base ** (-2 * i / (size - size % 2))
        angle = position * (_llama_rate(rate, *adjustment) if adjustment else rate)
        c, s = np.cos(angle), np.sin(angle)
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[c, -s], [s, c]]
    return matrix


def _rotary_score(
    q, k, i, j, head, heads, w, base=10_000.0, interleaved=True, scaling_factor=1.0,
    rotary_dim=None, frequency_adjustment=None,
):  # fmt: skip
    size = rotary_dim or len(q)
    # Halves: the order in which the features of a pair are neighbours.
    order = np.arange(size) if interleaved else np.arange(size).reshape(2, -1).T.ravel()

    def turned(x, position):
        matrix = _rotation(position / scaling_factor, size, base, frequency_adjustment)
        return np.concatenate([matrix @ x[:size][order], x[size:]])

    return turned(q, i) @ turned(k, j)


def _xpos_score(q, k, i, j, head, heads, w, base=10_000.0, scale_base=512.0, gamma=0.4):
    size = len(q)
    fade = np.array([(n // 2 * 2 / size + gamma) / (1 + gamma) for n in range(size)])
    turned = _rotation(i, size, base) @ q, _rotation(j, size, base) @ k
    return np.sum(fade ** ((i - j) / scale_base) * turned[0] * turned[1])


def _sinusoidal_score(q, k, i, j, head, heads, w, base=10_000.0):
    return (q + _sinusoid(i, len(q), base)) @ (k + _sinusoid(j, len(q), base))


def _alibi_score(q, k, i, j, head, heads, w):
    return q @ k - np.sqrt(len(q)) * recurrent_references.alibi_slopes(heads)[head] * abs(i - j)


def t5_bucket(ahead, num_buckets=32, max_distance=128, bidirectional=True):
    """Raffel et al., 2020: the bucket of a key `ahead` steps after the query."""
    bucket = 0
    if bidirectional:
        num_buckets //= 2
        bucket += num_buckets if ahead > 0 else 0
        distance = abs(ahead)
    else:
        distance = max(-ahead, 0)
    exact = num_buckets // 2
    if distance < exact:
        return bucket + distance
    growth = np.log(distance / exact) / np.log(max_distance / exact) * (num_buckets - exact)
    return bucket + min(exact + int(growth + 1e-9), num_buckets - 1)


def _t5_score(q, k, i, j, head, heads, w, **buckets):
    return q @ k + np.sqrt(len(q)) * w["embeddings"][t5_bucket(j - i, **buckets), head]


def _shaw_score(q, k, i, j, head, heads, w, max_distance=16):
    clipped = min(max(j - i, -max_distance), max_distance)
    return q @ (k + w["embeddings"][clipped + max_distance])


def _transformer_xl_score(q, k, i, j, head, heads, w, base=10_000.0):
    size = len(q)
    rates = base ** (-2 * np.arange((size + 1) // 2) / size)
    r = np.concatenate([np.sin((i - j) * rates), np.cos((i - j) * rates)])
    return (q + w["content"][head]) @ k + (q + w["distance"][head]) @ (w["kernel"][head] @ r)


SCORES = {
    "Rotary": _rotary_score,
    "XPos": _xpos_score,
    "Sinusoidal": _sinusoidal_score,
    "ALiBi": _alibi_score,
    "T5Bias": _t5_score,
    "Shaw": _shaw_score,
    "TransformerXL": _transformer_xl_score,
}
"""Class name -> `(q, k, i, j, head, heads, weights, **arguments)`: sqrt(d) times the score."""


def placed_scores(name, q, k, how, w=None, **arguments):
    """The scaled scores of q `(b, t, h, d)` and k `(b, s, hk, d)` with a position."""
    b, t, h, d = q.shape
    s, k = k.shape[1], _each_head(k, h)
    query, key = _both_positions(t, s, how)
    query = np.broadcast_to(query[:, 0, :, 0], (b, t))
    key = np.broadcast_to(key[:, 0, 0], (b, s))
    scores = np.zeros((b, h, t, s))
    for n, head, i, j in np.ndindex(b, h, t, s):
        scores[n, head, i, j] = SCORES[name](
            q[n, i, head], k[n, j, head], query[n, i], key[n, j], head, h, w, **arguments
        )
    return scores / np.sqrt(d)


def placed_softmax_weights(name, q, k, how, w=None, **arguments):
    """The weights of softmax attention with a position, up to a factor for each row."""
    scores = placed_scores(name, q, k, how, w, **arguments)
    scores = np.where(allowed(q.shape[1], k.shape[1], how), scores, -np.inf)
    largest = np.max(scores, axis=-1, keepdims=True)
    return np.exp(scores - np.where(np.isfinite(largest), largest, 0))


def rotated_linear_weights(q, k, how, feature_map="elu+1", base=10_000.0):
    """RoFormer's linear attention, eq. 19: features turned above the line, plain below; final."""
    phi = FEATURE_MAPS[feature_map]
    sees = allowed(q.shape[1], k.shape[1], how)
    turned = np.sqrt(q.shape[3]) * placed_scores("Rotary", phi(q), phi(k), how, base=base)
    plain = inner(phi(q), phi(k)) * sees
    return _divide(turned * sees, np.sum(plain, axis=-1, keepdims=True))
