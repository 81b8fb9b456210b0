"""The signatures of one export: their functions, their shapes, and inputs to check them with."""

import hashlib
import json

import keras
import numpy as np
from keras import ops

from keras_cosattn import probe
from keras_cosattn.export import text
from keras_cosattn.streaming import Streaming

SIGNATURES = ("serve", "prefill", "step")
START = {"tensors": "init", "variables": "reset"}
"""The signature that begins a stream, for each form of its state."""

CHECKED_STEPS = 12
"""Single steps to check, after a prefill if there is one."""

CHECKED_BATCH = 2
"""Examples to check with where any number will do."""


class Plan:
    """What to export of a model.

    Args:
        model: a built model on the TensorFlow backend.
        signatures: some of `SIGNATURES`; None is all that the model can do. `START` comes by
            itself with a stream, unless `alone`.
        sample: an input for the checks; None draws one. It is repeated in time where a check
            needs more steps.
        batch_size: of every call; None is any.
        length: of `serve`; None is any.
        prefill_chunk: steps of `prefill`, at most those of the stream; None is any number.
        state_form: `"tensors"` or `"variables"`.
        alone: one signature only, for runtimes that know no more.
        tokenizer: as `to_saved_model`; adds the signatures of `text`.

    Attributes: the above, `stream` (None if there is none), `whole_only` (why), `functions`, a dict
    signature -> function of named inputs, and `weights`, the model's id.
    """

    def __init__(
        self, model, signatures=None, sample=None, *, batch_size=None, length=None,
        prefill_chunk=None, state_form="tensors", alone=False, tokenizer=None,
    ):  # fmt: skip
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
        if state_form not in START:
            raise ValueError(f"`state` must be one of {sorted(START)}. Received: {state_form!r}")
        for name, number in (("batch_size", batch_size), ("length", length),
                             ("prefill_chunk", prefill_chunk)):  # fmt: skip
            if number is not None and (not isinstance(number, int) or number < 1):
                raise ValueError(f"`{name}` must be at least 1, or None. Received: {number!r}")
        self.model, self.batch_size, self.length = model, batch_size, length
        self.state_form = state_form
        self.sample = _longest_sample(model, (prefill_chunk or 58) + CHECKED_STEPS, sample)
        self.stream, self.whole_only = None, None
        wanted = signatures or SIGNATURES
        if set(wanted) - {"serve"}:
            try:
                self.stream = Streaming(model, self.sample)
            except ValueError as error:
                if signatures is not None:
                    raise
                wanted, self.whole_only = ("serve",), str(error)
        if alone and signatures is None:
            wanted = ("serve",) if self.stream is None else ("step",)
        if alone and len(wanted) > 1:
            raise ValueError(f"The target knows one signature a file. Received: {signatures!r}")
        if state_form == "variables" and self.stream is not None and batch_size is None:
            raise ValueError("State in variables has one size: give `batch_size`. Received: None")
        limit = self.stream.max_steps if self.stream else None
        self.prefill_chunk = prefill_chunk and min(prefill_chunk, limit or prefill_chunk)
        self.any_size = _input_sizes(model, self.sample)
        own = {shape[1] for shape, _ in self.any_size.values()} - {None, length}
        if length is not None and own:
            raise ValueError(
                f"'{model.name}' takes inputs of {own.pop()} steps, not `length`={length}. Build "
                "it with Input((None, ...)), or leave `length` out."
            )
        names = [name for name in SIGNATURES if name in wanted]
        if self.stream is not None and not alone:
            names.append(START[state_form])
        self.text = None
        if tokenizer is not None:
            self.text = text.Text(tokenizer, self.any_size)
            self.text.check_range(lambda inputs: model(self.nest(inputs)), self.whole()[0])
            names += text.SIGNATURES
        self.functions = {name: self._function(name) for name in names}
        self.weights = _weights_id(model, self.stream)

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
        self._variables = {}
        if self.state_form == "variables":
            self._variables = {
                name: tf.Variable(x, name=name) for name, x in self.zero_state().items()
            }
            archive.track(tf.Module())
            archive._tf_trackable.stream_state = self._variables
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
        if name == "reset" or (name == "init" and self.batch_size is not None):
            return {}
        if name == "init":
            return {"batch_size": ((), "int32")}
        if name in text.SIGNATURES:
            return self.text.spec
        length = {"serve": self.length, "prefill": self.prefill_chunk, "step": 1}[name]
        sizes = {}
        for key, (shape, dtype) in self.any_size.items():
            fixed = self.batch_size, length
            shape = (
                *(m if n is None else n for n, m in zip(shape, fixed, strict=False)),
                *shape[2:],
            )
            sizes[key] = shape, dtype
        if name == "serve" or self.state_form == "variables":
            return sizes
        state = self.state_spec.items()
        return sizes | {k: ((self.batch_size, *shape), dtype) for k, (shape, dtype) in state}

    def zero_state(self):
        """The state before the first step, for the checks and the variables."""
        batch = self.batch_size or CHECKED_BATCH
        return {
            name: np.zeros((batch, *shape), dtype)
            for name, (shape, dtype) in self.state_spec.items()
        }

    def whole(self, name="serve"):
        """Inputs of `serve` or `serve_text` and the model's outputs, both by name."""
        if name == "serve":
            takes = inputs = self.fit(self.sample, self.length)
        else:
            takes, inputs = self.text.examples
        return takes, self.named_outputs(self.model(self.nest(inputs), training=False))

    def streams(self):
        """Pieces of a stream, `(signature, start, end)`, its inputs, and the model's outputs.

        A piece that starts at 0 begins the stream again.
        """
        steps = max(x.shape[1] for x in keras.tree.flatten(self.sample))
        limit = self.stream.max_steps or steps
        chunk = self.prefill_chunk or max(min(steps, limit) - CHECKED_STEPS, 1)
        first = chunk if "prefill" in self.functions else 0
        steps = min(max(first, 1) + CHECKED_STEPS, limit)
        inputs = self.fit(self.sample, steps)
        pieces = [("prefill", 0, first)] if first else []
        if "step" in self.functions:
            start = first if first < steps else 0
            pieces += [("step", i, i + 1) for i in range(start, steps)]
        outputs = self.model(self.nest(inputs), training=False)
        return pieces, inputs, self.named_outputs(outputs)

    def describe(self):
        """Signature -> `{"inputs": {name: [shape, dtype]}, "outputs": ...}`."""
        outputs = self.named_outputs(self.model(self.sample, training=False))
        inputs = self.named_inputs(self.sample)
        return {name: self._describe(name, inputs, outputs) for name in self.functions}

    def checked_shapes(self, name):
        """Input name -> shape with which a signature was checked."""
        steps = max(x.shape[1] for x in keras.tree.flatten(self.sample))
        if name == "init":
            return {"batch_size": ()}
        if name == "serve":
            return {key: x.shape for key, x in self.whole()[0].items()}
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
            keras.tree.map_structure(lambda x: _with_size(x, batch, steps or x.shape[1]), nest)
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

    def _function(self, name):
        import tensorflow as tf

        if name == "serve":
            return lambda inputs: self._named(self.model(self.nest(inputs), training=False))
        if name == "tokenize":
            return lambda inputs: self.text.ids(inputs["text"])
        if name == "serve_text":
            serve = self._function("serve")
            return lambda inputs: serve(self.text.ids(inputs["text"]))
        if name == "init" and self.batch_size is None:
            return lambda inputs: {
                key: tf.zeros(tf.stack([inputs["batch_size"], *shape]), dtype)
                for key, (shape, dtype) in self.state_spec.items()
            }
        if name == "init":
            return lambda: {key: tf.constant(x) for key, x in self.zero_state().items()}
        if name == "reset":
            return self._reset

        def go_on(inputs):
            held = self._variables or inputs
            state = {key: tf.convert_to_tensor(held[key]) for key in self.state_spec}
            outputs, state = self.stream(self.nest(inputs), state)
            if not self._variables:
                return {**self._named(outputs), **state}
            for key, value in state.items():
                self._variables[key].assign(value)
            return self._named(outputs)

        return go_on

    def _reset(self):
        import tensorflow as tf

        for variable in self._variables.values():
            variable.assign(tf.zeros_like(variable))
        return {"steps": tf.zeros((), "int32")}

    def _describe(self, name, inputs, outputs):
        takes = {key: [list(shape), dtype] for key, (shape, dtype) in self.specs(name).items()}
        if name == "reset":
            return {"inputs": takes, "outputs": {"steps": [[], "int32"]}}
        if name == "tokenize":
            return {"inputs": takes, "outputs": self._describe("serve", inputs, {})["inputs"]}
        gives = {}
        if name != "init":
            first = next(iter(self.any_size))
            batch, length = self.specs("serve" if name == "serve_text" else name)[first][0][:2]
            for key, y in outputs.items():
                in_time = y.ndim > 1 and y.shape[1] == inputs[first].shape[1]
                shape = [batch, length, *y.shape[2:]] if in_time else [batch, *y.shape[1:]]
                gives[key] = [shape, str(y.dtype)]
        if self.state_form == "tensors" and name in ("init", *self.streamed):
            gives |= {
                key: [[self.batch_size, *shape], dtype]
                for key, (shape, dtype) in self.state_spec.items()
            }
        return {"inputs": takes, "outputs": gives}

    def _named(self, outputs):
        flat = keras.tree.flatten(outputs)
        if len(flat) == 1:
            return {"y": flat[0]}
        names = getattr(self.model, "output_names", None) or [f"y_{i}" for i in range(len(flat))]
        return dict(zip(names, flat, strict=True))


