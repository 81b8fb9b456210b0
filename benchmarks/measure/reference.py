"""What cells compute, from the papers' sums in NumPy float64: O(n^2), for small n."""

import pathlib
import sys

import numpy as np

from measure import inputs

sys.path.append(str(pathlib.Path(__file__).parent.parent.parent / "tests"))

import recurrent_references
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
        return None if cell.gradient else [fading(told)]
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
    """Sums that fade or the delta rule, of each example by itself."""
    q, k, v, _ = (np.float64(x) for x in inputs.heads(told))
    gates = inputs.gates(told)
    q, k = q / np.sqrt(q.shape[-1]), k / np.linalg.norm(k, axis=-1, keepdims=True)
    log_decay = np.broadcast_to(gates.get("log_decay", 0.0), k.shape)
    beta = gates.get("beta", [None] * len(q))
    examples = zip(q, k, v, log_decay, beta, strict=True)
    return np.stack([recurrent_references.recurrence(*example) for example in examples])
