"""Padding masks in models of tf_keras."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_cosattn import limits
from keras_cosattn.attention.call_inputs import compatible
from keras_cosattn.models.keras2 import is_compiled_by_xla, tf_keras

Tensor = Any

ADVICE = (
    "A linear layer takes padding only: `attention_mask` must be the same for all queries and "
    "heads. Give a mask (b, s), as `EncoderScaffold(mask_cls=keras_cosattn.models.PaddingMask)` "
    "makes, and causality as `use_causal_mask=True`."
)


@tf_keras.utils.register_keras_serializable("keras_cosattn")
class PaddingMask(tf_keras.layers.Layer):
    """Make the attention mask `(b, s)` of the layers of `keras_cosattn.models`.

    It takes the place of `SelfAttentionMask` of tf-models-official, whose mask `(b, t, s)` has one
    row for each query. It costs O(b s).

    Args:
        **kwargs: Arguments of `tf_keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: Tensor `(b, t, m)` or `(b, t)`. It is not read.
        to_mask: Integer or boolean `(b, s)`, 1 or True for valid steps.

    Returns:
        Boolean tensor `(b, s)`.

    Example:
    >>> from keras_cosattn.models import PaddingMask
    >>> PaddingMask()(np.ones((1, 3, 4)), np.array([[1, 1, 0]])).numpy()
    array([[ True,  True, False]])
    """

    def call(self, inputs: Tensor, to_mask: Tensor) -> Tensor:
        return tf.cast(to_mask, tf.bool)


def key_mask(name: str, mask: Tensor | None, value_shape: Any) -> Tensor | None:
    """Return an attention mask of tf_keras as a mask of the keys, boolean `(b, s)`.

    A mask with a row for each query is taken if all rows are equal. In a TensorFlow graph, where
    its numbers are not known, an assertion checks this. XLA would remove the assertion, so there
    such a mask is refused.

    Args:
        name: String, the name of the layer, for the message.
        mask: Boolean or number, of shape `(b, s)`, `(b, 1 or t, s)` or `(b, 1, 1 or t, s)`. None
            means that all keys are valid.
        value_shape: `(b, s, m')`.

    Raises:
        ValueError: If the shape or the numbers are those of another mask.
    """
    if mask is None:
        return None
    mask = tf.cast(tf.convert_to_tensor(mask), tf.bool)
    received = f"Received: attention_mask.shape={tuple(mask.shape)}"
    if len(mask.shape) == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if len(mask.shape) == 2:
        mask = mask[:, tf.newaxis]
    if len(mask.shape) != 3 or not all(
        map(compatible, (mask.shape[0], mask.shape[2]), value_shape)
    ):
        b, s = value_shape[:2]
        raise ValueError(
            f"{name}: {ADVICE} {received}, which is not (b, s), (b, t, s) or (b, 1, t, s) with "
            f"b={b} and s={s}."
        )
    keys = mask[:, 0]
    if mask.shape[1] == 1:
        return keys
    is_padding = tf.reduce_all(tf.equal(mask, mask[:, :1]))
    return _checked(keys, is_padding, f"{name}: {ADVICE} {received}")


def _checked(keys, is_padding, message):
    """Return `keys`, after a check that `is_padding`, a boolean tensor, is True."""
    known = limits.known_value(is_padding)
    if known is None:
        if is_compiled_by_xla():
            raise ValueError(
                f"{message}, whose rows cannot be compared where XLA compiles "
                "(`jit_compile=True`, or a TPU)."
            )
        with tf.control_dependencies([tf.debugging.Assert(is_padding, [message])]):
            return tf.identity(keys)
    if not known:
        raise ValueError(f"{message}, with rows that differ.")
    return keys
