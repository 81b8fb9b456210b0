"""Keras models as files that run without Keras: SavedModel for servers, TFLite for devices."""

from keras_cosattn.export.datasets import representative_data
from keras_cosattn.export.file_metadata import describe
from keras_cosattn.export.quantization import (
    DynamicInt8,
    Float16,
    Int8,
    QuantizationScheme,
    WeightInt8,
)
from keras_cosattn.export.report import Report
from keras_cosattn.export.saved_model import to_saved_model
from keras_cosattn.export.targets import GPU, LiteRT, Micro, TFLiteRuntime
from keras_cosattn.export.tflite import to_tflite
from keras_cosattn.export.tokenizers import ByteTokenizer, WordPieceTokenizer
from keras_cosattn.export.verification import verify

__all__ = [
    "GPU",
    "ByteTokenizer",
    "DynamicInt8",
    "Float16",
    "Int8",
    "LiteRT",
    "Micro",
    "QuantizationScheme",
    "Report",
    "TFLiteRuntime",
    "WeightInt8",
    "WordPieceTokenizer",
    "describe",
    "representative_data",
    "to_saved_model",
    "to_tflite",
    "verify",
]
