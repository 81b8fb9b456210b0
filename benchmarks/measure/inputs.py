"""What every worker draws by the same seed, whatever its package. It needs NumPy alone."""

import numpy as np


def heads(cell):
    """Queries, keys, values and the gradient of the output, `(b, n, h, d)`."""
    shape = cell["batch"], cell["n"], cell["heads"], cell["size"]
    rng = np.random.default_rng([cell["seed"], cell["n"]])
    return [rng.standard_normal(shape, np.float32) for _ in range(4)]


def gates(cell):
    """What sums that fade take beside queries, keys and values: by name, `(b, n, h, ...)`."""
    shape = cell["batch"], cell["n"], cell["heads"]
    what, rng = cell["same"] or cell["what"], np.random.default_rng([cell["seed"], cell["n"], 3])
    size = cell["size"] if what == "channel_decay" else 1
    log_decay = -0.1 * rng.random((*shape, size), np.float32)
    found = {} if what == "delta_rule" else {"log_decay": log_decay}
    return {**found, "beta": rng.random(shape, np.float32)} if "delta" in what else found


def steps(cell):
    """The input of a layer and the gradient of its output, `(b, n, h d)`."""
    shape = cell["batch"], cell["n"], cell["heads"] * cell["size"]
    rng = np.random.default_rng([cell["seed"], cell["n"]])
    return [rng.standard_normal(shape, np.float32) for _ in range(2)]


def weights(shapes, seed):
    """Kernels and biases of the projections, in the order in which layers list them."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, np.float32) / np.float32(16) for shape in shapes]


def segment_ids(cell):
    """Documents of uneven lengths, eight in a row on average, `(b, n)`."""
    rng = np.random.default_rng([cell["seed"], cell["n"], 1])
    starts = rng.random((cell["batch"], cell["n"])) < 8 / cell["n"]
    return np.cumsum(starts, axis=1).astype("int32")


def tokens(cell):
    """Bytes, `(b, n)`."""
    rng = np.random.default_rng([cell["seed"], cell["n"], 2])
    return rng.integers(0, 256, (cell["batch"], cell["n"])).astype("int32")
