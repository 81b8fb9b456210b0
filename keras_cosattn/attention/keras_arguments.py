"""Checks of constructor arguments that only `keras.layers.MultiHeadAttention` has too."""

from __future__ import annotations

import numbers
from typing import Any


def output_sizes(output_shape: Any) -> tuple[int, ...] | None:
    """Return `output_shape` as a tuple of integers, or None.

    Raises:
        ValueError: Unless it is None, a positive integer, or a list or tuple of such.
    """
    if output_shape is None:
        return None
    sizes = output_shape if isinstance(output_shape, (list, tuple)) else (output_shape,)
    if not sizes or not all(_is_integer(n) and n > 0 for n in sizes):
        raise ValueError(
            "Invalid `output_shape`: it must be None, a positive integer, or a list or tuple of "
            f"positive integers. Received: output_shape={output_shape!r}"
        )
    return tuple(int(n) for n in sizes)


def axes(attention_axes: Any) -> tuple[int, ...] | None:
    """Return `attention_axes` as a tuple of integers, or None.

    Raises:
        ValueError: Unless it is None, an integer, or a list or tuple of integers.
    """
    if attention_axes is None:
        return None
    given = attention_axes if isinstance(attention_axes, (list, tuple)) else (attention_axes,)
    if not given or not all(map(_is_integer, given)):
        raise ValueError(
            "`attention_axes` must be None, an integer, or a list or tuple of integers. "
            f"Received: attention_axes={attention_axes!r}"
        )
    return tuple(int(axis) for axis in given)


def window(layer_type: Any, sliding_window: Any) -> int | None:
    """Return `sliding_window` as an integer, or None.

    Raises:
        ValueError: Unless it is None or a positive integer, or if the layer has no such window.
    """
    if sliding_window is None:
        return None
    if not _is_integer(sliding_window) or sliding_window < 1:
        raise ValueError(
            "`sliding_window` must be None or a positive integer. "
            f"Received: sliding_window={sliding_window!r}"
        )
    if not layer_type.accepts_sliding_window:
        raise ValueError(
            f"{layer_type.__name__}: `sliding_window` needs the weight of each pair of steps, "
            "which this layer never computes. Use SegmentedAttention, which attends within "
            "windows in linear time, or SoftmaxAttention. "
            f"Received: sliding_window={sliding_window}"
        )
    return int(sliding_window)


def flash_attention(layer_type: type, flash_attention: bool | None) -> bool | None:
    """Return `flash_attention`. Raise ValueError if it is True."""
    if flash_attention:
        raise ValueError(
            f"{layer_type.__name__}: `flash_attention=True` asks for a fused kernel of softmax "
            "attention, or an error. Leave it out: SoftmaxAttention takes such a kernel where JAX "
            "or PyTorch has one, and the other layers have none. "
            f"Received: flash_attention={flash_attention!r}"
        )
    return flash_attention


def _is_integer(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
