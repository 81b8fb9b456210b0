"""The inputs of a block with zeros in masked steps, and the mask."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_cosattn import scope
from keras_cosattn.ops import arrays, timesteps


class MaskedInputs(keras.layers.Layer):
    """Replace masked steps by zeros, so that NaN or inf in them reaches no weight's gradient.

    It is a layer because Keras gives the implicit mask of a tensor to layers only.

    Call arguments:
        inputs: Tensor `(b, t, m)`.
        mask: Boolean tensor `(b, t)`, True for valid steps. None means Keras's implicit mask.

    Returns:
        The inputs in the compute dtype, with zeros where `mask`, or the mask of the open stream, is
        False; and `mask`, or None if there is none.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.built = True

    def compute_mask(self, inputs, previous_mask):
        return None  # the block passes the mask on as an argument

    def call(self, inputs, mask=None):
        stream = scope.current()
        zeros = mask if stream is None else timesteps.combine(mask, stream.mask)
        return arrays.zero_masked(ops.cast(inputs, self.compute_dtype), zeros), mask
