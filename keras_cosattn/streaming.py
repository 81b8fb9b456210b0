"""Any Keras model of causal layers as `(x, state) -> (y, state)`."""

import math
import os
import pathlib
import tempfile
import zipfile

import keras
import numpy as np
from keras import ops

from keras_cosattn import probe, scope

PIECES = (5, 1, 1, 3, 2)
"""How the check cuts its sample: a stretch of several steps, single steps, more of both."""


class Streaming:
    """A model that reads its input piece by piece, with everything it remembers in `state`.

    ```python
    stream = Streaming(model)
    state = stream.initial_state(batch_size=1)
    y, state = stream(x, state)  # x: (1, t, ...), any t, also 1
    ```

    The outputs are those of `model` on the whole input. State goes in and comes out; nothing is
    kept on the model, so many streams can share it. The call is a pure function: wrap it in
    `tf.function` or `jax.jit` to make it fast.

    Every look back in time has to go through layers that can stream: this package's attention
    layers (called with `use_causal_mask=True`), `TransformerDecoder`, `CausalConv1D`,
    `CausalDepthwiseConv1D`, `PositionEmbedding` and `RunningMean`. Layers that treat each step
    alone (dense layers, norms, embeddings, activations) need nothing. This is tested here, once,
    by running the model on a random input whole and in pieces.

    Args:
        model: a built Keras model, functional, sequential or subclassed, whose inputs and outputs
            have time as their second axis, with length None.
        sample: an input for that test, best of 2 examples and 12 steps; needed for a subclassed
            model, for one that takes fewer steps, and where random numbers would not do (integer
            inputs are otherwise tested with zeros and ones).
        means: keep sums without end (LinearAttention, PerformerAttention, the memory of
            CompressiveMemoryAttention) as means over the steps so far. The outputs are the same,
            and the state stays in the range of float16, for devices that compute in it. There a
            step changes a mean of n steps by about 1 / n of it, which float16 rounds away after
            some 2^11 steps: for streams without end `CosFormerAttention(horizon=M)`, whose sums
            run over at most M steps, keeps seeing the last ones.

    Attributes:
        state_spec: dict name -> (shape without the batch axis, dtype).
        state_bytes: size of one example's state.
        max_steps: steps after which the state is full; None if the stream has no end.

    Raises:
        ValueError: if the model cannot stream, with the name of the layer that is the reason.
    """

    def __init__(self, model, sample=None, means=False):
        if not model.built:
            raise ValueError("The model is not built. Call it once on an input, then stream it.")
        self.model, self.means = model, means
        for spec in getattr(model, "inputs", None) or ():
            if len(spec.shape) < 2 or spec.shape[1] is not None:
                raise ValueError(
                    f"'{model.name}' cannot stream: it must take inputs of any length, such as "
                    f"Input((None, features)). Received: '{spec.name}' of shape {spec.shape}"
                )
        sample = probe.random_inputs(model, sum(PIECES)) if sample is None else sample
        sample = keras.tree.map_structure(lambda x: x[:2, : sum(PIECES)], sample)
        self._learn_state(sample)
        self._compare(sample)

    def __call__(self, inputs, state, mask=None):
        """Outputs for the next steps, and the new state.

        Args:
            inputs: as the model's, `(b, t, ...)`.
            state: what `initial_state` or the last call returned.
            mask: bool `(b, t)`, False where an example has no step: its state does not change
                there, and its output is not meant to be read. None is all True.

        Raises ValueError for a state of another model or batch size, and at the end of a stream
        of `max_steps`. (Inside `tf.function` or `jax.jit` that end cannot be seen: there the
        outputs beyond it are NaN.)
        """
        b, t = keras.tree.flatten(inputs)[0].shape[:2]
        self._check_state(state, b)
        if mask is not None:
            mask = ops.cast(mask, "bool")
            if len(mask.shape) != 2 or mask.shape[1] not in (t, None):
                raise ValueError(
                    f"`mask` must have shape (batch, steps) = ({b}, {t}). "
                    f"Received: mask.shape={tuple(mask.shape)}"
                )
        self._check_end(state, t if mask is None else ops.sum(ops.cast(mask, "int32"), axis=1))
        return self._step(inputs, state, mask)

    def initial_state(self, batch_size):
        """The state before the first step: zeros."""
        return {
            name: ops.zeros((batch_size, *shape), dtype)
            for name, (shape, dtype) in self.state_spec.items()
        }

    def reset(self, state, examples=None):
        """The state with `examples` at their start again, even if they held NaN.

        Args:
            state: a state of b examples.
            examples: bool `(b,)`, True for those to reset; None is all.
        """
        self._check_state(state, None)
        if examples is None:
            return keras.tree.map_structure(ops.zeros_like, state)
        examples = ops.cast(examples, "bool")

        def reset_one(x):
            which = ops.reshape(examples, (-1,) + (1,) * (len(x.shape) - 1))
            return ops.where(which, ops.zeros_like(x), x)

        return {name: reset_one(x) for name, x in state.items()}

    def save(self, state, path):
        """Write a state to `path` (`.npz`), whole or not at all."""
        self._check_state(state, None)
        path = pathlib.Path(path)
        arrays = {name: ops.convert_to_numpy(x) for name, x in state.items()}
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **arrays)
            os.replace(beside, path)
        except BaseException:
            os.unlink(beside)
            raise

    def load(self, path):
        """A state that `save` wrote. Raises ValueError if it is damaged or another model's."""
        try:
            with np.load(path) as file:
                state = {name: file[name] for name in file.files}
        except (zipfile.BadZipFile, ValueError, EOFError) as error:
            raise ValueError(f"{path} is not a state that `save` wrote, or damaged.") from error
        self._check_state(state, None)
        return {name: ops.convert_to_tensor(x) for name, x in state.items()}

    def _step(self, inputs, state, mask=None):
        with scope.opened(scope.Stream(state, mask, self.means)) as stream:
            outputs = self.model(inputs, training=False)
        return outputs, stream.next_state

    def _learn_state(self, sample):
        """Find the state's names and shapes by stepping once from nothing."""
        first = keras.tree.map_structure(lambda x: x[:, :1], sample)
        filtering = keras.config.is_traceback_filtering_enabled()
        keras.config.disable_traceback_filtering()  # it wraps the layer's message in its arguments
        try:
            with scope.opened(scope.Stream(means=self.means)) as stream:
                self.model(first, training=False)
        except ValueError as error:
            raise ValueError(f"'{self.model.name}' cannot stream: {error}") from error
        finally:
            if filtering:
                keras.config.enable_traceback_filtering()
        self.state_spec = {
            name: (tuple(x.shape[1:]), keras.backend.standardize_dtype(x.dtype))
            for name, x in stream.next_state.items()
        }
        self.state_bytes = sum(
            math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.state_spec.values()
        )
        self._limits = stream.limits
        self.max_steps = min(stream.limits.values(), default=None)

    def _compare(self, sample):
        """Run `sample` whole and in pieces. Raises ValueError if they differ."""
        batch, length = keras.tree.flatten(sample)[0].shape[:2]
        ends = np.minimum(np.cumsum(PIECES), length)
        pieces = np.diff(ends, prepend=0).tolist()

        def run_whole():
            return self.model(sample, training=False)

        def run_pieces():
            state, start = self.initial_state(batch), 0
            for n in filter(None, pieces):
                piece = keras.tree.map_structure(lambda x, a=start, n=n: x[:, a : a + n], sample)
                outputs, state = self._step(piece, state)
                yield outputs
                start += n

        if probe.difference(run_whole(), list(run_pieces())) <= probe.tolerance(self.model):
            return
        layer = probe.reason(self.model, run_whole, run_pieces)
        where = (
            f"its layer '{layer.name}' ({type(layer).__name__})"
            if layer
            else "an operation outside its layers"
        )
        raise ValueError(
            f"'{self.model.name}' cannot stream: {where} gives other outputs step by step than on "
            "the whole input, so it looks ahead or forgets. Use this package's causal layers "
            "(attention with `use_causal_mask=True`, TransformerDecoder, CausalConv1D, "
            "CausalDepthwiseConv1D, PositionEmbedding, RunningMean) where steps are mixed."
        )

    def _check_state(self, state, batch_size):
        found = {
            name: (tuple(x.shape[1:]), keras.backend.standardize_dtype(x.dtype))
            for name, x in state.items()
        }
        if found != self.state_spec:
            odd = sorted(
                name
                for name in found.keys() | self.state_spec.keys()
                if found.get(name) != self.state_spec.get(name)
            )
            raise ValueError(
                f"This is not a state of '{self.model.name}'. It differs in {odd}: expected "
                f"{[self.state_spec.get(name) for name in odd]}, "
                f"received {[found.get(name) for name in odd]}"
            )
        sizes = {x.shape[0] for x in state.values()} - {None}
        if batch_size is not None and sizes - {batch_size}:
            raise ValueError(
                f"The state is for {sorted(sizes)} examples. Received: inputs with {batch_size}. "
                "Use `initial_state` with the size of the batch."
            )

    def _check_end(self, state, steps):
        """Raises ValueError where a full state can be seen, that is outside compiled functions."""
        for name, limit in self._limits.items():
            try:
                position = ops.convert_to_numpy(state[name])
                end = (position + ops.convert_to_numpy(steps)).max()
            except (NotImplementedError, TypeError):  # a tensor of a graph, or a tracer
                return
            if end > limit:
                raise ValueError(
                    f"The stream ends after {limit} steps ({name}). Received: steps up to {end}, "
                    f"after {position.max()}. Build the layer with a larger `max_length`, use one "
                    "whose streams have no end, such as CosFormerAttention(horizon=...), or reset."
                )
