"""Another attention in the place of a layer's attention, with the weights that both have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras.layers import Layer

from keras_cosattn.attention import Attention
from keras_cosattn.convert.weights import PROJECTIONS, assign, by_name, keep_frozen
from keras_cosattn.transformer import TransformerEncoder

Replacement = Attention | Callable[[Any], Attention]

SIZES = (
    "num_heads", "key_dim", "value_dim", "num_key_value_heads", "use_bias", "use_gate",
    "output_shape", "attention_axes", "use_query_key_norm", "query_key_norm_epsilon",
)  # fmt: skip
"""Arguments that the weights of the old layer decide."""

PARTS = {"use_gate": (), "use_query_key_norm": ("query_key_norm_epsilon",)}
"""Those of them that a new layer may have where the old one does not, and what belongs to them."""

TRAINING = ("dropout", "seed", *(f"{part}_{kind}" for part in ("kernel", "bias")
                                 for kind in ("regularizer", "constraint")),
            "activity_regularizer")  # fmt: skip
"""Arguments that a new layer has from the old one unless they are given."""


def exchange(layer: Layer, attention: Replacement) -> Layer:
    """Return a new built layer, like `layer` but for its attention.

    Args:
        layer: A built attention layer or transformer block of this package, or a sequential model
            of blocks and other layers, which keeps the other layers.
        attention: As in `replace_attention`.
    """
    if isinstance(layer, keras.Sequential):
        parts = [
            exchange(part, attention) if isinstance(part, TransformerEncoder) else part
            for part in layer.layers
        ]
        new = keras.Sequential(parts, name=layer.name)
        new.build(layer.input_shape)
        keep_frozen(new, layer)
        return new
    if isinstance(layer, Attention):
        return _built_like(_make(attention, layer), layer)
    config = layer.get_config()
    config["attention"] = _serialized(_make(attention, layer.self_attention))
    if getattr(layer, "cross_attention", None) is not None:
        config["cross_attention"] = _serialized(layer.cross_attention)
    return _built_like(type(layer).from_config(config), layer)


def _make(attention: Replacement, old: Attention) -> Attention:
    """Return the layer that takes the place of `old`, not built."""
    if not isinstance(attention, Attention):
        new = attention(old)
        if not isinstance(new, Attention):
            raise ValueError(
                "`attention` must be an attention layer of keras_cosattn, or a function that "
                f"returns one for each old layer. For '{old.name}' it returned: {new!r}"
            )
        return type(new).from_config({**new.get_config(), "name": old.name})
    one = _first_path(old)
    whole = {name: getattr(old, name) for name in ("name", "trainable", "attention_axes")}
    config, given = attention.get_config(), {**one.get_config(), **whole}
    if given.get("use_query_key_norm") and not attention.accepts_query_key_norm:
        raise ValueError(
            f"'{old.name}' normalises its queries and keys (`use_query_key_norm`), which "
            f"{type(attention).__name__} cannot do. Give another layer as `attention`, or a "
            "function that returns this one, without the norms."
        )
    own = {x for name, more in PARTS.items() for x in (name, *more)
           if config.get(name) and not given.get(name)}  # fmt: skip
    config |= {name: given[name] for name in SIZES if name in config and name not in own}
    config |= {name: given.get(name) for name in TRAINING if name in config and not config[name]}
    config |= {name: given[name] for name in ("name", "dtype", "trainable")}
    kind = getattr(one.position, "kind", None)
    if config.get("position") is None and kind in type(attention).accepts_positions:
        config["position"] = given["position"]
    if config.get("sliding_window") is None and type(attention).accepts_sliding_window:
        config["sliding_window"] = given["sliding_window"]
    if "logit_soft_cap" in config and config["logit_soft_cap"] is None:
        config["logit_soft_cap"] = given.get("logit_soft_cap")
    return type(attention).from_config(config)


def _built_like(new: Any, old: Any) -> Layer:
    new.build_from_config(old.get_build_config())
    if isinstance(new, Attention):
        _take_shared(new, old)
    else:
        around = {n: x for n, x in by_name(old).items() if not n.startswith("self_attention/")}
        assign(new, around)
        _take_shared(new.self_attention, old.self_attention)
    keep_frozen(new, old)
    return new


def _take_shared(new: Any, old: Any) -> None:
    """Give a layer, and each path of a `RoutedAttention`, the projections of another layer.

    With them goes what its position has learned, if the new layer has the same.
    """
    names, old = {*PROJECTIONS}, _first_path(old)
    if old.position is not None and new.position is not None:
        positions = [layer.get_config()["position"] for layer in (new, old)]
        names |= {old.position.name} if positions[0] == positions[1] else set()
    values = {name: x for name, x in by_name(old).items() if name.split("/")[0] in names}
    for layer in (new, *getattr(new, "paths", ())):
        assign(layer, values)


def _first_path(layer: Any) -> Any:
    """The first path of a `RoutedAttention`, whose sizes and projections stay; else the layer."""
    paths = getattr(layer, "paths", None)
    return _first_path(paths[0]) if paths else layer


def _serialized(layer: Attention) -> dict[str, Any]:
    """The saved form of a layer for a block, which builds its own copy."""
    config = keras.saving.serialize_keras_object(layer)
    config.pop("build_config", None)
    return config
