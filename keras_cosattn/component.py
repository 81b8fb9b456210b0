"""The base class of objects that a user passes to a layer: positions and feature maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras

if TYPE_CHECKING:
    from typing_extensions import Self


class Component(keras.layers.Layer):
    """Base class of the objects with weights that a layer takes as an argument.

    A layer that takes a component uses a clone of it, so one object may be passed to many layers:
    each of them has weights of its own. Weights are float32 under every dtype policy, and float64
    under the policy `"float64"`.
    """

    def clone(self, dtype: Any = None) -> Self:
        """Return a new object with the same configuration, which is not built.

        Args:
            dtype: dtype policy of the new object. Defaults to the policy of this object.
        """
        arguments = self._constructor_arguments()
        if dtype is not None:
            arguments["dtype"] = dtype
        return type(self).from_config(arguments)

    def add_weight(self, *args: Any, initializer: Any = None, **options: Any) -> Any:
        """Add a weight in float32, or in float64, with an initializer of its own."""
        if isinstance(initializer, keras.initializers.Initializer):
            initializer = initializer.clone()
        options["dtype"] = "float64" if self.variable_dtype == "float64" else "float32"
        options["autocast"] = False
        return super().add_weight(*args, initializer=initializer, **options)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that all layers have; a subclass adds its own.

        Without this method Keras would save the arguments of the constructor as they were given.
        """
        return super().get_config()

    def _constructor_arguments(self) -> dict[str, Any]:
        return self.get_config()
