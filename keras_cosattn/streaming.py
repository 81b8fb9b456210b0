"""Any Keras model of causal layers as `(x, state) -> (y, state)`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_cosattn import fingerprint, limits, probe, scope, state_checks, state_file, stream_check
from keras_cosattn.compact_state import CompactState, StateDtype
from keras_cosattn.compiled_step import CompiledStep
from keras_cosattn.constant_inputs import ConstantInputs
from keras_cosattn.ops import arrays

Tensor = Any
Nest = Any  # a tensor, or lists, tuples and dicts of tensors


class Streaming:
    """Call a model on one piece of its input after another.

    The outputs are those of `model` on the whole input. Everything that the model has to remember
    is in `state`, which is passed in and returned. The model keeps nothing, so many streams can
    share it. The call is a pure function.

    Calls are compiled, so the first ones take seconds. On TensorFlow these are the first call with
    one step and the first with more steps, each with a mask and without one. Other lengths and
    batch sizes compile nothing more. JAX compiles for each batch size, and for 1, 4, 16, 64, ...
    steps; it reads other lengths in such pieces. PyTorch runs a call as it is, without gradients.
    Inside `tf.function` and `jax.jit` a call becomes a part of them.

    The weights of the model may change between calls, also by `quantize` and `enable_lora`. After
    another change, for example of an attribute of a layer, make a new `Streaming`.

    Only causal layers can stream. This package's attention layers (called with
    `use_causal_mask=True`), `TransformerDecoder`, `CausalConv1D`, `CausalDepthwiseConv1D`,
    `PositionEmbedding`, `Sinusoidal` and `RunningMean` do. Layers that treat each step alone
    (dense layers, norms, embeddings, activations) need nothing. The constructor checks this: it
    runs the model on 12 random steps whole and in pieces. So it does not find a layer that looks
    further back without a state, such as `keras.layers.Conv1D` with a large `dilation_rate`.

    A state is full after `max_steps` steps. One more step raises a ValueError, also while
    `tf.function` traces if the number is known; a TensorFlow graph has an assertion. XLA and
    `jax.jit` cannot raise: there the outputs stay finite, but are not those of the model.

    Args:
        model: A built Keras model, functional, sequential or subclassed. Its inputs and outputs
            have time as their second axis, with length `None`.
        sample: Input of the model for the check, best of 2 examples and 12 steps. Needed for a
            subclassed model, and where random numbers do not fit (for integer inputs the check
            uses zeros and ones). Defaults to `None`, a random input.
        means: bool. Whether to keep means over the steps so far in place of sums that grow without
            bound (LinearAttention, PerformerAttention, the memory of CompressiveMemoryAttention).
            The outputs are the same, and the state stays in the range of float16. In float16 a
            mean of n steps stops changing after about 2^11 steps; for endless streams use
            `CosFormerAttention(horizon=M)`, whose sums are over at most M steps. Defaults to
            `False`.
        constants: Strings, the names of inputs of a functional model that are the same at every
            step, such as an encoder's outputs. They are given to `initial_state` and not to the
            call. Attention layers that are not causal attend to them: their keys and values are a
            part of the state, so a stream has as many encoder steps as the sample. Defaults to
            `()`.
        run_eagerly: bool. Whether calls run without compilation, as for debugging, and on PyTorch
            with gradients. Defaults to `False`.
        state_dtype: `"int8"` or `"int16"`. Each call then rounds the state it returns to integers,
            with one float32 scale for each row of at least 8 numbers; shorter rows stay as they
            are. The state takes about a third or half of the memory, and the outputs are no
            longer exactly those of `model`. Where the state decays, the error stays bounded;
            `docs/compact_state.md` tells how large it is. Defaults to `None`, no rounding.

    Attributes:
        state_spec: dict of the name of a tensor to its shape without the batch axis, and dtype.
        state_bytes: int, the size of one example's state.
        max_steps: int, the number of steps after which a state is full. `None` if there is none.

    Raises:
        ValueError: If the model cannot stream. The message names the layer and the reason.

    Example:
    >>> x = keras.Input((None, 4))
    >>> model = keras.Model(x, keras_cosattn.CausalConv1D(8, 3)(x))
    >>> stream = keras_cosattn.Streaming(model)
    >>> state = stream.initial_state(batch_size=1)
    >>> y, state = stream(np.ones((1, 5, 4), "float32"), state)
    >>> y, state = stream(np.ones((1, 1, 4), "float32"), state)
    >>> tuple(y.shape)
    (1, 1, 8)
    """

    state_spec: state_checks.Spec
    state_bytes: int
    max_steps: int | None

    def __init__(
        self,
        model: keras.Model,
        sample: Nest | None = None,
        means: bool = False,
        constants: Sequence[str] = (),
        run_eagerly: bool = False,
        state_dtype: StateDtype | None = None,
    ) -> None:
        if not model.built:
            raise ValueError("The model is not built. Call it once on an input, then stream it.")
        self.model, self.means = model, means
        self.constants, self.run_eagerly = ConstantInputs(model, constants), run_eagerly
        self._step = self._packed_steps if run_eagerly else CompiledStep(model, self._packed_steps)
        for spec in getattr(model, "inputs", None) or ():
            if spec.name in self.constants.names:
                continue
            if len(spec.shape) < 2 or spec.shape[1] is not None:
                raise ValueError(
                    f"'{model.name}' cannot stream: it must take inputs of any length, such as "
                    f"Input((None, features)). Received: '{spec.name}' of shape {spec.shape}"
                )
        sample = probe.random_inputs(model, stream_check.STEPS) if sample is None else sample
        sample = keras.tree.map_structure(lambda x: x[:2], sample)
        sample, fixed = self.constants.split(sample)
        self._learn_state(keras.tree.map_structure(lambda x: x[:, :1], sample), fixed, state_dtype)
        steps = min(stream_check.STEPS, self.max_steps or stream_check.STEPS)
        self._check(keras.tree.map_structure(lambda x: x[:, :steps], sample), fixed, state_dtype)

    def __call__(
        self, inputs: Nest, state: Mapping[str, Tensor], mask: Tensor | None = None
    ) -> tuple[Nest, dict[str, Tensor]]:
        """Compute the outputs for the next steps.

        Args:
            inputs: As the model's, `(b, t, ...)`. There may be any number of steps, also 0.
            state: What `initial_state` or the last call returned.
            mask: Boolean `(b, t)`, `False` where an example has no step. There its inputs may hold
                anything, its state does not change, and its outputs have no meaning. Defaults to
                `None`, all `True`.

        Returns:
            A tuple of the outputs and the new state.

        Raises:
            ValueError: If the state is full, or of another model or batch size.
        """
        first = keras.tree.flatten(inputs)[0]
        b, t = first.shape[:2]
        state_checks.check_state(state, self.state_spec, self.model.name, b)
        inputs = state_checks.with_batch_of(state, inputs)
        if t == 0:
            return self._no_steps(inputs, state), dict(state)
        if mask is not None:
            mask = state_checks.checked_mask(mask, b, t)
        outputs, new = self._step(inputs, dict(state), mask)
        return limits.check_end(outputs, new, self._limits, self.model.name)

    def initial_state(
        self, batch_size: int, constants: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the state before the first step: zeros, and what the constant inputs become.

        Args:
            batch_size: int, the number of examples.
            constants: dict of the names of the constant inputs to their values. Defaults to
                `None`, for a model without such inputs.
        """
        zeros = {
            name: ops.zeros((batch_size, *shape), dtype)
            for name, (shape, dtype) in self.state_spec.items()
        }
        fixed = self.constants.check(constants or {}, batch_size)
        return zeros | self._compact.pack(self._constant_part(fixed, batch_size))

    def reset(
        self, state: Mapping[str, Tensor], examples: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the state with some examples at their start again. Constants stay as they are.

        Args:
            state: A state of b examples.
            examples: Boolean `(b,)`, `True` for the examples to reset. Defaults to `None`, all.

        Raises:
            ValueError: If the state is of another model, or `examples` has another shape.
        """
        state_checks.check_state(state, self.state_spec, self.model.name)
        constants = {name: x for name, x in state.items() if name in self._constant_names}
        if examples is None:
            return {name: ops.zeros_like(x) for name, x in state.items()} | constants
        kept = ops.expand_dims(ops.logical_not(state_checks.checked_examples(examples, state)), 1)
        return {
            name: arrays.zero_masked(ops.expand_dims(x, 1), kept)[:, 0] for name, x in state.items()
        } | constants

    def save(self, state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
        """Write a state to a file, completely or not at all.

        The file also identifies the model, by its architecture and weights. That takes the time of
        reading all weights.

        Args:
            state: A state of this model.
            path: The file, `.npz`. An old one is replaced.
        """
        state_checks.check_state(state, self.state_spec, self.model.name)
        values = {name: ops.convert_to_numpy(x) for name, x in state.items()}
        state_file.write(path, values, fingerprint.fingerprint(self.model))

    def load(self, path: str | os.PathLike[str]) -> dict[str, Tensor]:
        """Return a state that `save` wrote.

        A state belongs to the weights that computed it, so it cannot be loaded after more
        training. Names, dropout and other settings that only act in training may differ.

        Args:
            path: The file.

        Raises:
            ValueError: If the file is damaged, or the state is of a model with another
                architecture or other weights.
        """
        values, saved = state_file.read(path)
        state_checks.check_state(values, self.state_spec, self.model.name)
        state_checks.check_model(saved, fingerprint.fingerprint(self.model), self.model.name, path)
        return {name: ops.convert_to_tensor(x) for name, x in values.items()}

    def _call_in_stream(self, inputs, state, mask=None, fixed=None):
        """Call the model on its next steps; with `fixed`, on its constant inputs too."""
        kind = None
        if self.constants.names:
            kind = "read" if fixed is None else "write"
            inputs = self.constants.join(inputs, fixed)
        with scope.opened(scope.Stream(state, mask, self.means, kind)) as stream:
            outputs = self.model(inputs, training=False)
        return outputs, stream

    def _next_steps(self, inputs, state, mask=None):
        """Return the outputs for the next steps and the new state."""
        if mask is not None:
            inputs = state_checks.zero_masked(inputs, mask)
        outputs, stream = self._call_in_stream(inputs, state, mask)
        return outputs, stream.next_state

    def _packed_steps(self, inputs, state, mask=None):
        """`_next_steps` from and to the compact form of the state."""
        outputs, new = self._next_steps(inputs, self._compact.unpack(state), mask)
        return outputs, self._compact.kept(self._compact.pack(new), state, mask)

    def _constant_part(self, fixed, batch_size):
        """Return what the constant inputs become, a part of every state."""
        if not fixed:
            return {}
        _, stream = self._call_in_stream(self.constants.first_step(batch_size), None, fixed=fixed)
        return state_checks.constant_part(stream)

    def _no_steps(self, inputs, state):
        """Return outputs without steps. One masked step gives their shapes and dtypes."""

        def one_step(x):
            return ops.zeros((ops.shape(x)[0], 1, *x.shape[2:]), x.dtype)

        inputs = keras.tree.map_structure(one_step, inputs)
        mask = ops.zeros(ops.shape(keras.tree.flatten(inputs)[0])[:2], "bool")
        outputs, _ = self._step(inputs, dict(state), mask)
        return keras.tree.map_structure(lambda y: y[:, :0], outputs)

    def _learn_state(self, first_step, fixed, dtype):
        """Learn the state's names, shapes, dtypes and limits by one step from zeros."""
        try:
            _, stream = self._call_in_stream(first_step, None, fixed=fixed or None)
        except ValueError as error:
            message = probe.original(error)
            raise ValueError(f"'{self.model.name}' cannot stream: {message}") from error
        self._compact = CompactState(state_checks.spec_of(stream.next_state), dtype)
        self.state_spec = self._compact.spec
        self.state_bytes = sum(
            math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.state_spec.values()
        )
        self._limits = stream.limits
        self.max_steps = min(self._limits.values(), default=None)
        self._constant_names = set(self._compact.pack(state_checks.constant_part(stream)))

    def _check(self, sample, fixed, dtype):
        """Check the model on `sample`, whole and in pieces, without rounding the state."""
        batch = keras.tree.flatten(sample)[0].shape[0]
        state = self._compact.unpack(self.initial_state(batch, fixed))
        whole = self.constants.join(sample, fixed) if fixed else sample
        # JAX compiles each operation of a plain step by itself, which takes longer.
        compile_first = keras.backend.backend() == "jax" and dtype is None
        stream_check.check_pieces(
            self.model,
            sample,
            lambda: self.model(whole, training=False),
            state | self._constant_part(fixed, batch),
            self._next_steps,
            self._step if compile_first else self._next_steps,
        )