def _longest_sample(model, steps, sample):
    """`sample`, or random inputs of as many steps as the model takes, up to `steps`, in NumPy."""
    if sample is not None:
        return keras.tree.map_structure(ops.convert_to_numpy, sample)
    for length in (steps, CHECKED_STEPS, 2):
        sample = probe.random_inputs(model, length)
        try:
            model(sample, training=False)
        except ValueError as error:
            refusal = error
        else:
            return keras.tree.map_structure(ops.convert_to_numpy, sample)
    raise ValueError(
        f"'{model.name}' takes no random input of {steps}, {CHECKED_STEPS} or 2 steps, so an "
        f"export of it could not be checked. Give `sample`. {refusal}"
    )


def _with_size(x, batch, steps):
    """`x (b, t, ...)` repeated, or cut, to `(batch, steps, ...)`."""
    return x[np.arange(batch) % x.shape[0]][:, np.arange(steps) % x.shape[1]]


def _input_sizes(model, sample):
    """Input name -> (shape with None where any size will do, dtype)."""
    flat = keras.tree.flatten(sample)
    specs = (
        keras.tree.flatten(model.input) if getattr(model, "inputs", None) else [None] * len(flat)
    )
    sizes = {}
    for i, (x, spec) in enumerate(zip(flat, specs, strict=True)):
        name = "x" if len(flat) == 1 else spec.name if spec is not None else f"x_{i}"
        shape = (None, None, *x.shape[2:]) if spec is None else tuple(spec.shape)
        sizes[name] = shape, keras.backend.standardize_dtype(x.dtype)
    return sizes


def _weights_id(model, stream):
    """sha256 of the weights and of the layout of the state."""
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(np.ascontiguousarray(ops.convert_to_numpy(weight)).tobytes())
    if stream is not None:
        digest.update(json.dumps(stream.state_spec, sort_keys=True).encode())
    return digest.hexdigest()
