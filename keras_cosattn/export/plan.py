"""What one export holds: which signatures, of which sizes, and inputs to check them with."""

import hashlib
import json
import math

import keras
import numpy as np
from keras import ops

from keras_cosattn.export import samples, text
from keras_cosattn.export.signatures import (
    Init,
    KeptPiece,
    Piece,
    Reset,
    Serve,
    ServeText,
    Tokenize,
)
from keras_cosattn.streaming import Streaming

SIGNATURES = ("serve", "prefill", "step")
FORMS = {"tensors": (Piece, "init", Init), "variables": (KeptPiece, "reset", Reset)}
"""Form of the state -> the kind of `prefill` and `step`, and the signature that begins a stream."""

CHECKED_STEPS = samples.FEW
"""Single steps to check, after a prefill if there is one."""

CHECKED_BATCH = 2
"""Examples to check with where any number will do."""


class Plan:
    """What to export of a model.

    Args:
        model: a built model on the TensorFlow backend.
        signatures: some of `SIGNATURES`; None is all that the model can do. The one that begins a
            stream comes with it by itself, unless `alone`.
        sample: an input for the checks; None draws one. It is repeated in time where a check
            needs more steps.
        batch_size: of every call; None is any.
        length: of `serve`; None is any.
        prefill_chunk: steps of `prefill`, at most those of the stream; None is any number.
        state_form: `"tensors"` or `"variables"`.
        alone: one signature only, for runtimes that know no more.
        tokenizer: as `to_saved_model`; adds the signatures of `text`.
        means: as `Streaming`.

    Attributes: the above, `stream` (None if there is none), `whole_only` (why), `functions`, a dict
    name -> signature, `variables` with the state in that form, and `weights`, the model's id.
    """

    def __init__(
        self, model, signatures=None, sample=None, *, batch_size=None, length=None,
        prefill_chunk=None, state_form="tensors", alone=False, tokenizer=None,
        means=False,
    ):  # fmt: skip
        _check(signatures, state_form, batch_size=batch_size, length=length,
               prefill_chunk=prefill_chunk)  # fmt: skip
        self.model, self.batch_size, self.length = model, batch_size, length
        self.state_form, self.variables, self.means = state_form, {}, means
        self.sample = samples.longest(model, (prefill_chunk or 58) + CHECKED_STEPS, sample)
        self.any_size = samples.sizes(model, self.sample)
        self._check_length()
        self.outputs = self.named_outputs(model(self.sample, training=False))
        wanted = self._choose(signatures, alone)
        limit = self.stream.max_steps if self.stream else None
        self.prefill_chunk = prefill_chunk and min(prefill_chunk, limit or prefill_chunk)
        piece, start, begin = FORMS[state_form]
        makers = {
            "serve": lambda: Serve(self),
            "prefill": lambda: piece(self, self.prefill_chunk),
            "step": lambda: piece(self, 1),
        }
        self.functions = {name: make() for name, make in makers.items() if name in wanted}
        if self.state_spec and not alone:
            self.functions[start] = begin(self)
        self.text = None
        if tokenizer is not None:
            self.text = text.Text(tokenizer, self.any_size)
            self.text.check_range(self.call, next(self.wholes())[0])
            self.functions |= {"tokenize": Tokenize(self), "serve_text": ServeText(self)}
        self.weights = _weights_id(model, self.stream)

    def _choose(self, signatures, alone):
        """Which of `SIGNATURES` to make; opens the stream for those that need one."""
        self.stream, self.whole_only = None, None
        wanted = signatures or SIGNATURES
        if set(wanted) - {"serve"}:
            try:
                self.stream = Streaming(self.model, self.sample, self.means)
            except ValueError as error:
                if signatures is not None:
                    raise
                wanted, self.whole_only = ("serve",), str(error)
        if alone and signatures is None:
            wanted = ("serve",) if self.stream is None else ("step",)
        if alone and len(wanted) > 1:
            raise ValueError(f"The target knows one signature a file. Received: {signatures!r}")
        if self.state_form == "variables" and self.stream is not None and self.batch_size is None:
            raise ValueError("State in variables has one size: give `batch_size`. Received: None")
        return wanted

    def _check_length(self):
        own = {shape[1] for shape, _ in self.any_size.values()} - {None, self.length}
        if self.length is not None and own:
            raise ValueError(
                f"'{self.model.name}' takes inputs of {own.pop()} steps, not "
                f"`length`={self.length}. Build it with Input((None, ...)), or leave `length` out."
            )

    @property
    def state_spec(self):
        """Name -> (shape without the batch axis, dtype); empty without a stream."""
        return self.stream.state_spec if self.stream is not None else {}

    @property
    def streamed(self):
        """The signatures that go on from a state."""
        return [name for name in self.functions if name in ("prefill", "step")]

    def write_saved_model(self, path, for_tflite=False):
        """Write the signatures as a SavedModel. Raises OSError if that fails."""
        import tensorflow as tf

        archive = keras.export.ExportArchive()
        archive.track(self.model)
        if self.state_form == "variables":
            self.variables = {
                name: tf.Variable(x, name=name) for name, x in self.zero_state().items()
            }
            archive._tf_trackable.stream_state = self.variables
        if self.text is not None:
            archive._tf_trackable.tokenizer = self.text.tokenizer  # which may hold tables
        for name, function in self.functions.items():
            specs = {
                key: tf.TensorSpec(shape, dtype, name=key)
                for key, (shape, dtype) in self.specs(name).items()
            }
            archive.add_endpoint(name, function, input_signature=[specs] if specs else [])
        if for_tflite:
            # Without this attribute the converter takes every archive with an endpoint "serve"
            # for one of `Model.export`, and drops its other endpoints.
            archive.add_endpoint(
                "_default_save_signature", lambda: {"unused": tf.zeros(())}, input_signature=[]
            )
        try:
            archive.write_out(str(path), verbose=False)
        except tf.errors.OpError as error:  # TensorFlow's own, for a disk that is full
            raise OSError(error.message) from error
        except AssertionError as error:
            raise ValueError(
                f"'{self.model.name}', or its tokenizer, uses variables or tables that it does not "
                f"hold. Make them attributes of a layer, a tf.Module or the tokenizer. {error}"
            ) from error

    def specs(self, name):
        """Input name -> (shape, dtype) of a signature."""
        return self.functions[name].takes()

    def describe(self):
        """Signature -> `{"inputs": {name: [shape, dtype]}, "outputs": ...}`."""

        def listed(sizes):
            return {key: [list(shape), dtype] for key, (shape, dtype) in sizes.items()}

        return {
            name: {"inputs": listed(function.takes()), "outputs": listed(function.gives())}
            for name, function in self.functions.items()
        }

    def input_sizes(self, length):
        """Sizes of the model's inputs in calls of `length` steps; None is any."""
        batch, sizes = self.batch_size, {}
        for key, ((own_batch, own_length, *rest), dtype) in self.any_size.items():
            sizes[key] = (own_batch or batch, own_length or length, *rest), dtype
        return sizes

    def output_sizes(self, inputs):
        """Sizes of the model's outputs for inputs of such sizes."""
        (batch, length, *_), _ = next(iter(inputs.values()))
        steps = keras.tree.flatten(self.sample)[0].shape[1]
        sizes = {}
        for key, y in self.outputs.items():
            in_time = y.ndim > 1 and y.shape[1] == steps
            rest = (length, *y.shape[2:]) if in_time else y.shape[1:]
            sizes[key] = (batch, *rest), str(y.dtype)
        return sizes

    def state_sizes(self):
        """Sizes of the state's tensors."""
        state = self.state_spec.items()
        return {key: ((self.batch_size, *shape), dtype) for key, (shape, dtype) in state}

    def call(self, inputs):
        """The model on named inputs: named outputs."""
        return self._named(self.model(self.nest(inputs), training=False))

    def go_on(self, inputs, state):
        """The stream on named inputs: named outputs, and the new state."""
        outputs, state = self.stream(self.nest(inputs), state)
        return self._named(outputs), state

    def zero_state(self):
        """The state before the first step, for the checks and the variables."""
        batch = self.batch_size or CHECKED_BATCH
        return {
            name: np.zeros((batch, *shape), dtype)
            for name, (shape, dtype) in self.state_spec.items()
        }

    def wholes(self):
        """Inputs of `serve` and the model's outputs, both by name, until the sample is through."""
        size = self.batch_size or CHECKED_BATCH
        for start in range(0, len(keras.tree.flatten(self.sample)[0]), size):
            part = keras.tree.map_structure(lambda x, a=start: x[a : a + size], self.sample)
            inputs = self.fit(part, self.length)
            yield inputs, self._expected(inputs)

    def texts(self):
        """Inputs of `serve_text` and the model's outputs, both by name."""
        texts, inputs = self.text.examples
        return texts, self._expected(inputs)

    def _expected(self, inputs):
        return self.named_outputs(self.model(self.nest(inputs), training=False))

    def streams(self):
        """Pieces of a stream, `(signature, start, end)`, its inputs, and the model's outputs.

        A piece that starts at 0 begins the stream again.
        """
        steps = max(x.shape[1] for x in keras.tree.flatten(self.sample))
        limit = self.stream.max_steps or math.inf
        chunk = self.prefill_chunk or max(min(steps, limit) - CHECKED_STEPS, 1)
        first = chunk if "prefill" in self.functions else 0
        steps = min(max(first, 1) + CHECKED_STEPS, limit)
        inputs = self.fit(self.sample, steps)
        pieces = [("prefill", 0, first)] if first else []
        if "step" in self.functions:
            start = first if first < steps else 0
            pieces += [("step", i, i + 1) for i in range(start, steps)]
        return pieces, inputs, self._expected(inputs)

    def checked_shapes(self, name):
        """Input name -> shape with which a signature was checked."""
        steps = max(x.shape[1] for x in keras.tree.flatten(self.sample))
        if name == "init":
            return {"batch_size": ()}
        if name == "serve":
            return {key: x.shape for key, x in next(self.wholes())[0].items()}
        batch, length = (
            self.batch_size or CHECKED_BATCH,
            self.prefill_chunk or steps - CHECKED_STEPS,
        )
        return {
            key: tuple(
                n if n is not None else batch if axis == 0 else length
                for axis, n in enumerate(shape)
            )
            for key, (shape, _) in self.specs(name).items()
        }

    def fit(self, nest, steps=None):
        """Inputs `(b, t, ...)` by name, in batches that the signatures take, and of `steps`."""
        batch = self.batch_size or CHECKED_BATCH
        return self.named_inputs(
            keras.tree.map_structure(
                lambda x: samples.with_size(x, batch, steps or x.shape[1]), nest
            )
        )

    def named_inputs(self, nest):
        """NumPy inputs by the names of the file."""
        flat = keras.tree.flatten(nest)
        return {name: np.asarray(x) for name, x in zip(self.any_size, flat, strict=True)}

    def named_outputs(self, nest):
        """NumPy outputs by the names of the file."""
        return {name: ops.convert_to_numpy(x) for name, x in self._named(nest).items()}

    def nest(self, inputs):
        """Named inputs as the model takes them."""
        return keras.tree.pack_sequence_as(self.sample, [inputs[name] for name in self.any_size])

    def _named(self, outputs):
        flat = keras.tree.flatten(outputs)
        if len(flat) == 1:
            return {"y": flat[0]}
        names = getattr(self.model, "output_names", None) or [f"y_{i}" for i in range(len(flat))]
        return dict(zip(names, flat, strict=True))


def _check(signatures, state_form, **sizes):
    """Raises RuntimeError or ValueError for arguments that no model could be exported with."""
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "Exports need Keras on TensorFlow. Received: backend "
            f"'{keras.backend.backend()}'. Save the model as .keras, then load and export it "
            "in a process with KERAS_BACKEND=tensorflow."
        )
    if signatures is not None and (not signatures or set(signatures) - set(SIGNATURES)):
        raise ValueError(
            f"`signatures` must be some of {SIGNATURES}, or None. Received: {signatures!r}"
        )
    if state_form not in FORMS:
        raise ValueError(f"`state` must be one of {sorted(FORMS)}. Received: {state_form!r}")
    for name, number in sizes.items():
        if number is not None and (not isinstance(number, int) or number < 1):
            raise ValueError(f"`{name}` must be at least 1, or None. Received: {number!r}")


def _weights_id(model, stream):
    """sha256 of the weights and of the layout of the state."""
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(np.ascontiguousarray(ops.convert_to_numpy(weight)).tobytes())
    if stream is not None:
        digest.update(json.dumps(stream.state_spec, sort_keys=True).encode())
    return digest.hexdigest()
