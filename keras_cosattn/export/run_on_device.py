"""Run an exported .tflite file on a device, with NumPy and an interpreter alone.

    python run_on_device.py MODEL.tflite IN.npy OUT.npy

This file needs nothing else of the package: copy it to the device. It runs on Python 3.9 or later
with `ai-edge-litert` or `tflite-runtime`. The arrays have the shape `(batch, steps, ...)`. A file
that can stream reads the input as a stream, any other file reads it whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    try:
        from tflite_runtime.interpreter import Interpreter
    except ImportError as error:
        raise ImportError("There is no interpreter: pip install ai-edge-litert") from error

ANY_LENGTH_CHUNK = 128  # steps in one call of a `prefill` that takes any number of steps


class State(NamedTuple):
    """The state of a stream, to keep it and to continue from it later."""

    weights: str  # the id of the model's weights, the same in every file of the model
    steps: int  # how many the stream has read
    tensors: dict[str, np.ndarray]  # by name


class Device:
    """An exported file, and one stream that it reads.

    Arrays `(batch, steps, ...)` go in and come out. A model with several inputs or outputs takes
    and returns dicts of arrays, by name. An error leaves the stream as it was before the call,
    except in a file with `state="variables"`, which keeps the state inside the interpreter.

    Args:
        path: String or path. The .tflite file. ValueError if it is damaged, or of another origin.
        threads: Integer. The number of threads of the interpreter. Defaults to 1.
        batch_size: Integer. That of the stream, if the file leaves it open. Defaults to 1.

    Attributes:
        metadata: Dict. What the exporter recorded in the file, such as its signatures.
        steps: Integer. The number of steps that the stream has read.

    Example:
        >>> import keras, keras_cosattn, tempfile
        >>> from keras_cosattn.export import to_tflite
        >>> model = keras.Sequential([keras.Input((None, 6)), keras_cosattn.CausalConv1D(3, 3)])
        >>> path = f"{tempfile.mkdtemp()}/model.tflite"
        >>> report = to_tflite(model, path)  # on the computer that has TensorFlow
        >>> device = Device(path)  # on the device
        >>> device.read(np.zeros((1, 20, 6), "float32")).shape
        (1, 20, 3)
    """

    def __init__(self, path: str | os.PathLike, threads: int = 1, batch_size: int = 1) -> None:
        with _open_checked(path) as file:
            self.metadata = json.loads(zipfile.ZipFile(path).read("keras_cosattn.json"))
            content = file.read(self.metadata["content"]["bytes"])
            if hashlib.sha256(content).hexdigest() != self.metadata["content"]["sha256"]:
                raise ValueError("the sha256 of its model is not the recorded one")
        signatures = self.metadata["signatures"]
        interpreter = Interpreter(model_content=content, num_threads=threads)
        self._run = {key: interpreter.get_signature_runner(key) for key in signatures}
        self._inputs = {key: dict(signatures[key]["inputs"]) for key in signatures}
        self._piece_sizes: dict[str, int] = {}
        self._state_specs: dict[str, Any] = {}
        self._tensors: dict[str, np.ndarray] = {}
        self.steps = 0
        for key in [key for key in ("prefill", "step") if key in signatures]:
            self._plan_pieces(key, batch_size)
        self.reset()

    def _plan_pieces(self, key, batch_size):
        """Separate the state from the inputs of `prefill` or `step`, and note its piece size."""
        specs, state = self._inputs[key], self.metadata["state"]
        for name, ((batch, *shape), dtype) in specs.items():
            specs[name] = [batch or batch_size, *shape], dtype
        self._state_specs = {name: specs.pop(name) for name in state if name in specs}
        any_length = ANY_LENGTH_CHUNK if "step" in self._run else 1
        for shape, _ in specs.values():
            self._piece_sizes[key], shape[1] = shape[1] or any_length, None

    @property
    def can_stream(self) -> bool:
        """Whether the file has the signature `prefill` or `step`."""
        return bool(self._piece_sizes)

    def whole(self, x: Any) -> Any:
        """Run `serve` on whole inputs, an array or a dict of arrays. The stream does not change.

        Raises:
            ValueError: If the file has no `serve`, if the inputs do not fit or are longer than
                the model allows, or if the outputs hold NaN although the inputs hold none.
        """
        if "serve" not in self._run:
            raise ValueError(f"The file has no 'serve'. Use `read`. It has: {sorted(self._run)}")
        x = self._fit("serve", x)
        self._check_length(x)
        return _checked(self._run["serve"](**x), x)

    def read(self, x: Any) -> Any:
        """Read the next steps of the stream: chunks by `prefill`, the remaining steps by `step`.

        `x` holds any number of steps. `step` and `prefill` are other names of this method.

        Raises:
            ValueError: If the file cannot stream, if the inputs do not fit or exceed the length
                of the model's streams, or if the outputs hold NaN although the inputs hold none.
        """
        if not self.can_stream:
            missing = "The file cannot stream, for it has neither 'prefill' nor 'step'"
            raise ValueError(f"{missing}. Use `whole`. It has: {sorted(self._run)}")
        x = self._fit(next(iter(self._piece_sizes)), x)
        steps, before = self._check_steps(x), (self._tensors, self.steps)
        try:
            return _checked(self._read_pieces(x, steps), x)
        except Exception:
            self._tensors, self.steps = before
            raise

    step = prefill = read

    def generate(self, prompt: Iterable[int], choose: Callable = np.argmax) -> Iterator[int]:
        """Read the token ids of a prompt, then yield and read token after token, without an end.

        `choose` is a function from the logits of the next token to its id.
        """
        piece, key = list(prompt), next(iter(self._piece_sizes), "serve")
        if not piece:
            raise ValueError("`prompt` must hold at least one token. Received: none")
        while True:
            ids = np.array([piece], "int32")
            x = {k: ids if k != "padding_mask" else np.ones_like(ids) for k in self._inputs[key]}
            yield (piece := [int(choose(self.read(x)[0, -1]))])[0]

    def reset(self) -> None:
        """Begin a new stream."""
        if self.steps and self.metadata["state_form"] == "variables":
            if "reset" not in self._run:
                raise ValueError("The file has no 'reset'. Create a new `Device` instead.")
            self._run["reset"]()
        self._tensors = {name: np.zeros(*spec) for name, spec in self._state_specs.items()}
        self.steps = 0

    @property
    def state(self) -> State:
        """The stream's `State`. Assign one to continue it, here or in another file of the model."""
        if self.metadata["state_form"] == "variables":
            raise ValueError("The file keeps its state inside. Export with state='tensors'.")
        return State(self.metadata["weights"], self.steps, dict(self._tensors))

    @state.setter
    def state(self, new: State) -> None:
        given = new.weights, {name: ([*a.shape], str(a.dtype)) for name, a in new.tensors.items()}
        expected = self.state.weights, {name: (*spec,) for name, spec in self._state_specs.items()}
        if given != expected:
            raise ValueError(
                "The state belongs to another model or batch size. Use one of this model. "
                f"Expected: {expected}. Received: {given}"
            )
        self._tensors, self.steps = dict(new.tensors), new.steps

    def save(self, path: str | os.PathLike) -> None:
        """Write the state to a .npz file. The old file stays until the new one is complete."""
        kept: dict[str, Any] = {"weights": self.state.weights, "steps": self.steps, **self._tensors}
        try:
            with open(f"{path}.tmp", "wb") as file:  # stays if the process is killed
                np.savez(file, **kept)
                file.flush()
                os.fsync(file.fileno())
            os.replace(f"{path}.tmp", path)
        finally:
            if os.path.exists(f"{path}.tmp"):
                os.remove(f"{path}.tmp")

    def load(self, path: str | os.PathLike) -> None:
        """Continue from a state that `save` wrote. ValueError if it is damaged or does not fit."""
        with _open_checked(path) as file:
            found = dict(np.load(file))
            self.state = State(str(found.pop("weights")), int(found.pop("steps")), found)

    def _read_pieces(self, x, steps):
        """The outputs for the next steps, by name; the state moves on."""
        if not steps:
            return self._no_outputs(next(iter(self._piece_sizes)), len(next(iter(x.values()))))
        start, found = 0, []
        for key, size in self._piece_sizes.items():
            for _ in range((steps - start) // size):
                piece = {name: a[:, start : start + size] for name, a in x.items()}
                found.append(self._run[key](**piece, **self._tensors))
                self._tensors = {name: found[-1].pop(name) for name in self._tensors}
                start, self.steps = start + size, self.steps + size
        return {name: np.concatenate([y[name] for y in found], axis=1) for name in found[0]}

    def _no_outputs(self, key, batch):
        """The outputs for 0 steps, which interpreters do not run."""
        specs = self.metadata["signatures"][key]["outputs"]
        specs = {name: spec for name, spec in specs.items() if name not in self._tensors}
        return {name: np.zeros([batch, 0, *s[2:]], dtype) for name, (s, dtype) in specs.items()}

    def _fit(self, key, x):
        """`x` as a dict of the arrays that a signature takes. Raises ValueError if it is not."""
        x, specs, arrays = x if isinstance(x, dict) else {"x": x}, self._inputs[key], {}
        if set(x) != set(specs):
            raise ValueError(f"'{key}' takes the inputs {sorted(specs)}. Received: {sorted(x)}")
        for name, (shape, dtype) in specs.items():
            a = np.asarray(x[name])
            fits = a.ndim == len(shape) and all(a.shape[i] == n for i, n in enumerate(shape) if n)
            fits = fits and (a.size or key != "serve")  # interpreters do not run 0 steps
            if not (fits and np.can_cast(a.dtype, dtype, "same_kind")):
                received = f"Received: {a.shape} {a.dtype}"
                raise ValueError(f"'{name}' must have shape {shape} and dtype {dtype}. {received}")
            arrays[name] = np.ascontiguousarray(a, dtype)
        return arrays

    def _check_length(self, arrays):
        """Raises ValueError if whole inputs have more steps than the model can read."""
        limit = self.metadata.get("max_whole_steps")  # files of older versions lack it
        for name, a in arrays.items():
            if limit is None or a.ndim < 2 or a.shape[1] <= limit:
                continue
            # An input of a fixed length cannot be cut, so steps of zeros count as padding there.
            fixed = self._inputs["serve"][name][0][1] is not None
            nonzero = np.any(a.reshape(*a.shape[:2], -1), axis=2)
            steps = nonzero.sum(axis=1).max() if fixed else a.shape[1]
            if steps > limit:
                raise ValueError(
                    f"The model reads at most {limit} steps at once. Cut the input, padding "
                    f"included, or split it. Received: {steps} steps of '{name}'"
                )

    def _check_steps(self, arrays):
        """The number of steps. Raises ValueError if the stream cannot read them."""
        (steps, *others), limit = {a.shape[1] for a in arrays.values()}, self.metadata["max_steps"]
        if others or steps % min(self._piece_sizes.values()):
            raise ValueError(
                "Every input needs the same number of steps, and the file reads "
                f"{self._piece_sizes} at a time. Received: {steps, *others} steps"
            )
        if limit is not None and self.steps + steps > limit:
            raise ValueError(
                f"The model's streams end after {limit} steps. Call `reset()` to begin a new "
                f"stream. Received: {steps} more after {self.steps}"
            )
        return steps


@contextlib.contextmanager
def _open_checked(path):
    """The open file. A ValueError replaces every error in its use: damage causes many kinds."""
    with open(path, "rb") as file:
        try:
            yield file
        except Exception as error:
            message = f"{path} is damaged, or not from keras_cosattn. Replace it. {error!r}"
            raise ValueError(message) from error


def _checked(outputs, inputs):
    """The outputs, an array or a dict of several. ValueError if they hold NaN and no input does."""
    bad = [key for key, y in outputs.items() if np.isnan(y).any()]
    if bad and not any(np.isnan(a).any() for a in inputs.values()):
        raise ValueError(
            f"The model computed NaN in {bad} from inputs without NaN. The input is too long, too "
            "large or all padding, or the stream has read NaN before: check it, and call `reset()` "
            f"to begin a new stream. Received: { ({key: a.shape for key, a in inputs.items()}) }"
        )
    return outputs if len(outputs) > 1 else next(iter(outputs.values()))


def main(path: str, x: str, y: str, threads: int = 1) -> str:
    """Run a file on the array in the file `x`, write the outputs to `y`, and say so in a line."""
    given = np.load(x)
    device = Device(path, threads, batch_size=len(given))
    found = device.read(given) if device.can_stream else device.whole(given)
    np.save(y, found, allow_pickle=False)
    return f"{x} {given.shape} -> {y} {found.shape}"


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        print(main(sys.argv[1], sys.argv[2], sys.argv[3]))
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"run_on_device.py: {' '.join(str(error).split())}")
