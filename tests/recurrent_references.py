"""Layers with a state that fades, or that the delta rule corrects, in NumPy float64, step by step.

The papers' recurrences: one state `(d, e)` for each head, one step after the other, no chunks. In
both directions the sum over all pairs. Axes as in `references`; here one sequence `(n, m)` at once.

`WHOLE[class name](weights, query, value, key, how, **arguments) -> (b, t, m)`.
"""

import numpy as np


def sigmoid(x):
    return np.where(x >= 0, 1, np.exp(-np.abs(x))) / (1 + np.exp(-np.abs(x)))


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return np.logaddexp(0, x)


def convolve(x, kernel, bias=0.0):
    """`sum_j w_j x_(t - K + 1 + j)` for each channel: x `(n, h, d)`, kernel `(K, h, d)`."""
    taps, out = len(kernel), np.zeros_like(x)
    for t in range(len(x)):
        for j in range(taps):
            if t - taps + 1 + j >= 0:
                out[t] += kernel[j] * x[t - taps + 1 + j]
    return out + bias


def rotate(x, base=10_000.0):
    """Pairs (2i, 2i + 1) of x `(n, h, d)` turned by `position base^(-2i/d)`."""
    out, paired = x.copy(), x.shape[-1] // 2 * 2
    for t in range(len(x)):
        for i in range(0, paired, 2):
            cos, sin = (f(t * base ** (-i / paired)) for f in (np.cos, np.sin))
            out[t, :, i] = cos * x[t, :, i] - sin * x[t, :, i + 1]
            out[t, :, i + 1] = sin * x[t, :, i] + cos * x[t, :, i + 1]
    return out


