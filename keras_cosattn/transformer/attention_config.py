"""The attention layer that a block is given: checked, stored as a config, copied and built."""

from __future__ import annotations

from typing import Any

import keras

from keras_cosattn.attention import Attention


def attention_config(name: str, attention: Attention | dict | None) -> dict | None:
    """Return the saved form of an attention layer, without a dtype policy if it has the global one.

    A layer whose policy is the global one was most likely given none, so it takes that of its
    block. Any other policy was chosen for this layer, and stays in the saved form.

    Args:
        name: String, the name of the block's argument, for the error.
        attention: An attention layer of this package, or the result of this function, or None.

    Returns:
        A dict as `keras.saving.serialize_keras_object` returns it, or None for None.

    Raises:
        ValueError: If `attention` is something else.
    """
    if attention is None:
        return None
    if isinstance(attention, dict):
        _check_type(name, keras.saving.deserialize_keras_object(attention))
        return attention
    _check_type(name, attention)
    config = keras.saving.serialize_keras_object(attention)
    if attention.dtype_policy == keras.config.dtype_policy():
        del config["config"]["dtype"]
    return config


def build_attention(
    config: dict, name: str, dtype_policy: Any, query_shape: tuple, value_shape: tuple
) -> Attention:
    """Return a new built layer of a config, with `dtype_policy` if the config has none."""
    policy = keras.dtype_policies.serialize(dtype_policy)
    own = {"dtype": policy, **config["config"], "name": name}
    layer = keras.saving.deserialize_keras_object({**config, "config": own})
    layer.build(query_shape, value_shape)
    output_shape = layer.compute_output_shape(query_shape, value_shape)
    if output_shape[-1] != query_shape[-1]:
        raise ValueError(
            f"{name}: the attention layer of a block must return the width of its input, "
            f"{query_shape[-1]}, so that both can be added. Received: an attention layer with "
            f"`output_shape`={output_shape[-1]}. Leave its `output_shape` None."
        )
    return layer


def _check_type(name, attention):
    if not isinstance(attention, Attention):
        raise ValueError(
            f"`{name}` must be an attention layer of keras_cosattn, such as "
            f"CosFormerAttention(4, 64). Received: {name}={attention!r}"
        )
