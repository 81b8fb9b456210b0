"""An error where a layer of this package, a layer of Keras 3, is called inside a tf_keras model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import keras

CALL_CONTEXT = "tf_keras.src.engine.base_layer_utils"
"""The module of tf_keras whose `call_context()` says which of its layers is being called."""


class Keras3Only:
    """Mixin of the layers, before `keras.layers.Layer`, that refuses calls inside tf_keras models.

    tf_keras does not train the weights of a layer of Keras 3. Its model would run, and they would
    never change. While tf_keras is not imported, the check is a look into `sys.modules`.
    """

    if not TYPE_CHECKING:

        def __call__(self, *args, **kwargs):
            if "tf_keras" in sys.modules:
                refuse_tf_keras(self, args, kwargs)
            return super().__call__(*args, **kwargs)


def refuse_tf_keras(layer: Any, *arguments: Any) -> None:
    """Raise ValueError if a layer is called by a tf_keras layer, or with one of its tensors.

    Args:
        layer: The layer that is called.
        *arguments: Nests of the arguments of the call.
    """
    caller = _calling_layer()
    if caller is not None:
        where = f"inside {caller.name} ({type(caller).__name__}), a layer of tf_keras"
    elif any(map(_is_of_tf_keras, keras.tree.flatten(arguments))):
        where = "with a symbolic tensor of tf_keras"
    else:
        return
    raise ValueError(
        f"{layer.name} ({type(layer).__name__}) is a layer of Keras 3. It was called {where}. "
        "tf_keras (Keras 2) would not train its weights. Use a layer of "
        "`keras_cosattn.models`, such as `keras_cosattn.models.CosFormerAttention`, which is made "
        "for tf_keras and tf-models-official, or build the whole model with Keras 3."
    )


def _calling_layer() -> Any:
    """Return the tf_keras layer whose `call` is running in this thread, or None."""
    module = sys.modules.get(CALL_CONTEXT)
    context = None if module is None else module.call_context()
    return context.layer if context is not None and context.in_call else None


def _is_of_tf_keras(x: Any) -> bool:
    """Whether the class of `x` is one of tf_keras, as that of its symbolic tensors is."""
    return type(x).__module__.partition(".")[0] == "tf_keras"
