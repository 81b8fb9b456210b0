"""Several attention layers side by side, and for each step how much of each."""

import keras
from keras import ops

from keras_cosattn import scope
from keras_cosattn.attention.arguments import not_negative, positive
from keras_cosattn.attention.base import Attention
from keras_cosattn.attention.call_inputs import check_shapes, read_call
from keras_cosattn.attention.refusals import check_use
from keras_cosattn.ops import arrays
from keras_cosattn.ops import route as routing


@keras.saving.register_keras_serializable("keras_cosattn")
class RoutedAttention(Attention):
    """Routed attention: `out_t = sum_p r_tp path_p(x)_t`, `r_t = softmax(x_t W_r)`.

    Each path is an attention layer of this package with its own projections; W_r is `(m, p)` and
    reads the query. Both directions, causal, cross, packed and streams as far as every path can.
    Time, memory and state are the sum of the paths', and O(t p m) for the routing. Also with
    `top_k`: every path is computed for every step, so it saves no time.

    With `routing_iterations` the weights are routed by agreement: the paths' outputs u_p that
    point where the weighted sum points get more weight. Sabour et al., 2017, procedure 1.
    With `top_k` each step keeps its k largest weights, renormalised (Shazeer et al., 2017, eq. 3
    and 5).
    With `load_balancing` training adds the loss `load_balancing p sum_p f_p P_p`, f_p the share of
    steps whose (k) largest weights have path p, P_p its mean weight before `top_k`; padding does
    not count (Fedus et al., 2022, eq. 4).

    Where we leave the papers: one capsule is routed to, so the softmax runs over the paths, which
    are the lower capsules; logits start at `x W_r`, not at zero; the output is the sum itself, not
    squashed. The softmax of `top_k` is taken before the choice and without noise.

    The weights of `return_attention_scores` are `sum_p r_tp W_p`, head by head: how much each
    step looks at each other. They do not mix the values to the output, for each path has values
    and an output projection of its own, and the heads of two paths have nothing in common.

    Args:
        paths: attention layers with the same `num_heads` and `output_shape`. The layer makes its
            own copies from their configs. What they share with `Attention` (dropout, sizes,
            initializers) is given to each of them.
        routing_iterations: rounds of routing by agreement.
        top_k: paths that each step keeps; None is all.
        load_balancing: coefficient of the loss; 0 is none.
        route_initializer: of W_r.
        **kwargs: as `keras.layers.Layer`.

    Call arguments:
        return_route_weights: also return the route weights `(b, t, p)`, last.
    """

    def __init__(
        self,
        paths,
        *,
        routing_iterations=0,
        top_k=None,
        load_balancing=0.0,
        route_initializer="glorot_uniform",
        **kwargs,
    ):
        paths = [_as_layer(path) for path in paths]
        _check_paths(paths, kwargs)
        first = paths[0]
        super().__init__(
            first.num_heads,
            first.key_dim,
            first.value_dim,
            num_key_value_heads=first.num_key_value_heads,
            output_shape=first.output_sizes,
            attention_axes=first.attention_axes,
            **kwargs,
        )
        if top_k is not None and positive("top_k", top_k) > len(paths):
            raise ValueError(
                "`top_k` must be at most the number of paths. "
                f"Received: top_k={top_k}, {len(paths)} paths"
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
            for i, path in enumerate(paths)
        ]
        # Now, for the config of a built layer says more.
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
    def cannot(self):
        """What the layer refuses, because one of its paths does: use -> reason."""
        refused = {}
        for i, path in enumerate(self.paths):
            for use, reason in path.cannot.items():
                refused.setdefault(use, f"its path {i}, {type(path).__name__}: {reason}")
        return refused

    def call(
        self,
        query,
        value,
        key=None,
        query_mask=None,
        value_mask=None,
        key_mask=None,
        attention_mask=None,
        return_attention_scores=False,
        training=None,
        use_causal_mask=False,
        segment_ids=None,
        return_route_weights=False,
    ):
        inputs = read_call(
            self, query, value, key, query_mask, value_mask, key_mask, attention_mask,
            use_causal_mask, segment_ids,
        ).zero_masked()  # fmt: skip
        layout, query = inputs.layout, inputs.query
        check_use(self, layout, return_attention_scores)
        watch = scope.watching()
        with_scores = return_attention_scores or watch is not None
        found = [
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
        outputs = [y[0] if with_scores else y for y in found]
        outputs = ops.stack([arrays.accumulate(y) for y in outputs], axis=2)  # (b, t, p, m)
        routes = self._route(query, outputs, layout.query_mask, training)
        returned = [inputs.unfold(routing.mix(routes, outputs))]
        if with_scores:
            weights = sum(
                ops.expand_dims(routes[..., p], (1, 3)) * arrays.accumulate(w)
                for p, (_, w) in enumerate(found)
            )
        if watch is not None:
            watch(self, ops.cast(weights, self.compute_dtype))
        if return_attention_scores:
            returned.append(inputs.unfold_scores(weights))
        if return_route_weights:
            returned.append(inputs.unfold(routes))
        returned = tuple(ops.cast(x, self.compute_dtype) for x in returned)
        return returned if len(returned) > 1 else returned[0]

    def route_weights(self, query, value=None, **masks):
        """The weight of each path for each step, `(b, t, p)`, that sum to one.

        Args:
            query, value, **masks: as in a call; without value, self-attention.
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
            "num_heads": self.num_heads,  # what blocks ask of an attention layer
            "paths": self._path_configs,
            "routing_iterations": self.routing_iterations,
            "top_k": self.top_k,
            "load_balancing": self.load_balancing,
            "route_initializer": keras.initializers.serialize(self.route_initializer),
        }

    @classmethod
    def from_config(cls, config):
        return super().from_config({k: v for k, v in config.items() if k != "num_heads"})

    def _route(self, query, outputs, mask, training):
        """The route weights `(b, t, p)`, and in training their loss."""
        x = arrays.zero_masked(arrays.accumulate(query), mask)
        logits = ops.matmul(x, arrays.accumulate(self.route_kernel))
        routes = routing.route(logits, outputs, self.routing_iterations)
        chosen = routing.largest(routes, self.top_k or 1)
        if training and self.load_balancing:
            self.add_loss(self.load_balancing * routing.load_balance(routes, chosen, mask))
        return routes if self.top_k is None else routing.keep(routes, chosen)


def _as_layer(path):
    return keras.saving.deserialize_keras_object(path) if isinstance(path, dict) else path


def _check_paths(paths, others):
    if not paths or not all(isinstance(path, Attention) for path in paths):
        raise ValueError(
            "`paths` must be attention layers of keras_cosattn, such as "
            f"[CosFormerAttention(4, 64), SoftmaxAttention(4, 64)]. Received: paths={paths!r}"
        )
    names = {
        "num_heads": "num_heads",
        "output_shape": "output_sizes",
        "attention_axes": "attention_axes",
    }
    for name, attribute in names.items():
        found = [getattr(path, attribute) for path in paths]
        if len(set(found)) > 1:
            raise ValueError(f"The paths must agree in `{name}`. Received: {name}={found}")
    if len(paths[0].output_sizes or ()) > 1:
        raise ValueError(
            "The outputs of the paths must have one axis of features. "
            f"Received: output_shape={paths[0].output_sizes}"
        )
    theirs = set(others) & (set(Attention(1, 1).get_config()) - {"name", "trainable", "dtype"})
    if theirs:
        raise ValueError(
            f"What a path computes is given to the path. Received: {sorted(theirs)}, which "
            "RoutedAttention itself does not take."
        )
