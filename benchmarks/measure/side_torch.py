"""PyTorch: its own attention kernel, and the linear sums as a user would write them.

Queries, keys and values are laid out `(b, h, n, d)`, as its kernel wants them, before anything is
timed.
"""

import importlib.metadata
import importlib.util
import math
import pathlib

import torch

from measure import clock, inputs

CHUNK = 128
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def versions():
    return {"torch": importlib.metadata.version("torch")}


def build(cell, eager=False):
    qkv = [tensor(x, cell) for x in inputs.heads(cell)]
    *qkv, g = qkv
    function = FUNCTIONS[cell["what"]]

    def forward():
        with torch.no_grad():
            return [function(*qkv, cell)]

    def gradients():
        given = [x.detach().requires_grad_() for x in qkv]
        return torch.autograd.grad(function(*given, cell), given, g)

    step = gradients if cell["gradient"] else forward

    def run():
        found = step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return found

    return run, lambda found: [x.float().transpose(1, 2).cpu().numpy() for x in found]


def tensor(x, cell):
    x = torch.from_numpy(x).transpose(1, 2).contiguous()
    return x.to(DEVICE, getattr(torch, cell["dtype"]))


def flash(q, k, v, cell):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=cell["causal"])


def linear(q, k, v, cell):
    q, k = (torch.nn.functional.elu(x) + 1 for x in (q, k))
    if not cell["causal"]:
        sums, totals = k.mT @ v, k.sum(dim=2)[..., None]
        return (q @ sums) / (q @ totals)
    past = torch.ones(CHUNK, CHUNK, device=q.device, dtype=q.dtype).tril()
    return in_chunks(q, k, v, q, k, past)


def cosformer(q, k, v, cell):
    q, k = torch.relu(q), torch.relu(k)
    step = torch.arange(cell["n"], device=q.device) * (math.pi / 2 / cell["n"])
    cos, sin = torch.cos(step)[:, None].to(q.dtype), torch.sin(step)[:, None].to(q.dtype)
    q_read, k_write = (torch.cat([x * cos, x * sin], dim=-1) for x in (q, k))
    if not cell["causal"]:
        sums, totals = k_write.mT @ v, k_write.sum(dim=2)[..., None]
        return (q_read @ sums) / (q_read @ totals).clamp_min(1e-12)
    weights = torch.cos(step[:CHUNK, None] - step[:CHUNK]).tril().to(q.dtype)
    return in_chunks(q, k, v, q_read, k_write, weights)


def in_chunks(q, k, v, q_read, k_write, weights):
    """Causal sums: scores inside a chunk, times a table of weights, and the sums before it."""
    b, h, _, e = v.shape
    sums = v.new_zeros(b, h, k_write.shape[-1], e)
    totals = v.new_zeros(b, h, k_write.shape[-1], 1)
    out = []
    # The gradient of `split` is one copy; that of a slice is as long as the whole.
    chunks = (x.split(CHUNK, dim=2) for x in (q, k, v, q_read, k_write))
    for q, k, v, q_read, k_write in zip(*chunks, strict=True):
        scores = (q @ k.mT) * weights[: q.shape[2], : q.shape[2]]
        numerator = scores @ v + q_read @ sums
        normaliser = scores.sum(dim=-1, keepdim=True) + q_read @ totals
        out.append(numerator / normaliser.clamp_min(1e-12))
        sums = sums + k_write.mT @ v
        totals = totals + k_write.sum(dim=2)[..., None]
    return torch.cat(out, dim=2)


def fla_linear(q, k, v, cell):
    """The Triton kernel of flash-linear-attention; its layout is `(b, n, h, d)`."""
    from fla.ops.linear_attn import chunk_linear_attn

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    q, k = (torch.nn.functional.elu(x) + 1 for x in (q, k))
    return chunk_linear_attn(q, k, v, scale=1.0, normalize=True)[0].transpose(1, 2)


def fla_naive(name):
    """The plain PyTorch forms of flash-linear-attention, which is not imported: it needs Triton."""
    (folder,) = importlib.util.find_spec("fla").submodule_search_locations
    file = pathlib.Path(folder, "ops", name, "naive.py")
    spec = importlib.util.spec_from_file_location(f"fla_naive_{name}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fading(q, k, v, cell):
    """Sums that fade or the delta rule, in chunks; the layout is `(b, n, h, d)`, or as here."""
    what = cell["same"]
    given = {name: torch.from_numpy(x).to(q) for name, x in inputs.gates(cell).items()}
    k = torch.nn.functional.normalize(k, dim=-1)
    if what == "delta_rule":
        function = fla_naive("delta_rule").delta_rule_chunkwise
        return function(q, k, v, given["beta"].transpose(1, 2))[0]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    log_decay = given["log_decay"][..., 0]
    if what == "decay":
        function = fla_naive("simple_gla").naive_chunk_simple_gla
        return function(q, k, v, log_decay)[0].transpose(1, 2)
    function = fla_naive("gated_delta_rule").naive_chunk_gated_delta_rule
    return function(q, k, v, log_decay, given["beta"])[0].transpose(1, 2)


FUNCTIONS = {
    "fla_decay": fading,
    "fla_delta_rule": fading,
    "fla_gated_delta_rule": fading,
    "torch_flash": flash,
    "torch_cosformer": cosformer,
    "torch_linear": linear,
    "fla_linear": fla_linear,
}


def device():
    """The name of the GPU, or None."""
    return torch.cuda.get_device_name() if DEVICE == "cuda" else None


def device_memory():
    """Bytes in use and at most in use on the GPU, or None without one."""
    if DEVICE == "cpu":
        return None
    found = {"in_use": torch.cuda.memory_allocated(), "peak": torch.cuda.max_memory_allocated()}
    torch.cuda.reset_peak_memory_stats()
    return found


def rates(dtype):
    """Of the CPU; on a GPU the other sides measure them."""
    if DEVICE == "cuda":
        return {}
    size = 2048
    a = torch.ones(size, size, dtype=getattr(torch, dtype))
    flops = clock.best_rate(lambda: torch.mm(a, a), 2 * size**3)
    return {"flops": flops, "bytes": clock.numpy_copy_rate()}
