"""The arguments of the blocks that KerasHub's do not have, for type checkers."""

from __future__ import annotations

from typing import Literal

from keras_cosattn.layer_options import LayerOptions

Normalization = Literal["layer", "rms"]


class BlockOptions(LayerOptions, total=False):
    """The keyword-only arguments of `TransformerBlock`."""

    normalization: Normalization
    use_gated_activation: bool
    use_bias: bool
    normalize_outputs: bool
