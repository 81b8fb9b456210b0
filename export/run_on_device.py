"""Run an exported .tflite file, as a stream or whole, with NumPy and an interpreter alone.

    python run_on_device.py model.tflite in.npy out.npy [--whole] [--state state.npz]

`in.npy` is `(steps, ...)` or `(batch, steps, ...)`, and `out.npy` too. Runs on Python 3.9 or later.
"""

import argparse
import hashlib
import json
import os
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

    Inputs are arrays `(b, t, ...)`, or a dict of them where the model has several; so are outputs.
    What does not fit raises ValueError, and the stream stays as it was.
    """

    def __init__(self, path, threads=1, batch_size=1):
        """`batch_size` is for files that leave it open."""
        self.about, content = _opened(path)
        signatures, batch = self.about["signatures"], self.about["batch_size"] or batch_size
        interpreter = Interpreter(model_content=content, num_threads=threads)
        self._run = {key: interpreter.get_signature_runner(key) for key in signatures}
        self._inputs = {key: dict(signature["inputs"]) for key, signature in signatures.items()}
        self._state, self._sizes, self.steps = {}, {}, 0
        for key in ("prefill", "step"):
            inputs = self._inputs.get(key, {})
            for name, (shape, dtype) in inputs.items():
                inputs[name] = [batch, *shape[1:]], dtype
            state = {name: inputs.pop(name) for name in self.about["state"] if name in inputs}
            self._state = state or self._state
            if inputs:  # a `prefill` of any number of steps is given 128 at a time
                self._sizes[key] = next(iter(inputs.values()))[0][1] or 128
        self.reset()

    def whole(self, x):
        """The outputs for a whole input; the stream is not touched."""
        x = self._fit("serve", x)
        return _plain(self._run["serve"](**x))

    def step(self, x):
        """The outputs for the next step, `x (b, 1, ...)`."""
        return _plain(self._advance("step", self._fit("step", x)))

    def prefill(self, x):
        """The outputs for the next steps, as many as the file's `prefill` takes."""
        return _plain(self._advance("prefill", self._fit("prefill", x)))

    def read(self, x):
        """The outputs for any number of next steps: through `prefill`, the rest through `step`."""
        x = self._fit(next(iter(self._sizes), "step"), x, any_length=True)
        steps, start, found = self._room(x), 0, []
        if steps % min(self._sizes.values()):
            raise ValueError(f"The file reads {self._sizes} steps at a time. Received: {steps}")
        for key, size in self._sizes.items():
            while start + size <= steps:
                piece = {name: array[:, start : start + size] for name, array in x.items()}
                found.append(self._advance(key, piece))
                start += size
        return _plain({name: np.concatenate([y[name] for y in found], axis=1) for name in found[0]})

    def reset(self):
        """Begin the stream again."""
        if "reset" in self._run:
            self._run["reset"]()
        elif self.steps and self.about["state_form"] == "variables":
            raise ValueError("The file has no signature 'reset'. Open it again.")
        self._tensors = {name: np.zeros(*spec) for name, spec in self._state.items()}
        self.steps = 0

    @property
    def state_bytes(self):
        """Size of the state."""
        return sum(x.nbytes for x in self._tensors.values()) or self.about["state_bytes"]

    @property
    def state(self):
        """The stream's `State`. Set it to go on with it, here or in another file of the model."""
        if self.about["state_form"] == "variables":
            raise ValueError("This file keeps its state inside. Export with state='tensors'.")
        return State(self.about["weights"], self.steps, dict(self._tensors))

    @state.setter
    def state(self, new):
        own = self.state
        if new.weights != own.weights:
            raise ValueError(
                f"The state must be of the model with weights {own.weights}. Received: one of "
                f"another model, {new.weights}. Call `reset()` to begin with zeros."
            )
        spec, found = (
            {name: (x.shape, str(x.dtype)) for name, x in state.tensors.items()}
            for state in (own, new)
        )
        for name in sorted({**spec, **found}):
            if spec.get(name) != found.get(name):
                wanted, received = spec.get(name, "left out"), found.get(name, "none")
                raise ValueError(f"State '{name}' must be {wanted}. Received: {received}")
        self._tensors, self.steps = dict(new.tensors), new.steps

    def save(self, path):
        """Write the state; killed at any moment, it leaves the old file, and maybe `path.tmp`."""
        weights, steps, tensors = self.state
        tensors = {f"tensors/{name}": x for name, x in tensors.items()}
        try:
            with open(f"{path}.tmp", "wb") as file:
                np.savez(file, weights=weights, steps=steps, **tensors)
                file.flush()
                os.fsync(file.fileno())
            os.replace(f"{path}.tmp", path)
        finally:
            if os.path.exists(f"{path}.tmp"):
                os.remove(f"{path}.tmp")

    def load(self, path):
        """Go on from the state in a file that `save` wrote."""
        with open(path, "rb") as file:
            try:
                found = dict(np.load(file))
                weights, steps = str(found.pop("weights")), int(found.pop("steps"))
            except Exception as error:  # damaged files raise many kinds
                raise ValueError(f"{path} is no whole state: {error!r}. Remove it.") from error
        self.state = State(weights, steps, {k[len("tensors/") :]: x for k, x in found.items()})

    def _advance(self, key, x):
        """The outputs by name; `x` is what `_fit` returned."""
        steps = self._room(x)
        found = self._run[key](**x, **self._tensors)
        self._tensors = {name: found.pop(name) for name in self._tensors}
        self.steps += steps
        return found

    def _room(self, x):
        """The number of steps in `x`. Raises ValueError if the stream has not so many left."""
        limit, lengths = self.about["max_steps"], {array.shape[1] for array in x.values()}
        if len(lengths) > 1:
            raise ValueError(f"The inputs must have as many steps. Received: {sorted(lengths)}")
        steps = lengths.pop()
        if limit is not None and self.steps + steps > limit:
            raise ValueError(
                f"The model's streams end after {limit} steps. Received: {steps} more after "
                f"{self.steps}. Call `reset()` to begin again."
            )
        return steps

    def _fit(self, key, x, any_length=False):
        """`x` by name, as the arrays that a signature takes. Raises ValueError if it is not."""
        if key not in self._run:
            raise ValueError(
                f"The file has no signature '{key}', only {sorted(self._run)}. Export it with "
                f"signatures=['{key}']: streams need causal layers, 'serve' a length it allows."
            )
        x, specs, arrays = x if isinstance(x, dict) else {"x": x}, self._inputs[key], {}
        if set(x) != set(specs):
            raise ValueError(f"'{key}' takes a dict of {sorted(specs)}. Received: {sorted(x)}")
        for name, (shape, dtype) in specs.items():
            array = np.asarray(x[name])
            wanted = [shape[0], None, *shape[2:]] if any_length else shape
            fits = array.ndim == len(wanted) and array.size > 0
            fits = fits and all(n in (None, array.shape[i]) for i, n in enumerate(wanted))
            if not fits or not np.can_cast(array.dtype, dtype, "same_kind"):
                raise ValueError(
                    f"'{key}' takes {name} of shape {wanted}, {dtype}. "
                    f"Received: {array.shape}, {array.dtype}"
                )
            arrays[name] = np.ascontiguousarray(array, dtype)
        return arrays


