"""What cells compute, from the papers' sums in NumPy float64: O(n^2), for small n."""

import pathlib
import sys

import numpy as np

from measure import inputs

sys.path.append(str(pathlib.Path(__file__).parent.parent.parent / "tests"))

import references

CORE = {
    "cosformer": "CosFormerAttention",
    "cosformer_packed": "CosFormerAttention",
    "cosformer_horizon": "CosFormerAttention",
    "linear": "LinearAttention",
    "softmax": "SoftmaxAttention",
}


def expected(cell):
    """The output or the gradients of a cell of the core, else None."""
    told = cell.request()
    if cell.level != "core":
        return None
    what = cell.same
    if what not in CORE:
        return fading(told)
    how = references.How(causal=cell.causal)
    arguments = {}
    if what == "cosformer_horizon":
        arguments = {"horizon": max(2, cell.n // 4)}
    elif what.startswith("cosformer"):
        arguments = {"max_length": cell.n}
    if what == "cosformer_packed":
        how = how._replace(segment_ids=inputs.segment_ids(told))
    name = CORE[what]
    *qkv, g = inputs.heads(told)
    if cell.gradient:
        return list(references.attention_gradients(name, *qkv, g, how, **arguments))
    return [np.asarray(references.attention(name, *qkv, how, **arguments))]


def fading(told):
    """Sums that fade or the delta rule: the output, or the gradients of q, k and v."""
    q, k, v, g = (np.float64(x) for x in inputs.heads(told))
    gates, scale = inputs.gates(told), q.shape[-1] ** -0.5
    length = np.linalg.norm(k, axis=-1, keepdims=True)
    log_decay = np.broadcast_to(gates.get("log_decay", 0.0), k.shape)
    beta = gates.get("beta", np.broadcast_to(None, k.shape[:3]))
    found = [np.zeros(x.shape) for x in ((q, k, v) if told["gradient"] else (v,))]
    for b, h in np.ndindex(q.shape[0], q.shape[2]):
        one = (scale * q, k / length, v, np.exp(log_decay), beta, g)
        of_head = fading_head(*(x[b, :, h] for x in one))
        for x, of_one in zip(found, of_head[1:] if told["gradient"] else of_head[:1], strict=True):
            x[b, :, h] = of_one
    if not told["gradient"]:
        return found
    d_q, d_k, d_v = found
    unit = k / length
    return [scale * d_q, (d_k - unit * np.sum(d_k * unit, -1, keepdims=True)) / length, d_v]


def fading_head(q, k, v, decay, beta, g):
    """One head of one example: the outputs, and what the gradients g of these are of q, k and v."""
    state, states, written = np.zeros((k.shape[1], v.shape[1])), [], []
    for t in range(len(q)):
        faded = decay[t][:, None] * state
        new = v[t] if beta[t] is None else beta[t] * (v[t] - faded.T @ k[t])
        state = faded + np.outer(k[t], new)
        states.append((faded, state))
        written.append(new)
    out = np.stack([state.T @ q[t] for t, (_, state) in enumerate(states)])
    d_q, d_k, d_v = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    d_state = np.zeros_like(state)
    for t in reversed(range(len(q))):
        faded, state = states[t]
        d_q[t] = state @ g[t]
        d_state = d_state + np.outer(q[t], g[t])
        d_new = d_state.T @ k[t]
        d_k[t] = d_state @ written[t]
        if beta[t] is not None:
            d_new = beta[t] * d_new
            d_k[t] -= faded @ d_new
            d_state = d_state - np.outer(k[t], d_new)
        d_v[t] = d_new
        d_state = decay[t][:, None] * d_state
    return out, d_q, d_k, d_v
