"""The base of the layers whose sums fade, or are corrected by the delta rule."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_cosattn.attention.arguments import optional, positive
from keras_cosattn.attention.sums import SumsAttention
from keras_cosattn.ops import arrays
from keras_cosattn.ops.decayed import decayed_attention

Tensor = Any
Steps = dict[str, Any]


class Keys(NamedTuple):
    """The keys `(b, t, hk, d)` and the gates of their steps, a dict of tensors `(b, t, ...)`."""

    key: Tensor
    gates: Steps


class DecayedAttention(SumsAttention):
    """Base class of the layers whose sums fade, or are corrected by the delta rule.

    A call passes these stages: the projections and the gates of the steps (`_gates`); in a loop
    over chunks the short convolution, the features (`_prepared`) and the sums
    (`ops.decayed_attention`); then the normalisation of each head (`_normalised`), the output gate
    and the output projection. A subclass fills in what differs.

    Args:
        *args: Arguments of `SumsAttention`.
        use_output_gate: Boolean, whether `silu` of a projection of the query multiplies what the
            output projection reads.
        norm_epsilon: Float, what the normalisation of the heads adds to the variance.
        chunk_size: Integer, the number of steps that the loop takes at once. Defaults to 64.
        **kwargs: Arguments of `SumsAttention`, such as `conv_size`.
    """

    bounded = True
    convolves_in_loop = True
    always_applies_silu = False  # also to q, k and v that pass no convolution
    fades_evenly = False  # by `_rates` at each step
    gates_before_norm = False
    delta_rule = False
    normalise = False  # whether the sums are divided by the sum of the weights
    num_groups: int | None = None  # of query and key heads, where they are fewer

    def __init__(
        self,
        *args: Any,
        use_output_gate: bool = False,
        norm_epsilon: float = 1e-5,
        chunk_size: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.use_output_gate = use_output_gate
        self.norm_epsilon = norm_epsilon
        self.chunk_size = optional(positive, "chunk_size", chunk_size)

    @property
    def cannot(self) -> dict[str, str]:
        """What the layer refuses: use -> reason."""
        reasons = {
            "cross": "its sums fade from step to step of one sequence, so queries and values are "
            "the same steps. Use LinearAttention, whose sums do not fade."
        }
        if self.delta_rule:
            reasons["both ways"] = (
                "the delta rule corrects what earlier steps have written, so it has an order. "
                "Call it with `use_causal_mask=True`."
            )
        return reasons

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        self._build_gates(query_shape)
        if self.use_output_gate:
            self.output_gate_dense = self._heads(
                "output_gate", query_shape, self.num_heads, self.value_dim, activation="silu"
            )

    def _checked_groups(self, num_groups: int) -> int:
        """Return `num_groups` if that many query and key heads can serve all heads."""
        if self.num_key_value_heads % positive("num_groups", num_groups):
            raise ValueError(
                "`num_groups` must divide the number of key and value heads. Received: "
                f"num_groups={num_groups}, num_key_value_heads={self.num_key_value_heads}"
            )
        return num_groups

    def _projected_heads(self):
        if self.num_groups is None:
            return super()._projected_heads()
        return self.num_groups, self.num_groups

    def _for_each_head(self, q, k):
        """Return q with h heads and k with hk heads, of what `_projected_heads` have."""
        of_queries, of_keys = self._projected_heads()
        q = arrays.repeat_heads(q, self.num_heads // of_queries)
        return q, arrays.repeat_heads(k, self.num_key_value_heads // of_keys)

    def _build_gates(self, query_shape):
        """Build the weights of `_gates`, `_prepared` and `_normalised`."""

    def _gates(self, query):
        """Return the gates of all steps, a dict of tensors `(b or 1, t, ...)`, from the input."""
        return {"log_decay": ops.ones((1, ops.shape(query)[1], 1, 1), self.sum_dtype)}

    def _prepared(self, steps: Steps) -> Steps:
        """Return what `decayed_attention` takes of a block of steps."""
        return steps

    def _rates(self):
        """Return the log decay `(hk,)` of each step, if it `fades_evenly`."""
        raise NotImplementedError(f"{type(self).__name__} must override `_rates`.")

    def _normalised(self, mixed):
        """Return the outputs `(b, t, h, e)` of the sums, normalised."""
        return mixed

    def _project(self, query, key, value):
        q, k, v = super()._project(query, key, value)
        return q, Keys(k, self._gates(query)), v

    def _sums(self, q, k, v, layout, state, convolve_values=True):
        positions, position_state = self._positions(layout, state)
        steps = {"q": q, "k": k.key, "v": v, **k.gates, "mask": layout.key_mask}
        steps["positions"] = None if positions is None else positions[0]
        if state is None:
            state = {
                name: ops.zeros((ops.shape(q)[0], *shape), dtype)
                for name, (shape, dtype) in self._sums_spec(v.shape[3]).items()
            }
        mixed, state = decayed_attention(
            arrays.without_none(steps),
            {name: x for name, x in state.items() if name != "position"},
            prepare=functools.partial(self._prepare, convolve_values=convolve_values),
            rates=self._rates if self.fades_evenly else None,
            causal=layout.causal,
            segments=layout.segments,
            normalise=self.normalise,
            chunk_size=self.chunk_size,
        )
        return mixed, {**state, **position_state}

    def _prepare(self, steps, state, runs, convolve_values):
        """Convolve, or apply SiLU alone, and make the features. See `decayed_attention`."""
        steps, state = dict(steps), dict(state)
        for name in ("q", "k", "v") if convolve_values else ("q", "k"):
            if self.conv_size:
                steps[name] = self.convolutions(name, steps[name], state, steps.get("mask"), runs)
            elif self.always_applies_silu:
                steps[name] = ops.silu(arrays.accumulate(steps[name]))
        steps = self._prepared(steps)
        positions = steps.pop("positions", None)
        if self.position is not None:
            pair = steps["q"], steps["k"]
            steps["q"], steps["k"] = self._rotate(*pair, (positions, positions))
        return steps, state

    def _weights(self, q, k, layout):
        def mix(each):
            return self._sums(q, k, each, layout, None, convolve_values=False)[0]

        b, s = ops.shape(q)[:2]
        values = ops.zeros((b, s, self.num_key_value_heads, 1), q.dtype)
        return self._implied_weights(mix, values, layout)

    def _sums_spec(self, value_size):
        columns = value_size + 1 if self.normalise else value_size
        shape = self.num_key_value_heads, self._feature_size(), columns
        return {"sums": (shape, self.sum_dtype), **self._convolution_spec()}

    def _state_spec(self):
        return {**self._sums_spec(self.value_dim), **self._position_spec()}

    def _gated(self, query, mixed):
        mixed, gate = arrays.accumulate(mixed), 1.0
        if self.use_output_gate:
            gate = arrays.accumulate(self.output_gate_dense(query))
        if self.gates_before_norm:
            mixed = self._normalised(mixed * gate)
        else:
            mixed = self._normalised(mixed) * gate
        return super()._gated(query, mixed)

    def _gate_dense(self, name, shape, units):
        """Return a projection to gates, without a bias."""
        options = self._projection_options()
        del options["bias_initializer"], options["bias_regularizer"], options["bias_constraint"]
        dense = keras.layers.Dense(units, use_bias=False, name=name, **options)
        dense.build(shape)
        return dense

    def _sum_weight(self, name, shape, initializer):
        """Add a weight in the dtype of sums."""
        return self.add_weight(
            name=name, shape=shape, initializer=initializer, dtype=self.sum_dtype, autocast=False
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "use_output_gate": self.use_output_gate,
            "norm_epsilon": self.norm_epsilon,
            "chunk_size": self.chunk_size,
        }


def root_mean_square_norm(x: Tensor, scale: Any, epsilon: float) -> Tensor:
    """Return `x / sqrt(mean(x^2) + epsilon) scale` over the last axis.

    Zhang and Sennrich, 2019, equation 4.
    """
    return x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + epsilon) * scale


def unit_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Return `x / sqrt(sum(x^2) + epsilon)` over the last axis."""
    return x * ops.rsqrt(ops.sum(ops.square(x), axis=-1, keepdims=True) + epsilon)
