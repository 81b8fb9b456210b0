"""How many steps a loop takes at once, by the device."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import keras


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The steps that one matrix product covers, and the steps of one iteration of the loop.

    Args:
        chunk: int, the number of steps in a chunk.
        block: int, the number of steps in a block. None stands for all steps.
    """

    chunk: int
    block: int | None

    @property
    def chunk_of_block(self) -> int | None:
        """The steps in a chunk of a block. None if a block is one chunk."""
        return None if self.loops_over_chunks else self.chunk

    @property
    def loops_over_chunks(self) -> bool:
        """Whether a block is one chunk."""
        return self.block is not None and self.block <= self.chunk

    def takes_all(self, length: Any) -> bool:
        """Return whether one block is known to have all steps of a sequence."""
        return self.block is None or (isinstance(length, int) and length <= self.block)


CPU_CHUNK = 128
"""On a CPU a block is one chunk, which stays in the cache and needs no sums over chunks."""

CHUNK = 64

ACCELERATOR_BLOCK = 8192
"""A GPU or TPU is faster with a few large products. The block bounds their memory."""

DECAY_CHUNK = 64
"""The loop over sums that fade takes one chunk at once, on every device and in a TFLite file."""

FEW_STEPS = 64
"""Up to this length all pairs are faster than the sums, also if these have fewer products, because
they are fewer operations. `benchmarks/formulations.py` measures both."""

_all_at_once: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "keras_cosattn_all_at_once", default=False
)


@contextlib.contextmanager
def all_at_once() -> Iterator[None]:
    """Take all steps at once in the context, whatever sizes are given.

    Files for TFLite are made so. `benchmarks/on_device.py` measures both: on LiteRT the loop is
    slower.
    """
    token = _all_at_once.set(True)
    try:
        yield
    finally:
        _all_at_once.reset(token)


def sizes(chunk_size: int | None = None, block_size: int | None = None) -> Sizes:
    """Return the given sizes, and those of the device in place of None."""
    if _all_at_once.get():
        return Sizes(chunk_size or CHUNK, None)
    if _has_accelerator(keras.backend.backend()):
        chunk = chunk_size or CHUNK
        return Sizes(chunk, block_size or max(ACCELERATOR_BLOCK, chunk))
    chunk = chunk_size or CPU_CHUNK
    return Sizes(chunk, block_size or chunk)


def sizes_behind_window(window: int, block_size: int | None = None) -> Sizes:
    """Return sizes for sums over the steps behind a window, of the device in place of None.

    A chunk is no shorter than the window. So its windows reach into one other chunk at most, and
    the windows that the loop keeps for its gradient have no more steps than the sequence.
    """
    return sizes(max(window, CHUNK), block_size)


def pairs_are_cheaper(t: Any, s: Any, d: int, e: int, f: int) -> bool:
    """Return whether t queries and s keys are known to be so few that the sums would cost more.

    All pairs take `t s (d + e)` products, and sums of f features take `(t + s) f e`. The selections
    of all pairs would cut a TFLite graph in two.
    """
    if _all_at_once.get() or not (isinstance(t, int) and isinstance(s, int)):
        return False
    return t * s <= (t + s) * max(FEW_STEPS / 2, f * e / (d + e))


def decay_chunk(chunk_size: int | None) -> int:
    """Return the number of steps that one iteration of a loop over sums that fade takes."""
    return chunk_size or DECAY_CHUNK


def windows_at_once(block_size: int | None, window: int) -> int | None:
    """Return how many steps softmax attention in windows takes at once. None stands for all.

    Unlike the sums, all at once is the default on every device. `benchmarks/formulations.py`
    measures both: the loop is slower, mostly in the gradient, and needs less memory.

    Args:
        block_size: int, the number of steps that the user asks for.
        window: int, the number of steps in a window, of which the result is a multiple.
    """
    if block_size is None or _all_at_once.get():
        return None
    return -(-block_size // window) * window


@functools.cache
def _has_accelerator(backend: str) -> bool:
    if backend == "tensorflow":
        import tensorflow as tf

        return any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU"))
    if backend == "jax":
        import jax

        return jax.default_backend() != "cpu"
    if backend == "torch":
        import torch

        return torch.cuda.is_available()
    return False
