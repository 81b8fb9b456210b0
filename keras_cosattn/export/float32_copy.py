"""A copy in float32 of a model that computes in another precision."""

from __future__ import annotations

from typing import Any

import keras

OTHER_FLOATS = ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16", "float64")


def in_float32(model: keras.Model, sample: Any = None) -> keras.Model:
    """Return the model, or a copy in float32 with the same weights.

    Args:
        model: A built Keras model.
        sample: Inputs to build the copy with; only a subclassed model needs them.

    Raises:
        ValueError: If the model was quantised by Keras, or if it cannot be built again from its
            configuration.
    """
    _refuse_quantized(model)
    dtypes = {layer.compute_dtype for layer in model._flatten_layers()}
    if dtypes <= {"float32", None}:
        return model
    config = _with_dtype(keras.saving.serialize_keras_object(model))
    try:
        copy = keras.saving.deserialize_keras_object(config, safe_mode=False)
        if not copy.built:
            copy(sample)
        copy.set_weights(model.get_weights())
    except Exception as error:
        raise ValueError(
            f"TFLite files compute in float32. '{model.name}' computes in {sorted(dtypes)}, and "
            "could not be built again in float32 from its configuration. Build it with "
            f"dtype='float32' and use `set_weights`. {error}"
        ) from error
    return copy


def _refuse_quantized(model: keras.Model) -> None:
    """Raise ValueError if `Model.quantize` changed a layer."""
    found = {
        layer.name: layer.quantization_mode
        for layer in model._flatten_layers()
        if getattr(layer, "quantization_mode", None) is not None
    }
    if found:
        name, mode = next(iter(found.items()))
        raise ValueError(
            f"'{model.name}' was quantised by `model.quantize({mode!r})`: its layer '{name}' and "
            f"{len(found) - 1} others. TFLite has no such layers, and `to_tflite` quantises by "
            "itself. Give the model as it was before `quantize`, and quantize='weight_int8', "
            "'dynamic_int8' or 'int8'."
        )


def _with_dtype(config: Any) -> Any:
    """The configuration with float32 in place of every other float type."""
    if isinstance(config, dict):
        if str(config.get("class_name", "")).endswith("DTypePolicy"):
            return "float32"
        return {key: _with_dtype(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [_with_dtype(value) for value in config]
    return "float32" if config in OTHER_FLOATS else config
