"""From a model with softmax attention to the same model with another attention."""

from keras_cosattn.convert.outputs import perplexity
from keras_cosattn.convert.passkey import Passkey, passkey_recall
from keras_cosattn.convert.replace import replace_attention
from keras_cosattn.convert.report import ConversionReport, report
from keras_cosattn.convert.transfer import attention_errors, transfer

__all__ = [
    "ConversionReport", "Passkey", "attention_errors", "passkey_recall", "perplexity",
    "replace_attention", "report", "transfer",
]  # fmt: skip
