"""Run an exported .tflite file, one step at a time or whole, without TensorFlow or Keras.

    python run_on_device.py model.tflite input.npy output.npy [--whole]

Needs NumPy and one of `ai-edge-litert` or `tflite-runtime`; this file can be copied alone to the
device. `input.npy` is `(steps, ...)` or `(batch, steps, ...)`; the output has the same layout.
"""

import argparse
import json
import zipfile

import numpy as np

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    from tflite_runtime.interpreter import Interpreter


class Device:
    """A stream through one file: it keeps the state between the steps.

    Attributes: `about`, the file's description; `steps`, how many were read since the last reset.
    """

    def __init__(self, path, threads=1):
        try:
            with zipfile.ZipFile(path) as archive:
                self.about = json.loads(archive.read("keras_cosattn.json"))
        except (KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} was not written by keras_cosattn, or is damaged.") from error
        interpreter = Interpreter(model_path=str(path), num_threads=threads)
        self._run = {
            name: interpreter.get_signature_runner(name) for name in self.about["signatures"]
        }
        self.reset()

    def whole(self, x):
        """The outputs for a whole input `x (b, t, ...)`; the stream's state is not touched."""
        return self._call("serve", x)["y"]

    def prefill(self, x):
        """The outputs for the next steps `x (b, t, ...)` of the stream."""
        return self._advance("prefill", x)

    def step(self, x):
        """The output for the next step `x (b, 1, ...)` of the stream."""
        return self._advance("step", x)

    def reset(self):
        """Begin the stream again."""
        streams = [name for name in ("step", "prefill") if name in self._run]
        inputs = self.about["signatures"][streams[0]]["inputs"] if streams else {}
        self.state = {name: np.zeros(*inputs[name]) for name in self.about["state"]}
        self.steps = 0

    @property
    def state_bytes(self):
        """Size of the state now."""
        return sum(x.nbytes for x in self.state.values())

    def _advance(self, signature, x):
        limit = self.about["max_steps"]
        if limit is not None and self.steps + x.shape[1] > limit:
            raise ValueError(
                f"The model's streams end after {limit} steps. Received: {x.shape[1]} more after "
                f"{self.steps}. Call `reset()` to begin again."
            )
        found = self._call(signature, x, **self.state)
        self.state = {name: found[name] for name in self.state}
        self.steps += x.shape[1]
        return found["y"]

    def _call(self, signature, x, **state):
        if signature not in self._run:
            raise ValueError(
                f"The file has no signature '{signature}', only {sorted(self._run)}. Export it "
                "from a model of causal layers."
            )
        shape, dtype = self.about["signatures"][signature]["inputs"]["x"]
        sizes = zip(shape, x.shape, strict=False)
        if len(shape) != x.ndim or any(n not in (None, size) for n, size in sizes):
            raise ValueError(f"'{signature}' takes x of shape {shape}. Received: {x.shape}")
        return self._run[signature](x=np.ascontiguousarray(x, dtype), **state)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--whole", action="store_true", help="the whole input in one call")
    arguments = parser.parse_args()
    device = Device(arguments.model)
    x = np.load(arguments.input)
    signature = device.about["signatures"]["serve" if arguments.whole else "step"]
    single = x.ndim == len(signature["inputs"]["x"][0]) - 1
    x = x[None] if single else x
    if arguments.whole:
        y = device.whole(x)
    else:
        y = np.concatenate([device.step(x[:, i : i + 1]) for i in range(x.shape[1])], axis=1)
    np.save(arguments.output, y[0] if single else y)
    print(f"{x.shape[1]} steps -> {arguments.output} {y.shape}, state {device.state_bytes} bytes")


if __name__ == "__main__":
    main()
