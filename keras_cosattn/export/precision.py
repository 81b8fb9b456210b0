"""A model that computes in half precision, again in float32: no device format takes it else."""

import keras


def in_float32(model, sample=None):
    """`model` itself, or if it computes in anything but float32 a copy that does, same weights.

    Raises ValueError if it cannot be built again from its configuration.
    """
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


def _with_dtype(config):
    """A configuration with float32 wherever it says half."""
    if isinstance(config, dict):
        if str(config.get("class_name", "")).endswith("DTypePolicy"):
            return "float32"
        return {key: _with_dtype(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [_with_dtype(value) for value in config]
    halves = ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16")
    return "float32" if config in halves else config
