"""Feature maps with arguments or weights of their own: `phi(q) . phi(k)` replaces `exp(q . k)`.

Feature maps without either are functions in `ops/pointwise_features.py`. All of them compute in
float32, or in float64 for float64 inputs.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_cosattn.component import Component
from keras_cosattn.ops import arrays, pointwise_features, random_features
from keras_cosattn.ops.arguments import integer

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from keras_cosattn.layer_options import LayerOptions

Tensor = Any
Shape = tuple[Any, ...]


class FeatureMap(Component):
    """Base class of the feature maps with weights, which map queries and keys together.

    A layer clones the feature map that it is given, and builds the clone with the shapes of q,
    `(b, t, h, d)`, and k, `(b, s, hk, d)`. A subclass overrides `build`, `call` and `size`. If each
    step is mapped by itself, the cost is linear in time, O(t). Weights made with `add_weight` are
    float32, or float64 under the policy `"float64"`.

    Args:
        **kwargs: arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Raises:
        ValueError: If there is an `activity_regularizer`.

    Example:
    >>> import keras
    >>> from keras_cosattn import FeatureMap, LinearAttention
    >>> class Scaled(FeatureMap):
    ...     def build(self, queries_shape, keys_shape):
    ...         self.scale = self.add_weight(shape=(), initializer="ones")
    ...
    ...     def call(self, queries, keys):
    ...         return tuple(keras.ops.exp(self.scale * x) for x in (queries, keys))
    ...
    ...     def size(self, key_dim):
    ...         return key_dim
    >>> layer = LinearAttention(num_heads=2, key_dim=4, feature_map=Scaled())
    >>> x = keras.ops.ones((1, 3, 8))
    >>> tuple(layer(x, x).shape)
    (1, 3, 8)
    """

    def __init__(self, **kwargs: Unpack[LayerOptions]) -> None:
        super().__init__(autocast=False, **kwargs)
        if self.activity_regularizer is not None:
            raise ValueError(
                "`activity_regularizer` must be None: a causal layer maps queries and keys in a "
                "loop. Add a loss to what the layer returns, or regularise its kernels. "
                f"Received: activity_regularizer={self.activity_regularizer}"
            )

    def call(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return `(phi(queries), phi(keys))`, of shapes `(b, t, h, f)` and `(b, s, hk, f)`."""
        raise NotImplementedError(f"{type(self).__name__} must override `call`.")

    def size(self, key_dim: int) -> int:
        """Return f, the number of features of a head of size `key_dim`."""
        raise NotImplementedError(f"{type(self).__name__} must override `size`.")

    def compute_output_shape(self, queries_shape: Shape, keys_shape: Shape) -> tuple[Shape, ...]:
        return tuple((*shape[:-1], self.size(shape[-1])) for shape in (queries_shape, keys_shape))


@keras.saving.register_keras_serializable("keras_cosattn")
class HedgehogFeatures(FeatureMap):
    """Hedgehog: `phi(x) = [exp(W x + b), exp(-W x - b)]`, learned for each head.

    Queries and keys have a W and b each, one per head (for keys: per key head), which start as the
    identity and zero. q of shape `(b, t, h, d)` has 2 d features, and so has k of shape
    `(b, s, hk, d)`. The cost is O((t + s) d^2) for each head.

    Differences from the paper: the features are float32 under every dtype policy, or float64, and
    the exponents of keys are clipped to the range from -40 to 30, where sums stay in the range of
    float32. The paper's other way to be safe is `normalized=True`. To distil softmax attention as
    in the paper, add a loss on the weights that the layer returns with
    `return_attention_scores=True`.

    Args:
        normalized: bool. If True, `phi(x) = [softmax(W x + b), softmax(-W x - b)]`. Features are
            then at most 1, and the lengths of q and k count for less. Defaults to `False`.
        **kwargs: arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Example:
    >>> import keras
    >>> from keras_cosattn import HedgehogFeatures, LinearAttention
    >>> layer = LinearAttention(num_heads=2, key_dim=4, feature_map=HedgehogFeatures())
    >>> x = keras.ops.ones((1, 3, 8))
    >>> tuple(layer(x, x).shape)
    (1, 3, 8)

    Reference:
        - [Zhang et al., 2024 (The Hedgehog & the Porcupine)](https://arxiv.org/abs/2402.04347),
          section 4
    """

    def __init__(self, normalized: bool = False, **kwargs: Unpack[LayerOptions]) -> None:
        super().__init__(**kwargs)
        self.normalized = normalized

    def build(self, queries_shape: Shape, keys_shape: Shape) -> None:
        self.query_map = self._add_map("query", *queries_shape[2:])
        self.key_map = self._add_map("key", *keys_shape[2:])

    def call(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        queries, keys = _affine(queries, *self.query_map), _affine(keys, *self.key_map)
        if self.normalized:
            return _both_softmaxes(queries), _both_softmaxes(keys)
        queries, keys = (ops.concatenate([x, -x], axis=-1) for x in (queries, keys))
        return pointwise_features.exp_of_queries(queries), pointwise_features.exp_of_keys(keys)

    def size(self, key_dim: int) -> int:
        return 2 * key_dim

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "normalized": self.normalized}

    def _add_map(self, name: str, heads: int, d: int) -> tuple[Tensor, Tensor]:
        def identity(shape: Shape, dtype: Any) -> Tensor:
            # On PyTorch a broadcast tensor shares its memory, so it could not be loaded into.
            return ops.tile(ops.eye(d, dtype=dtype), (*shape[:-2], 1, 1))

        kernel = self.add_weight(
            name=f"{name}_feature_kernel", shape=(heads, d, d), initializer=identity
        )
        bias = self.add_weight(name=f"{name}_feature_bias", shape=(heads, d), initializer="zeros")
        return kernel, bias


