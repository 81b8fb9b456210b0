"""The attention weights of a model, and which keys a query may look at."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_cosattn import masks, scope
from keras_cosattn.attention import Attention


def attention_weights(
    model: keras.layers.Layer, *inputs: Any, **call_arguments: Any
) -> dict[str, np.ndarray]:
    """Return the weights of every attention layer that `model(*inputs, **call_arguments)` calls.

    The model runs once, unchanged and outside of compiled functions. The weights of each layer
    take O(t s) memory, and the time of mixing values of size s.

    Args:
        model: any built Keras model or layer that contains attention layers of this package, or
            such a layer itself, for which one input is both query and value.
        *inputs: inputs of the call.
        **call_arguments: keyword arguments of the call, such as masks.

    Returns:
        Dict of layer path -> NumPy array of shape `(b, h, t, s)`. If a layer is called again in
        the same run, or another layer has the same path, `:1` is appended to the path, then `:2`
        and so on. Rows of masked queries and columns of masked keys are zero.

    Raises:
        ValueError: if the model is not built, calls no attention layer of this package, or calls
            one that cannot give its weights.

    Example:
    >>> import keras
    >>> from keras_cosattn import SoftmaxAttention, analysis
    >>> x = keras.Input((None, 8))
    >>> model = keras.Model(x, SoftmaxAttention(2, 4, name="attention")(x, x))
    >>> weights = analysis.attention_weights(model, keras.ops.ones((1, 3, 8)))
    >>> {name: w.shape for name, w in weights.items()}
    {'attention': (1, 2, 3, 3)}
    """
    if not model.built:
        raise ValueError(f"'{model.name}' is not built. Call it once on an input first.")
    if isinstance(model, Attention) and len(inputs) == 1:
        inputs = (inputs[0], inputs[0])
    found: dict[str, np.ndarray] = {}

    def keep(layer: Attention, weights: Any) -> None:
        calls = sum(name.partition(":")[0] == layer.path for name in found)
        found[f"{layer.path}:{calls}" if calls else layer.path] = to_numpy(weights)

    with scope.watched(keep):
        model(*inputs, **call_arguments)
    if not found:
        raise ValueError(f"'{model.name}' called no attention layer of keras_cosattn.")
    return found


def seen_keys(
    t: int,
    s: int | None = None,
    *,
    causal: bool = False,
    query_mask: Any = None,
    key_mask: Any = None,
    segment_ids: Any = None,
) -> np.ndarray:
    """Return where a query may look at a key: bool array of shape `(b or 1, 1, t, s)`.

    Args:
        t: int, number of queries.
        s: int, number of keys. Defaults to None: queries and keys are the same steps.
        causal: bool: query t sees keys s <= t, where only valid steps count. Defaults to `False`.
        query_mask: `(b, t)`, True where a query is valid. If queries and keys are the same steps,
            it is also the default of `key_mask`.
        key_mask: `(b, s)`, True where a key is valid. If t = s, with `causal` and without
            `query_mask` it is the mask of the queries, too, as in a layer.
        segment_ids: `(b, t)`, integers: a step sees its own run of equal ids only. Queries and keys
            are then the same steps.

    Example:
    >>> from keras_cosattn import analysis
    >>> analysis.seen_keys(3, causal=True)[0, 0].astype(int)
    array([[1, 0, 0],
           [1, 1, 0],
           [1, 1, 1]])
    """
    if s is None and key_mask is None:
        key_mask = query_mask
    seen = masks.combined_mask(
        t, s, query_mask=query_mask, value_mask=key_mask, segment_ids=segment_ids, causal=causal
    )
    return np.expand_dims(ops.convert_to_numpy(seen), 1)


def to_numpy(x: Any) -> np.ndarray:
    """Return a float64 array of an array or of any backend's tensor."""
    if not isinstance(x, np.ndarray):
        x = ops.convert_to_numpy(ops.cast(x, "float32"))  # NumPy has no bfloat16
    return np.asarray(x, "float64")