def _opened(path):
    """What the file says of itself, and its model. Raises ValueError unless it is as exported."""
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                about = json.loads(archive.read("keras_cosattn.json"))
            file.seek(0)
            content = file.read(about["content"]["bytes"])
            found = hashlib.sha256(content).hexdigest()
            if found != about["content"]["sha256"]:
                raise ValueError(f"the model's sha256 is {found}")
        except Exception as error:  # damaged archives raise many kinds
            raise ValueError(
                f"{path} was not written by keras_cosattn, or is damaged: {error}. Copy it to the "
                "device again, or export the model again."
            ) from error
    return about, content


def _plain(outputs):
    return outputs if len(outputs) > 1 else next(iter(outputs.values()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("model", "input", "output"):
        parser.add_argument(name)
    parser.add_argument("--whole", action="store_true", help="the whole input in one call")
    parser.add_argument("--state", help="a file to go on from, if there is one, and to save to")
    arguments = parser.parse_args()
    if arguments.whole and arguments.state:
        parser.error("--whole begins at the beginning, so it takes no --state")
    device, x = Device(arguments.model), np.load(arguments.input)
    if arguments.state and os.path.exists(arguments.state):
        device.load(arguments.state)
    signatures = device.about["signatures"].values()
    single = any(x.ndim + 1 == len(s["inputs"]["x"][0]) for s in signatures if "x" in s["inputs"])
    y = (device.whole if arguments.whole else device.read)(x[None] if single else x)
    np.save(arguments.output, y[0] if single else y)
    if arguments.state:
        device.save(arguments.state)
    steps = x.shape[0 if single else 1]
    print(f"{steps} steps -> {arguments.output} {y.shape}, state {device.state_bytes} bytes")


if __name__ == "__main__":
    main()
