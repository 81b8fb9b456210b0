"""The least time that a cell could take: its products, or its bytes, at the machine's rates."""

CHUNK = 64
"""Steps in a chunk of the sums that are counted; a longer chunk needs more operations."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def operations(cell):
    """Operations of the products of one call, or None where they were not counted.

    Each entry of a product counts two for each number summed. Causal products count what a causal
    result needs: half of a square. A gradient costs two more products for each.
    """
    d, n = cell.size, cell.n
    each_step = {
        "softmax": 2 * n * d if cell.causal else 4 * n * d,
        "linear": sums(d, d, d, cell.causal),
        "cosformer": sums(d, 2 * d, d, cell.causal),
        "kernel": sums(d, d, d, cell.causal),
    }
    family = {
        "cosformer_packed": "cosformer",
        "cosformer_horizon": "cosformer",
        "CosFormerAttention": "cosformer",
        "endless": "cosformer",
        "LinearAttention": "linear",
    }.get(cell.same, cell.same)
    if family not in each_step:
        return None
    total = cell.batch * n * cell.heads * each_step[family]
    if cell.level == "layer":
        width = cell.heads * cell.size
        total += cell.batch * n * 4 * 2 * width * width
    return total * (3 if cell.gradient else 1)


def sums(d, f, e, causal):
    """Operations a step of a head: scores of d features in a chunk, sums of f features by e."""
    return 4 * f * e + (CHUNK * (d + e) if causal else 0)


def data(cell):
    """Bytes of the inputs and results: q, k, v, out and their gradients, or x and out."""
    arrays = {"core": 4, "layer": 2}[cell.level] * (2 if cell.gradient else 1)
    return arrays * cell.batch * cell.n * cell.heads * cell.size * BYTES[cell.dtype]


def seconds(cell, rates):
    """The limit of a cell, or None where its operations or the rates are not known."""
    count = operations(cell) if cell.level in ("core", "layer") else None
    if count is None or not {"flops", "bytes"} <= rates.keys():
        return None
    return max(count / rates["flops"], data(cell) / rates["bytes"])
