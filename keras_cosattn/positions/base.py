"""The base classes of the position objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import keras
from keras import ops

from keras_cosattn.component import Component

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.layer_options import LayerOptions

Tensor = Any
Shape = tuple[Any, ...]
"""Sizes of axes; None is unknown."""


class Position(Component):
    """Base class of the objects that an attention layer takes as its `position` argument.

    An attention layer clones the position that it is given, builds the clone with the shape of its
    queries, `(b, t, h, d)`, and calls `encode` and `bias`. A subclass sets `kind` and overrides the
    method of that kind:

    - `"rotation"`: `encode` rotates each query and key by an angle of its position. This also fits
      layers that never compare one query with one key.
    - `"encoding"`: `encode` puts the position into queries and keys, and may change their lengths.
    - `"bias"`: `bias` returns numbers that are added to the scores. This fits layers that compute
      scores.

    A subclass may set `encodes_keys_alone = True` if what `encode` makes of a key does not depend
    on the queries and their positions. A stream then encodes each key once, and not at every step.

    Positions are int32 tensors of shape `(b, t)`, or `(1, t)` if all examples have the same. They
    count the valid steps from 0, up to 2^31 - 1. Weights made with `add_weight` are float32, or
    float64 under the policy `"float64"`.

    Args:
        **kwargs: arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Example:
    A position that subtracts the distance from the scores:

    >>> import keras
    >>> from keras_cosattn import Position, SoftmaxAttention
    >>> from keras_cosattn.positions.base import distances
    >>> class Nearest(Position):
    ...     kind = "bias"
    ...
    ...     def bias(self, q, q_positions, k_positions):
    ...         apart = keras.ops.abs(distances(q_positions, k_positions))
    ...         return -keras.ops.cast(keras.ops.expand_dims(apart, 1), "float32")
    >>> layer = SoftmaxAttention(num_heads=2, key_dim=4, position=Nearest())
    >>> x = keras.ops.ones((1, 3, 8))
    >>> tuple(layer(x, x).shape)
    (1, 3, 8)
    """

    kind: Literal["rotation", "encoding", "bias"] | None = None
    encodes_keys_alone: bool = False

    def prepare(self, positions: Tensor, size: int, dtype: str) -> Tensor:
        """Return what `encode` reads in place of the positions, if it should be computed only once.

        A layer that encodes in a loop over the steps calls this before the loop.

        Args:
            positions: int32 tensor of shape `(b, t)` or `(1, t)`.
            size: the number of features of a query or key.
            dtype: the dtype in which they are encoded, float32 or float64.

        Returns:
            Tensor of shape `(b or 1, t, ...)`. Defaults to the positions.
        """
        return positions

    def encode(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return queries and keys with their positions in them.

        Args:
            q: queries of shape `(b, t, h, d)`.
            k: keys of shape `(b, s, hk, d)`.
            q_positions: int32 tensor of shape `(b, t)` or `(1, t)`, or what `prepare` made of it.
            k_positions: int32 tensor of shape `(b, s)` or `(1, s)`, or what `prepare` made of it.

        Returns:
            The new q and k, in float32 or, for float64 inputs, in float64.
        """
        return q, k

    def bias(self, q: Tensor, q_positions: Tensor, k_positions: Tensor) -> Tensor | None:
        """Return the numbers that are added to the scaled scores, or None if there are none.

        Args:
            q: queries of shape `(b, t, h, d)`, before `encode`.
            q_positions: int32 tensor of shape `(b, t)` or `(1, t)`.
            k_positions: int32 tensor of shape `(b, s)` or `(1, s)`.

        Returns:
            Tensor that broadcasts to `(b, h, t, s)`, in float32 or, for float64 queries, in
            float64.
        """
        return None


class LearnedPosition(Position):
    """Base class of the positions with weights that one initializer makes.

    Each weight has a copy of the initializer, so equal shapes do not give equal numbers.

    Args:
        initializer: initializer of the weights.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(self, initializer: Any, **kwargs: Unpack[LayerOptions]) -> None:
        super().__init__(**kwargs)
        self.initializer = keras.initializers.get(initializer)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "initializer": keras.initializers.serialize(self.initializer),
        }

    def _constructor_arguments(self) -> dict[str, Any]:
        # The initializer itself: a function that is not registered can be cloned, but not saved.
        return {**self.get_config(), "initializer": self.initializer}


def distances(q_positions: Tensor, k_positions: Tensor) -> Tensor:
    """Return `t - s` for each query and key: int32 tensor of shape `(b or 1, t, s)`.

    Args:
        q_positions: int32 tensor of shape `(b, t)` or `(1, t)`.
        k_positions: int32 tensor of shape `(b, s)` or `(1, s)`.
    """
    return ops.expand_dims(q_positions, 2) - ops.expand_dims(k_positions, 1)
