"""Run an exported .tflite file with NumPy and an interpreter alone, on Python 3.9 or later.

python run_on_device.py model.tflite in.npy out.npy  # (batch, steps, ...); a stream if it can
"""

import contextlib
import hashlib
import json
import os
import sys
import zipfile
from collections import namedtuple

import numpy as np

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    try:
        from tflite_runtime.interpreter import Interpreter
    except ImportError as error:
        raise ImportError("Nothing here runs .tflite files: pip install ai-edge-litert") from error

State = namedtuple("State", "weights steps tensors")  # the model's id, steps read, {name: array}


class Device:
    """A file and one stream through it; `about` is what the file says of itself.

    Arrays `(b, t, ...)` go in and out, or dicts of several; b is `batch_size` if the file has none.
    What does not fit raises ValueError, and the stream stays as it was.
    """

    def __init__(self, path, threads=1, batch_size=1):
        with _usable(path) as file:
            self.about = json.loads(zipfile.ZipFile(path).read("keras_cosattn.json"))
            content = file.read(self.about["content"]["bytes"])
            if hashlib.sha256(content).hexdigest() != self.about["content"]["sha256"]:
                raise ValueError("its sha256 is another")
        signatures = self.about["signatures"]
        interpreter = Interpreter(model_content=content, num_threads=threads)
        self._run = {key: interpreter.get_signature_runner(key) for key in signatures}
        self._takes = {key: dict(signatures[key]["inputs"]) for key in signatures}
        self._sizes, self._state, self.steps = {}, {}, 0
        for key in [key for key in ("prefill", "step") if key in signatures]:
            takes = self._takes[key]
            for name, ((batch, *shape), dtype) in takes.items():
                takes[name] = [batch or batch_size, *shape], dtype
            self._state = {name: takes.pop(name) for name in self.about["state"] if name in takes}
            for shape, _ in takes.values():
                self._sizes[key], shape[1] = shape[1] or (128 if "step" in signatures else 1), None
        self.reset()

    def whole(self, x):
        """The outputs for a whole input; the stream is not touched."""
        return _plain(self._run.get("serve")(**self._fit("serve", x)))  # refused if it is None

    def read(self, x):
        """The outputs for any number of next steps: chunks by `prefill`, the rest by `step`."""
        x, start, found = self._fit(next(iter(self._sizes), "step"), x), 0, []
        (steps, *others), limit = {a.shape[1] for a in x.values()}, self.about["max_steps"]
        if others or steps % min(self._sizes.values()):
            raise ValueError(f"Steps are read {self._sizes} at a time. Received: {steps, *others}")
        if limit is not None and self.steps + steps > limit:
            received = f"{steps} more after {self.steps}. Call `reset()` to begin again."
            raise ValueError(f"The model's streams end after {limit} steps. Received: {received}")
        for key, size in self._sizes.items():
            for _ in range((steps - start) // size):
                piece = {name: a[:, start : start + size] for name, a in x.items()}
                found.append(self._run[key](**piece, **self._tensors))
                self._tensors = {name: found[-1].pop(name) for name in self._tensors}
                start, self.steps = start + size, self.steps + size
        return _plain({name: np.concatenate([y[name] for y in found], axis=1) for name in found[0]})

    step = prefill = read

    def reset(self):
        """Begin the stream again."""
        if self.steps and self.about["state_form"] == "variables":
            self._run.get("reset")(**self._fit("reset", {}))
        self._tensors, self.steps = {name: np.zeros(*spec) for name, spec in self._state.items()}, 0

    @property
    def state(self):
        """The stream's `State`. Set it to go on with it, here or in another file of the model."""
        if self.about["state_form"] == "variables":
            raise ValueError("This file keeps its state inside. Export with state='tensors'.")
        return State(self.about["weights"], self.steps, dict(self._tensors))

    @state.setter
    def state(self, new):
        given = new.weights, {name: ([*a.shape], str(a.dtype)) for name, a in new.tensors.items()}
        if given != (self.state.weights, self._state):
            raise ValueError(f"The state is of another model or batch: {given}, not {self._state}")
        self._tensors, self.steps = dict(new.tensors), new.steps

    def save(self, path):
        """Write the state; killed at any moment, it leaves the old file, and maybe `path.tmp`."""
        try:
            with open(f"{path}.tmp", "wb") as file:
                np.savez(file, weights=self.state.weights, steps=self.steps, **self.state.tensors)
                file.flush()
                os.fsync(file.fileno())
            os.replace(f"{path}.tmp", path)
        finally:
            if os.path.exists(f"{path}.tmp"):
                os.remove(f"{path}.tmp")

    def load(self, path):
        """Go on from the state in a file that `save` wrote."""
        with _usable(path) as file:
            found = dict(np.load(file))
            self.state = State(str(found.pop("weights")), int(found.pop("steps")), found)

    def _fit(self, key, x):
        """`x` by name, as the arrays that a signature takes. Raises ValueError if it is not."""
        x, takes, arrays = x if isinstance(x, dict) else {"x": x}, self._takes.get(key), {}
        if takes is None or set(x) != set(takes):
            raise ValueError(f"The file has no '{key}' of {sorted(x)}, only {self._takes}")
        for name, (shape, dtype) in takes.items():
            a = np.asarray(x[name])
            fits = a.ndim == len(shape) and all(a.shape[i] == n for i, n in enumerate(shape) if n)
            if not (fits and a.size and np.can_cast(a.dtype, dtype, "same_kind")):
                raise ValueError(f"{name} must be {shape} {dtype}. Received: {a.shape} {a.dtype}")
            arrays[name] = np.ascontiguousarray(a, dtype)
        return arrays


@contextlib.contextmanager
def _usable(path):
    """The open file. Raises ValueError for all that using it raises: of many kinds if damaged."""
    with open(path, "rb") as file:
        try:
            yield file
        except Exception as error:
            raise ValueError(f"{path} is damaged or foreign: {error!r}. Replace it.") from error


def _plain(outputs):
    return outputs if len(outputs) > 1 else next(iter(outputs.values()))


if __name__ == "__main__":
    path, x, y = sys.argv[1:] or sys.exit(__doc__)
    given = np.load(x)
    device = Device(path, batch_size=len(given))
    found = (device.read if device._sizes else device.whole)(given)
    np.save(y, found, allow_pickle=False)
    print(f"{x} {given.shape} -> {y} {found.shape}")
