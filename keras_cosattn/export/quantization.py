"""The ways to quantise a TFLite file, one class for each."""

from __future__ import annotations

import importlib.util
import pathlib
import pickle
import tempfile
from collections.abc import Sequence
from typing import Any, ClassVar

from keras_cosattn.export.calibration import Call
from keras_cosattn.export.child_process import last_lines, run_program
from keras_cosattn.export.export_options import QuantizationName, TargetName
from keras_cosattn.export.tflite_graph import TFLiteGraph

PRODUCTS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
"""Ops that multiply by weights."""

Configuration = tuple[str, tuple[str, ...], dict[str, Any]]
"""A call of LiteRT's quantizer: the name of the method, its arguments and its options."""


class QuantizationScheme:
    """A way to quantise: by TensorFlow's converter, or after it by LiteRT's quantizer.

    Attributes:
        name: The name, for `to_tflite(quantize=...)`.
        least_sqnr: The SQNR in dB that a file must have.
        calibrated: Whether the ranges of the numbers are read from data.
        uses_quantizer: Whether LiteRT's quantizer is needed.
    """

    name: ClassVar[QuantizationName]
    least_sqnr: ClassVar[float]
    calibrated: ClassVar[bool] = False
    uses_quantizer: ClassVar[bool] = True

    def check_installed(self) -> None:
        """Raise ImportError if a package is missing."""
        if self.uses_quantizer and importlib.util.find_spec("litert_quantizer") is None:
            raise ImportError(
                f"quantize='{self.name}' uses LiteRT's quantizer: pip install litert-quantizer"
            )

    def configure(self, converter: Any, target: TargetName) -> None:
        """Set what TensorFlow's converter does."""

    def rewrite(
        self, content: bytes, target: TargetName, calibration: Sequence[Call] | None
    ) -> bytes:
        """The bytes of the quantised model.

        Args:
            content: bytes. The model as the converter wrote it.
            target: str. The name of the target.
            calibration: Inputs of the signatures, if the scheme is calibrated.
        """
        return content


class Float16(QuantizationScheme):
    """Weights in float16, half the size. The file computes in float32.

    LiteRT's quantizer makes it. TensorFlow's converter would round the small constants of the graph
    too, so that a guard against a division by zero would become zero.
    """

    name = "float16"
    least_sqnr = 40.0

    def rewrite(
        self, content: bytes, target: TargetName, calibration: Sequence[Call] | None
    ) -> bytes:
        options = {"num_bits": 16, "algorithm_key": "float_casting"}
        return _quantize(content, _weights_only(options))


class DynamicInt8(QuantizationScheme):
    """Weights in int8, and their other operand in int8 with the range of the moment."""

    name = "dynamic_int8"
    least_sqnr = 15.0
    uses_quantizer = False

    def configure(self, converter: Any, target: TargetName) -> None:
        import tensorflow as tf

        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if target == "tflite-runtime":  # the per-channel op is of a later version
            converter._experimental_disable_per_channel_quantization_for_dense_layers = True


class WeightInt8(QuantizationScheme):
    """Weights in int8, a quarter of the size. The file computes in float32."""

    name = "weight_int8"
    least_sqnr = 20.0

    def rewrite(
        self, content: bytes, target: TargetName, calibration: Sequence[Call] | None
    ) -> bytes:
        # tflite-micro dequantises all channels with the scale of the first one.
        granularity = "TENSORWISE" if target == "micro" else "CHANNELWISE"
        return _quantize(content, _weights_only({"num_bits": 8, "granularity": granularity}))


class Int8(QuantizationScheme):
    """Dense and convolution layers in int8 with ranges that were seen on representative data.

    The core of the attention, norms and the state stay in float32: sums that grow with the input
    fit no range that was seen, and a quotient of sums has no int8 form in TFLite.
    """

    name = "int8"
    least_sqnr = 10.0
    calibrated = True

    def rewrite(
        self, content: bytes, target: TargetName, calibration: Sequence[Call] | None
    ) -> bytes:
        if "WHILE" in TFLiteGraph(content).ops():
            raise ValueError(
                f"The ranges of quantize='{self.name}' cannot be read inside a loop, and the model "
                "has one (WHILE). Use 'weight_int8' or 'dynamic_int8', which need none."
            )
        options = {
            "activation_num_bits": 8, "weight_num_bits": 8, "weight_granularity": "TENSORWISE",
        }  # fmt: skip
        calls = [("add_static_config", (".*", op), options) for op in PRODUCTS]
        return _quantize(content, calls, calibration)


QUANTIZATIONS: dict[str, type[QuantizationScheme]] = {
    scheme.name: scheme for scheme in (Float16, DynamicInt8, WeightInt8, Int8)
}


def get_quantization(
    quantize: QuantizationName | QuantizationScheme | None,
    supported: Sequence[str | None],
    target: str,
) -> QuantizationScheme | None:
    """Return the scheme for a name, an object or `None`.

    Args:
        quantize: The name, an object, or `None` for float32.
        supported: The names that the target runs.
        target: str. The name of the target.

    Raises:
        ValueError: If the target does not run it.
    """
    if quantize is None:
        return None
    if isinstance(quantize, str) and quantize in QUANTIZATIONS and quantize in supported:
        return QUANTIZATIONS[quantize]()
    if isinstance(quantize, QuantizationScheme) and quantize.name in supported:
        return quantize
    raise ValueError(
        f"`quantize` must be one of {tuple(supported)} for the target '{target}'. "
        f"Received: {quantize!r}"
    )


def _weights_only(options: dict[str, Any]) -> list[Configuration]:
    operations = (*PRODUCTS, "EMBEDDING_LOOKUP")
    return [("add_weight_only_config", (".*", op), options) for op in operations]


def _quantize(
    content: bytes,
    configurations: Sequence[Configuration],
    calibration: Sequence[Call] | None = None,
) -> bytes:
    """The bytes of a model that LiteRT's quantizer changed, in a process of its own."""
    request = {
        "content": content, "configurations": configurations, "calibration": calibration,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "request.pickle").write_bytes(pickle.dumps(request))
        found = run_program("quantize_with_litert", name)
        if found.returncode:
            raise ValueError(
                f"LiteRT's quantizer cannot quantise the model. It says: {last_lines(found)}"
            )
        return (folder / "quantized.tflite").read_bytes()
