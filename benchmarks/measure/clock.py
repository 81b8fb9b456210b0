"""The rates of a machine, as the best of a few calls."""

import time

import numpy as np


def best_rate(call, amount, calls=5):
    """Amount a second of the fastest of some calls, after one that does not count."""
    call()
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return amount / min(seconds)


def numpy_copy_rate(size=1 << 26):
    """Bytes read and written a second by a copy from array to array, both there already."""
    source, target = np.ones(size, np.float32), np.zeros(size, np.float32)
    return best_rate(lambda: np.copyto(target, source), 2 * source.nbytes)