def _affine(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Return `W x + b` of each head, in float32 or float64."""
    x = arrays.accumulate(x)
    kernel, bias = (ops.cast(weight, x.dtype) for weight in (kernel, bias))
    return ops.einsum("bthd,hdf->bthf", x, kernel) + bias


def _both_softmaxes(x: Tensor) -> Tensor:
    return ops.concatenate([ops.softmax(x, axis=-1), ops.softmax(-x, axis=-1)], axis=-1)


@dataclasses.dataclass(frozen=True)
class _Configured:
    """Base class of the feature maps without weights: dataclasses that Keras can save."""

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Return an object with these arguments."""
        return cls(**config)

    def clone(self) -> Self:
        """Return a new object with the same arguments."""
        return dataclasses.replace(self)


@keras.saving.register_keras_serializable("keras_cosattn")
@dataclasses.dataclass(frozen=True)
class DPFPFeatures(_Configured):
    """Deterministic, parameter-free projection: `r_i r_(i + j)`, `r = relu([x, -x])`, j = 1 .. nu.

    Heads of size d have 2 d nu features, most of them zero, so that keys interfere less. The cost
    is O(t d nu) for each head. A query may share no feature with any key; its output is then zero.

    Args:
        nu: int, the largest distance between the factors of a product. Defaults to `1`.

    Call arguments:
        x: tensor of shape `(b, t, h, d)`.

    Returns:
        Tensor of shape `(b, t, h, 2 d nu)`, in float32 or float64.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import DPFPFeatures
    >>> tuple(DPFPFeatures(nu=2)(np.ones((1, 3, 1, 4))).shape)
    (1, 3, 1, 16)

    Reference:
        - [Schlag et al., 2021 (Linear Transformers Are Secretly Fast Weight Programmers)](
          https://arxiv.org/abs/2102.11174), equation 37
    """

    nu: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "nu", integer("nu", self.nu))

    def __call__(self, x: Tensor) -> Tensor:
        return pointwise_features.dpfp(x, self.nu)


@keras.saving.register_keras_serializable("keras_cosattn")
@dataclasses.dataclass(frozen=True)
class PositiveFeatures(_Configured):
    """FAVOR+: `phi_i(x) = exp(w_i . x - |x|^2 / 2)` for x scaled by `d^(-1/4)`; m features.

    Every weight is positive, and its mean over the draws of w is `exp(q . k / sqrt(d))`. The cost
    is O(t d m) for each head.

    Call arguments:
        queries: tensor of shape `(b, t, h, d)`.
        keys: tensor of shape `(b, s, hk, d)`.
        projection: tensor of shape `(d, m)`, the directions w_i.

    Returns:
        Tensors of shape `(b, t, h, m)` and `(b, s, hk, m)`, in float32 or float64.

    Example:
    >>> from keras_cosattn import PerformerAttention, PositiveFeatures
    >>> layer = PerformerAttention(num_heads=2, key_dim=4, features=PositiveFeatures())

    Reference:
        - [Choromanski et al., 2021 (Rethinking Attention with Performers)](
          https://arxiv.org/abs/2009.14794), lemma 1
    """

    def size(self, num_random_features: int) -> int:
        """Return the number of features."""
        return num_random_features

    def __call__(self, queries: Tensor, keys: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
        return (
            random_features.positive_query_features(queries, projection),
            random_features.positive_key_features(keys, projection),
        )


@keras.saving.register_keras_serializable("keras_cosattn")
@dataclasses.dataclass(frozen=True)
class TrigonometricFeatures(_Configured):
    """Random Fourier features: `phi(x) = [sin(w_i . x), cos(w_i . x)]` for x of length 1 / sigma.

    There are 2 m features. Queries and keys count by their direction only. The mean of a weight
    over the draws of w is `exp(-|q - k|^2 / 2) = exp(q . k) / exp(1 / sigma^2)`; single weights may
    be negative, and the output is large where they nearly cancel. The cost is O(t d m) for each
    head.

    Args:
        sigma: float: the smaller it is, the more the direction counts, and the more features are
            needed. Defaults to `1.0`.

    Call arguments:
        queries: tensor of shape `(b, t, h, d)`.
        keys: tensor of shape `(b, s, hk, d)`.
        projection: tensor of shape `(d, m)`, the directions w_i.

    Returns:
        Tensors of shape `(b, t, h, 2 m)` and `(b, s, hk, 2 m)`, in float32 or float64.

    Example:
    >>> from keras_cosattn import PerformerAttention, TrigonometricFeatures
    >>> features = TrigonometricFeatures(sigma=2.0)
    >>> layer = PerformerAttention(num_heads=2, key_dim=4, features=features)

    Reference:
        - [Peng et al., 2021 (Random Feature Attention)](https://arxiv.org/abs/2103.02143), section
          3.1
    """

    sigma: float = 1.0

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"`sigma` must be positive. Received: sigma={self.sigma!r}")

    def size(self, num_random_features: int) -> int:
        """Return the number of features."""
        return 2 * num_random_features

    def __call__(self, queries: Tensor, keys: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(
            random_features.trigonometric_features(x, projection, self.sigma)
            for x in (queries, keys)
        )
