"""TensorFlow's conversion of a plan's signatures to TFLite."""

from __future__ import annotations

import tempfile

from keras_cosattn.export.export_options import TargetName
from keras_cosattn.export.export_plan import ExportPlan
from keras_cosattn.export.quantization import QuantizationScheme
from keras_cosattn.export.saved_model_archive import write_signatures


def convert(plan: ExportPlan, target: TargetName, scheme: QuantizationScheme | None) -> bytes:
    """Return the bytes of a TFLite model with the signatures of a plan.

    Args:
        plan: What the file holds.
        target: str. The name of the target.
        scheme: The quantisation, which may set what the converter does; `None` is float32.

    Raises:
        ValueError: If the converter has no builtin ops for the model, or the model has lookup
            tables.
    """
    import tensorflow as tf
    from tensorflow.lite.python.convert import ConverterError

    with tempfile.TemporaryDirectory() as folder:
        write_signatures(plan, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=list(plan.functions)
        )
        if plan.options.state_form == "variables":
            converter.experimental_enable_resource_variables = True
        if scheme is not None:
            scheme.configure(converter, target)
        try:
            return converter.convert()
        except ConverterError as error:
            raise ValueError(
                f"TensorFlow's converter cannot write '{plan.named.name}' with TFLite's builtin "
                f"ops. {_reason(str(error))} Use layers whose ops are builtin, or fix `length` and "
                "`batch_size`: with fixed sizes more ops are."
            ) from error


def _reason(message: str) -> str:
    """The lines of the converter's message that name ops, or its first line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    named = [line for line in lines if line.startswith(("Flex ops:", "Custom ops:", "tf."))]
    return f"It says: {'; '.join(dict.fromkeys(named or lines[:1]))}."
