"""Feature maps with arguments or weights of their own: `phi(q) . phi(k)` for `exp(q . k)`.

Those without either are functions in `ops/pointwise_features.py`.
"""

import keras
from keras import ops

from keras_cosattn.ops import arrays, pointwise_features, random_features


class FeatureMap(keras.layers.Layer):
    """Base of the maps with weights, which see queries and keys together.

    A layer makes a map of its own from the configuration of the one it is given, and builds it with
    the shapes of q `(b, t, h, d)` and k `(b, s, hk, d)`. A map fills in `build`, `call` and `size`.
    Linear in time if each step is mapped by itself, O(t); weights made with `add_weight` are
    float32 whatever the policy.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def call(self, queries, keys):
        """`(phi(queries), phi(keys))`: `(b, t, h, f)`, `(b, s, hk, f)`."""
        raise NotImplementedError(f"{type(self).__name__} must fill in `call`.")

    def size(self, key_dim):
        """f, for heads of size d."""
        raise NotImplementedError(f"{type(self).__name__} must fill in `size`.")

    def compute_output_shape(self, queries_shape, keys_shape):
        return tuple((*shape[:-1], self.size(shape[-1])) for shape in (queries_shape, keys_shape))

    def add_weight(self, **options):
        return super().add_weight(**options, dtype="float32", autocast=False)


@keras.saving.register_keras_serializable("keras_cosattn")
class HedgehogFeatures(FeatureMap):
    """Hedgehog: `phi(x) = [exp(W x + b), exp(-W x - b)]`, learned for each head.

    Queries and keys have a W and b each, one per head (of keys: per key head), which start as the
    identity and zero. q `(b, t, h, d)`, k `(b, s, hk, d)` -> `(b, t, h, 2 d)`, `(b, s, hk, 2 d)`.
    O((t + s) d^2) per head. Zhang et al., 2024 (The Hedgehog & the Porcupine), section 4.

    Where we leave the paper: float32 whatever the policy, and the exponents of keys are held within
    -40 and 30, where sums stay in its range. The paper's other way to be safe is `normalized=True`.
    Its distillation from softmax attention is a loss of your own on the weights,
    `return_attention_scores=True`.

    Args:
        normalized: `phi(x) = [softmax(W x + b), softmax(-W x - b)]`. Features are then at most 1,
            and the lengths of q and k count for less.
    """

    def __init__(self, normalized=False, **kwargs):
        super().__init__(**kwargs)
        self.normalized = normalized

    def build(self, queries_shape, keys_shape):
        self.query_map = self._add_map("query", *queries_shape[2:])
        self.key_map = self._add_map("key", *keys_shape[2:])

    def call(self, queries, keys):
        queries, keys = _mapped(queries, *self.query_map), _mapped(keys, *self.key_map)
        if self.normalized:
            return tuple(
                ops.concatenate([ops.softmax(x, axis=-1), ops.softmax(-x, axis=-1)], axis=-1)
                for x in (queries, keys)
            )
        queries, keys = (ops.concatenate([x, -x], axis=-1) for x in (queries, keys))
        return pointwise_features.exp_of_queries(queries), pointwise_features.exp_of_keys(keys)

    def size(self, key_dim):
        return 2 * key_dim

    def get_config(self):
        return {**super().get_config(), "normalized": self.normalized}

    def _add_map(self, name, heads, d):
        def identity(shape, dtype):
            return ops.broadcast_to(ops.eye(d, dtype=dtype), shape)

        kernel = self.add_weight(
            name=f"{name}_feature_kernel", shape=(heads, d, d), initializer=identity
        )
        bias = self.add_weight(name=f"{name}_feature_bias", shape=(heads, d), initializer="zeros")
        return kernel, bias


def _mapped(x, kernel, bias):
    return ops.einsum("bthd,hdf->bthf", arrays.accumulate(x), kernel) + bias


class _Configured:
    """A function whose arguments are saved with it."""

    def get_config(self):
        """The arguments, for Keras to save."""
        return dict(vars(self))

    @classmethod
    def from_config(cls, config):
        """The same function again."""
        return cls(**config)

    def __repr__(self):
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({arguments})"

    def __eq__(self, other):
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self):
        return hash((type(self), *sorted(vars(self).items())))


@keras.saving.register_keras_serializable("keras_cosattn")
class DPFPFeatures(_Configured):
    """Deterministic, parameter-free projection: `r_i r_(i + j)`, `r = relu([x, -x])`, j = 1 ... nu.

    `(b, t, h, d) -> (b, t, h, 2 d nu)`, most of them zero, so that keys collide less.
    O(t d nu) per head. A query may share no feature with any key; its row is then zero.
    Schlag et al., 2021 (Linear Transformers Are Secretly Fast Weight Programmers), eq. 37.

    Args:
        nu: how far apart the factors of a product may stand.
    """

    def __init__(self, nu=1):
        if not isinstance(nu, int) or nu < 1:
            raise ValueError(f"`nu` must be an integer of at least 1. Received: nu={nu!r}")
        self.nu = nu

    def __call__(self, x):
        return pointwise_features.dpfp(x, self.nu)


@keras.saving.register_keras_serializable("keras_cosattn")
class PositiveFeatures(_Configured):
    """FAVOR+: `phi_i(x) = exp(w_i . x - |x|^2 / 2)` for x scaled by `d^(-1/4)`; m features.

    Every weight is positive, and its mean over the draws of w is `exp(q . k / sqrt(d))`. O(t d m)
    per head. Choromanski et al., 2021 (Rethinking Attention with Performers), lemma 1.
    """

    def size(self, num_random_features):
        """How many features there are."""
        return num_random_features

    def __call__(self, queries, keys, projection):
        return (
            random_features.positive_query_features(queries, projection),
            random_features.positive_key_features(keys, projection),
        )


@keras.saving.register_keras_serializable("keras_cosattn")
class TrigonometricFeatures(_Configured):
    """Random Fourier features: `phi(x) = [sin(w_i . x), cos(w_i . x)]` for x of length 1 / sigma.

    2 m features. Queries and keys count by their direction only. The mean over the draws of w is
    `exp(-|q - k|^2 / 2) = exp(q . k) / exp(1 / sigma^2)`; single weights may be negative, and the
    output is large where they nearly cancel. O(t d m) per head. Peng et al., 2021 (Random
    Feature Attention), section 3.1.

    Args:
        sigma: the smaller, the more the direction counts, and the more features it takes.
    """

    def __init__(self, sigma=1.0):
        if not sigma > 0:
            raise ValueError(f"`sigma` must be positive. Received: sigma={sigma!r}")
        self.sigma = sigma

    def size(self, num_random_features):
        """How many features there are."""
        return 2 * num_random_features

    def __call__(self, queries, keys, projection):
        return tuple(
            random_features.trigonometric_features(x, projection, self.sigma)
            for x in (queries, keys)
        )
