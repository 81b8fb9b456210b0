"""Positions: layers that add them to the input, and objects for the `position` argument."""

from keras_cosattn.positions.alibi import ALiBi
from keras_cosattn.positions.base import Position
from keras_cosattn.positions.embedding import PositionEmbedding
from keras_cosattn.positions.rotary import Rotary
from keras_cosattn.positions.shaw import Shaw
from keras_cosattn.positions.sinusoidal import Sinusoidal
from keras_cosattn.positions.t5 import T5Bias
from keras_cosattn.positions.transformer_xl import TransformerXL
from keras_cosattn.positions.xpos import XPos

__all__ = [
    "ALiBi",
    "Position",
    "PositionEmbedding",
    "Rotary",
    "Shaw",
    "Sinusoidal",
    "T5Bias",
    "TransformerXL",
    "XPos",
]
