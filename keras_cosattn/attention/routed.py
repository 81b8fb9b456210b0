"""A weighted sum of several attention layers, with learned weights for each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_cosattn import scope
from keras_cosattn.attention.arguments import not_negative, positive
from keras_cosattn.attention.base import Attention, Tensor
from keras_cosattn.attention.call_inputs import check_shapes, read_call
from keras_cosattn.attention.refusals import check_use
from keras_cosattn.ops import arrays
from keras_cosattn.ops import route as routing

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.layer_options import LayerOptions, signature_of


@keras.saving.register_keras_serializable("keras_cosattn")
class RoutedAttention(Attention):
    """Routed attention: `out_t = sum_p r_tp path_p(x)_t`, `r_t = softmax(x_t W_r)`.

    Each path is an attention layer of this package with its own projections. W_r is `(m, p)` and
    is applied to the query. Both directions, causal, cross, packed and streams, if every path can.
    Time, memory and state are the sums of those of the paths, and O(t p m) for the routing. With
    `top_k`, too, every path is computed for every step, so it saves no time.

    With `routing_iterations` the weights are routed by agreement: a path gets more weight if its
    output u_p has the direction of the weighted sum (Sabour et al.). With `top_k` each step keeps
    its k largest weights, renormalised (Shazeer et al.), so with k = 1 only `load_balancing` trains
    W_r. With `load_balancing` training adds the loss `load_balancing p sum_p f_p P_p` (Fedus et
    al.): f_p is the share of path p in all choices of the (k) largest weights, and P_p is its mean
    weight before `top_k`. Masked steps do not count.

    The weights of `return_attention_scores` are `sum_p r_tp W_p`, for each head. They do not mix
    the values to the output, because each path has its own values and output projection, and the
    same head of two paths has nothing in common.

    Where this differs from the papers: there is one upper capsule, so the softmax runs over the
    paths, which are the lower capsules; logits start at `x W_r`, not at zero; the output is the
    sum itself, without the squashing function. The softmax of `top_k` is taken before the choice
    and without noise.

    Args:
        paths: List of attention layers with the same `num_heads` and `output_shape`. The layer
            makes its own copies from their configs. The arguments of `Attention` (dropout, sizes,
            initializers) are given to each of them.
        routing_iterations: Integer, the number of rounds of routing by agreement. Defaults to `0`.
        top_k: Integer, the number of paths that each step keeps. Defaults to `None`, all.
        load_balancing: Float, the coefficient of the loss. Defaults to `0.0`, no loss.
        route_initializer: Initializer of W_r. Defaults to `"glorot_uniform"`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Call arguments:
        return_route_weights: Boolean, whether to return the route weights `(b, t, p)`, too, as the
            last output. Defaults to `False`.

    Raises:
        ValueError: If the paths do not agree in `num_heads` and `output_shape`, if `top_k` is
            larger than the number of paths, or if an argument of the paths is given to this layer.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import LinearAttention, RoutedAttention, SegmentedAttention
    >>> paths = [LinearAttention(2, 4), SegmentedAttention(2, 4, segment_length=4)]
    >>> layer = RoutedAttention(paths, load_balancing=0.01)
    >>> x = np.ones((1, 10, 8), "float32")
    >>> tuple(layer(x, x).shape)
    (1, 10, 8)
    >>> tuple(layer.route_weights(x).shape)
    (1, 10, 2)

    Reference:
        - [Sabour et al., 2017](https://arxiv.org/abs/1710.09829), procedure 1
        - [Shazeer et al., 2017](https://arxiv.org/abs/1701.06538), equations 3 and 5
        - [Fedus et al., 2022 (Switch Transformer)](https://arxiv.org/abs/2101.03961), equation 4
    """

    def __init__(
        self,
        paths: Sequence[Attention | dict[str, Any]],
        *,
        routing_iterations: int = 0,
        top_k: int | None = None,
        load_balancing: float = 0.0,
        route_initializer: Any = "glorot_uniform",
        **kwargs: Unpack[LayerOptions],
    ):
        layers = [_as_layer(path) for path in paths]
        _check_paths(layers, kwargs)
        first = layers[0]
        super().__init__(
            first.num_heads,
            first.key_dim,
            first.value_dim,
            num_key_value_heads=first.num_key_value_heads,
            output_shape=first.output_sizes,
            attention_axes=first.attention_axes,
            **kwargs,
        )
        if top_k is not None and positive("top_k", top_k) > len(layers):
            raise ValueError(
                "`top_k` must be at most the number of paths. "
                f"Received: top_k={top_k}, {len(layers)} paths"
            )
        if load_balancing < 0:
            raise ValueError(
                f"`load_balancing` must be at least 0. Received: load_balancing={load_balancing!r}"
            )
        self.routing_iterations = not_negative("routing_iterations", routing_iterations)
        self.top_k = top_k
        self.load_balancing = load_balancing
        self.route_initializer = keras.initializers.get(route_initializer)
        own = {"dtype": self.dtype_policy, "attention_axes": None}  # paths get `(b, t, m)`
        self.paths = [
            type(path).from_config({**path.get_config(), **own, "name": f"path_{i}"})
            for i, path in enumerate(layers)
        ]
        # Taken before the build, because the config of a built layer has more entries.
        self._path_configs = [keras.saving.serialize_keras_object(path) for path in self.paths]
        for config in self._path_configs:
            config["config"]["attention_axes"] = self.attention_axes
        self.accepts_attention_mask = all(path.accepts_attention_mask for path in self.paths)

    def build(self, query_shape, value_shape, key_shape=None):
        shapes = query_shape, value_shape, key_shape or value_shape
        axes = check_shapes(self, *shapes)
        for path in self.paths:
            path.build(*map(axes.fold_shape, shapes))
        self.route_kernel = self.add_weight(
            name="route_kernel",
            shape=(query_shape[-1], len(self.paths)),
            initializer=self.route_initializer,
            autocast=False,
        )

    @property
    def cannot(self) -> dict[str, str]:
        """What the layer refuses, because one of its paths does: use -> reason."""
        refused: dict[str, str] = {}
        for i, path in enumerate(self.paths):
            for use, reason in path.cannot.items():
                refused.setdefault(use, f"its path {i}, {type(path).__name__}: {reason}")
        return refused

    def call(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor | None = None,
        query_mask: Tensor | None = None,
        value_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
        segment_ids: Tensor | None = None,
        return_route_weights: bool = False,
    ) -> Tensor:
        inputs = read_call(
            self, query, value, key, query_mask, value_mask, key_mask, attention_mask,
            use_causal_mask, segment_ids,
        ).zero_masked()  # fmt: skip
        layout, query = inputs.layout, inputs.query
        check_use(self, layout, return_attention_scores)
        watch = scope.watching()
        with_scores = return_attention_scores or watch is not None
        of_paths = [
            path(
                query,
                inputs.value,
                key=inputs.key,
                query_mask=layout.query_mask,
                value_mask=layout.key_mask,
                attention_mask=layout.attention_mask,
                return_attention_scores=with_scores,
                training=training,
                use_causal_mask=layout.causal,
                segment_ids=layout.segments,
            )
            for path in self.paths
        ]
        outputs = [y[0] if with_scores else y for y in of_paths]
        outputs = ops.stack([arrays.accumulate(y) for y in outputs], axis=2)  # (b, t, p, m)
        routes = self._route(query, outputs, layout.query_mask, training)
        returned = [inputs.unfold(routing.mix(routes, outputs))]
        if with_scores:
            weights = sum(
                ops.expand_dims(routes[..., p], (1, 3)) * arrays.accumulate(w)
                for p, (_, w) in enumerate(of_paths)
            )
        if watch is not None:
            watch(self, ops.cast(weights, self.compute_dtype))
        if return_attention_scores:
            returned.append(inputs.unfold_scores(weights))
        if return_route_weights:
            returned.append(inputs.unfold(routes))
        cast = tuple(ops.cast(x, self.compute_dtype) for x in returned)
        return cast if len(cast) > 1 else cast[0]

    if TYPE_CHECKING:

        @signature_of(call)
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def route_weights(self, query: Tensor, value: Tensor | None = None, **masks: Any) -> Tensor:
        """Return the weight of each path for each step, `(b, t, p)`. A step's weights sum to one.

        Args:
            query: Tensor `(b, t, m)`.
            value: Tensor `(b, s, m')`. Defaults to `query`.
            **masks: Other call arguments.
        """
        value = query if value is None else value
        return self(query, value, return_route_weights=True, **masks)[-1]

    def compute_output_spec(self, query, *args, return_route_weights=False, **kwargs):
        outputs = super().compute_output_spec(query, *args, **kwargs)
        if not return_route_weights:
            return outputs
        shape = (*query.shape[:-1], len(self.paths))
        routes = keras.KerasTensor(shape, dtype=self.compute_dtype)
        return (*(outputs if isinstance(outputs, tuple) else (outputs,)), routes)

    def get_config(self):
        return {
            **keras.layers.Layer.get_config(self),
            "num_heads": self.num_heads,  # blocks read it from the config of an attention layer
            # A copy: Keras takes the config of a functional model in a path apart.
            "paths": keras.saving.serialize_keras_object(self._path_configs),
            "routing_iterations": self.routing_iterations,
            "top_k": self.top_k,
            "load_balancing": self.load_balancing,
            "route_initializer": keras.initializers.serialize(self.route_initializer),
        }

    @classmethod
    def from_config(cls, config):
        return super().from_config({k: v for k, v in config.items() if k != "num_heads"})

    def _route(self, query, outputs, mask, training):
        """Return the route weights `(b, t, p)`. In training, add their loss."""
        x = arrays.zero_masked(arrays.accumulate(query), mask)
        logits = ops.matmul(x, arrays.accumulate(self.route_kernel))
        routes = routing.route(logits, outputs, self.routing_iterations)
        chosen = routing.largest(routes, self.top_k or 1)
        if training and self.load_balancing:
            self.add_loss(self.load_balancing * routing.load_balance(routes, chosen, mask))
        return routes if self.top_k is None else routing.keep(routes, chosen)


def _as_layer(path):
    return keras.saving.deserialize_keras_object(path) if isinstance(path, dict) else path


def _check_paths(paths, options):
    can = [isinstance(path, Attention) and not isinstance(path, RoutedAttention) for path in paths]
    if not paths or not all(can):
        raise ValueError(
            "`paths` must be attention layers of keras_cosattn, not routed themselves, such as "
            f"[CosFormerAttention(4, 64), SoftmaxAttention(4, 64)]. Received: paths={paths!r}"
        )
    names = {
        "num_heads": "num_heads",
        "output_shape": "output_sizes",
        "attention_axes": "attention_axes",
    }
    for name, attribute in names.items():
        values = [getattr(path, attribute) for path in paths]
        if len(set(values)) > 1:
            raise ValueError(f"The paths must agree in `{name}`. Received: {name}={values}")
    if len(paths[0].output_sizes or ()) > 1:
        raise ValueError(
            "The outputs of the paths must have one axis of features. "
            f"Received: output_shape={paths[0].output_sizes}"
        )
    of_paths = set(options) & (set(Attention(1, 1).get_config()) - {"name", "trainable", "dtype"})
    if of_paths:
        raise ValueError(
            "RoutedAttention does not take the arguments of its paths. Give them to each path. "
            f"Received: {sorted(of_paths)}"
        )
