"""The state of a stream as named tensors of an exported file."""

from __future__ import annotations

import numpy as np

from keras_cosattn.export.sample_inputs import Sizes, TensorSize
from keras_cosattn.streaming import Streaming


def state_sizes(stream: Streaming | None, batch_size: int | None) -> Sizes:
    """Sizes of the state's tensors; empty without a stream."""
    spec = {} if stream is None else stream.state_spec
    return {name: TensorSize((batch_size, *shape), dtype) for name, (shape, dtype) in spec.items()}


def zero_state(stream: Streaming | None, batch_size: int) -> dict[str, np.ndarray]:
    """The state before the first step, in NumPy."""
    spec = {} if stream is None else stream.state_spec
    return {name: np.zeros((batch_size, *shape), dtype) for name, (shape, dtype) in spec.items()}
