"""Smaller numbers for the weights, and for what goes through them: one class for each way."""

import numpy as np

from keras_cosattn.export.graph import Graph

PRODUCTS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
"""Ops that multiply by weights."""


class _Way:
    """One way to make numbers smaller: with TensorFlow's converter, or after it."""

    calibrated = False

    def configure(self, converter, target):
        """Set what TensorFlow's converter is to do."""

    def rewrite(self, content, target, calibration):
        """The bytes of the model quantised, if the converter did not."""
        return content


class Float16(_Way):
    """Weights in float16, half the size; computed in float32.

    By LiteRT's quantizer: TensorFlow's converter rounds the small constants of the graph too, so
    that a guard against dividing by zero becomes zero.
    """

    name = "float16"
    least_sqnr = 40.0

    def rewrite(self, content, target, calibration):
        return _weights_only(content, num_bits=16, algorithm_key="float_casting")


class DynamicInt8(_Way):
    """Weights in int8, and what they multiply, with the range that it has at that moment."""

    name = "dynamic_int8"
    least_sqnr = 15.0

    def configure(self, converter, target):
        import tensorflow as tf

        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if target.name == "tflite-runtime":  # the per-channel op is of a later version
            converter._experimental_disable_per_channel_quantization_for_dense_layers = True


class WeightInt8(_Way):
    """Weights in int8, a quarter of the size; computed in float32."""

    name = "weight_int8"
    least_sqnr = 20.0

    def rewrite(self, content, target, calibration):
        # tflite-micro turns all channels back with the first one's scale.
        scales = "TENSORWISE" if target.name == "micro" else "CHANNELWISE"
        return _weights_only(content, num_bits=8, granularity=scales)


class Int8(_Way):
    """Dense and convolution layers in int8 with ranges seen on representative data.

    The attention's core, norms and state stay in float32: sums that grow with the input fit no
    range that was seen, and a quotient of sums has no int8 form in TFLite.
    """

    name = "int8"
    least_sqnr = 10.0
    calibrated = True

    def rewrite(self, content, target, calibration):
        if "WHILE" in Graph(content).ops():
            raise ValueError(
                f"The ranges of quantize='{self.name}' cannot be read inside a loop, and the model "
                "has one (WHILE). Use 'weight_int8' or 'dynamic_int8', which need none."
            )
        quantizer = _quantizer(content)
        for operation in PRODUCTS:
            quantizer.add_static_config(
                ".*", operation, activation_num_bits=8, weight_num_bits=8,
                weight_granularity="TENSORWISE",
            )  # fmt: skip
        return bytes(quantizer.quantize(_ranges(quantizer, calibration)).quantized_model)


QUANTIZATIONS = {way.name: way for way in (Float16, DynamicInt8, WeightInt8, Int8)}


def get(quantize, target):
    """An object for a name, or None for None. Raises ValueError if the target does not run it."""
    name = getattr(quantize, "name", quantize)
    if name not in target.quantizations:
        raise ValueError(
            f"`quantize` must be one of {target.quantizations} for the target '{target.name}'. "
            f"Received: {quantize!r}"
        )
    return QUANTIZATIONS[name]() if isinstance(quantize, str) else quantize


def _weights_only(content, **options):
    quantizer = _quantizer(content)
    for operation in (*PRODUCTS, "EMBEDDING_LOOKUP"):
        quantizer.add_weight_only_config(".*", operation, **options)
    return bytes(quantizer.quantize().quantized_model)


def _quantizer(content):
    try:
        from litert_quantizer.quantizer import Quantizer
    except ImportError as error:
        raise ImportError(
            "`quantize` with int8 weights uses LiteRT's quantizer: pip install "
            "'keras-cosattn[quantize]'"
        ) from error
    return Quantizer(bytearray(content))


def _ranges(quantizer, calibration):
    """Tensor name -> smallest and largest value seen. (Its own calibration averages the extremes
    over the samples, which clips what rarely happens.)
    """
    merged = {}
    for signature, inputs in calibration:
        for name, seen in quantizer.calibrate({signature: [inputs]}).items():
            if name in merged and "min" in seen:
                low, high = merged[name]["min"], merged[name]["max"]
                seen = {"min": np.minimum(low, seen["min"]), "max": np.maximum(high, seen["max"])}
            merged[name] = {**merged.get(name, {}), **seen}
    return merged