def each_query_head(x, heads):
    """`(n, hk, ...) -> (n, h, ...)`: query head j has key head `j // (h / hk)`."""
    return np.repeat(x, heads // x.shape[1], axis=1)


def recurrence(q, k, v, log_decay, beta=None):
    """`S = diag(a) S + k u^T, out = S^T q`: all `(n, h, .)`, log_decay `(n, h, d)`, beta `(n, h)`.

    u is v, or by the delta rule `beta (v - S^T k)`.
    """
    out = np.zeros(v.shape)
    state = np.zeros((*k.shape[1:], v.shape[2]))
    for t, h in np.ndindex(q.shape[:2]):
        faded = np.exp(log_decay[t, h])[:, None] * state[h]
        new = v[t, h] if beta is None else beta[t, h] * (v[t, h] - faded.T @ k[t, h])
        state[h] = faded + np.outer(k[t, h], new)
        out[t, h] = state[h].T @ q[t, h]
    return out


def both_ways(q, k, v, log_decay):
    """Every pair: the decays of the steps after the earlier one, up to the later one."""
    out = np.zeros(v.shape)
    for t, h in np.ndindex(q.shape[:2]):
        for s in range(len(k)):
            first, last = min(t, s), max(t, s)
            fade = np.exp(np.sum(log_decay[first + 1 : last + 1, h], axis=0))
            out[t, h] += (q[t, h] * fade) @ k[s, h] * v[s, h]
    return out


def mix(q, k, v, log_decay, beta, causal):
    """Heads of a group share keys, values and gates."""
    heads = q.shape[1]
    k, v = each_query_head(k, heads), each_query_head(v, heads)
    log_decay = each_query_head(
        np.broadcast_to(log_decay, (*log_decay.shape[:2], k.shape[2])), heads
    )
    if not causal:
        return both_ways(q, k, v, log_decay)
    return recurrence(q, k, v, log_decay, None if beta is None else each_query_head(beta, heads))


class Weights:
    """The weights of a layer, by name."""

    def __init__(self, weights):
        self.pairs, self.more = weights, weights.get("more", {})

    @property
    def num_heads(self):
        return len(self.pairs["attention_output"][0])

    def heads(self, x, name):
        kernel, bias = self.pairs[name]
        return np.einsum("tm,mhd->thd", x, kernel) + bias

    def gate(self, x, name):
        """A projection of the input that is no query, key or value."""
        return np.tensordot(x, self.more[f"{name}/kernel"], axes=1) + self.more.get(
            f"{name}/bias", 0.0
        )

    def convolved(self, x, name):
        if f"{name}_conv" not in self.more:
            return x
        bias = self.more.get(f"{name}_conv_bias", 0.0)
        return silu(convolve(x, self.more[f"{name}_conv"], bias))

    def projected(self, x):
        return [self.convolved(self.heads(x, name), name) for name in ("query", "key", "value")]

    def output_gate(self, x, mixed):
        if "output_gate/kernel" not in self.more:
            return mixed
        return mixed * silu(self.gate(x, "output_gate"))


def each_sequence(of_one):
    """A function of the weights and of one sequence `(n, m)`, for batches, masks and packing."""

    def layer(weights, query, value, key, how, **arguments):
        named, x = Weights(weights), np.asarray(query, np.float64)
        b, t = x.shape[:2]
        real = np.ones((b, t), bool)
        for mask in (how.query_mask, how.key_mask):
            real = real if mask is None else real & np.asarray(mask, bool)
        ids = np.zeros((b, t), int) if how.segment_ids is None else np.asarray(how.segment_ids)
        runs = np.cumsum(np.diff(ids, axis=1, prepend=ids[:, :1]) != 0, axis=1)
        kernel, bias = weights["attention_output"]
        mixed = np.zeros((b, t, *kernel.shape[:2]))
        for i in range(b):
            for run in np.unique(runs[i]):
                steps = np.flatnonzero(real[i] & (runs[i] == run))
                if len(steps):
                    mixed[i, steps] = of_one(named, x[i, steps], how.causal, **arguments)
        return np.einsum("bthe,hem->btm", mixed, kernel) + bias

    return layer


def alibi_slopes(heads):
    """Press et al., 2022, section 3; of no power of two, as the paper's published code."""
    if heads & (heads - 1) == 0:
        start = 2 ** (-8 / heads)
        return [start ** (n + 1) for n in range(heads)]
    below = 2 ** int(np.floor(np.log2(heads)))
    return alibi_slopes(below) + alibi_slopes(2 * below)[::2][: heads - below]


@each_sequence
def retention(w, x, causal, decay="retnet", norm_epsilon=1e-5, position="rotary", **_):
    """Sun et al., 2023, eq. 3-8."""
    q, k, v = w.projected(x)
    i, heads = np.arange(k.shape[1]), k.shape[1]
    if decay == "retnet":
        gamma = 1 - 2.0 ** (-5 - i)
    elif decay == "lightning":
        gamma = np.exp(np.negative(alibi_slopes(heads)))
    else:
        gamma = np.asarray(decay)
    k = k / np.sqrt(k.shape[2])
    if position is not None:
        q, k = rotate(q), rotate(k)
    log_decay = np.broadcast_to(np.log(gamma)[None, :, None], (len(x), heads, 1))
    mixed = mix(q, k, v, log_decay, None, causal)
    mixed = mixed - mixed.mean(axis=2, keepdims=True)
    mixed = mixed / np.sqrt(np.mean(mixed**2, axis=2, keepdims=True) + norm_epsilon)
    mixed = mixed * w.more["norm_scale"] + w.more["norm_bias"]
    return w.output_gate(x, mixed)


def root_mean_square_norm(x, scale, epsilon=1e-5):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * scale


@each_sequence
def gated_linear(w, x, causal, gate_logit_normalizer=16.0, norm_epsilon=1e-5, **_):
    """Yang et al., 2024 (GLA), eq. 4-6."""
    q, k, v = w.projected(x)
    z = w.gate(w.gate(x, "decay_in"), "decay_out")
    log_decay = np.maximum(np.log(sigmoid(z)) / gate_logit_normalizer, -5.0)
    mixed = mix(q / np.sqrt(q.shape[2]), k, v, log_decay, None, causal)
    mixed = root_mean_square_norm(mixed, w.more["norm_scale"], norm_epsilon)
    return w.output_gate(x, mixed)


@each_sequence
def delta_rule(
    w, x, causal, gated=False, allow_neg_eigval=False, conv_size=4, norm_epsilon=1e-5, **_
):
    """Yang et al., 2024 (DeltaNet), eq. 2; Yang et al., 2025 (Gated DeltaNet), eq. 10."""
    q, k, v = w.projected(x)
    if conv_size is None:
        q, k, v = silu(q), silu(k), silu(v)
    q, k = (z / np.sqrt(np.sum(z**2, axis=2, keepdims=True) + 1e-6) for z in (q, k))
    q, k = each_query_head(q, w.num_heads), each_query_head(k, v.shape[1])
    beta = (2 if allow_neg_eigval else 1) * sigmoid(w.gate(x, "beta"))
    log_decay = np.zeros((len(x), k.shape[1], 1))
    if gated:
        z = w.gate(x, "decay").reshape(len(x), *w.more["dt_bias"].shape)
        log_decay = -np.exp(w.more["A_log"]) * softplus(z + w.more["dt_bias"])
    if gated == "channel":
        log_decay = np.maximum(log_decay, -5.0)
    mixed = mix(q / np.sqrt(q.shape[2]), k, v, log_decay, beta, causal)
    mixed = root_mean_square_norm(mixed, w.more["norm_scale"], norm_epsilon)
    return w.output_gate(x, mixed)


@each_sequence
def mamba2(w, x, causal, num_groups=1, conv_size=4, norm_epsilon=1e-5, **_):
    """Dao and Gu, 2024, eq. 16; the block of section 7."""
    q, k, v = w.projected(x)
    if conv_size is None:
        q, k, v = silu(q), silu(k), silu(v)
    heads = w.num_heads
    q, k = each_query_head(q, heads), each_query_head(k, v.shape[1])
    size = softplus(w.gate(x, "dt") + w.more["dt_bias"])
    log_decay = (-np.exp(w.more["A_log"]) * size)[:, :, None]
    mixed = mix(q, k, v * size[:, :, None], log_decay, None, causal)
    mixed = mixed + w.more["D"] * each_query_head(v, heads)
    mixed = w.output_gate(x, mixed)
    groups = root_mean_square_norm(mixed.reshape(len(x), num_groups, -1), 1.0, norm_epsilon)
    return groups.reshape(mixed.shape) * w.more["norm_scale"]


@each_sequence
def decayed_cosformer(w, x, causal, horizon=256, **_):
    """`relu(q_t) . relu(k_s) cos^2(pi/2 (t - s)/M) gamma^|t - s|`, divided by its sum."""
    q, k, v = w.projected(x)
    heads, step = q.shape[1], np.arange(len(x))
    q, k = np.maximum(q, 0), np.maximum(each_query_head(k, heads), 0)
    apart = np.abs(step[:, None] - step)
    gamma = np.repeat(np.exp(-np.exp(w.more["log_rate"])), heads // len(w.more["log_rate"]))
    weights = np.einsum("thd,shd->hts", q, k) * gamma[:, None, None] ** apart
    weights = weights * np.cos(np.pi / 2 * apart / horizon) ** 2
    weights = weights * (np.tri(len(x)) if causal else 1)
    total = np.sum(weights, axis=2, keepdims=True)
    weights = weights / np.where(total == 0, np.inf, total)
    mixed = np.einsum("hts,she->the", weights, each_query_head(v, heads))
    return w.output_gate(x, mixed)


WHOLE = {
    "DecayedCosFormerAttention": decayed_cosformer,
    "RetentionAttention": retention,
    "GatedLinearAttention": gated_linear,
    "DeltaRuleAttention": delta_rule,
    "Mamba2Attention": mamba2,
}
