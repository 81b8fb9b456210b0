"""A small cosFormer on LiteRT, one thread: beside softmax, as its stream grows old, and in chunks.

    python benchmarks/on_device.py [--lengths 512 4096 16384] [--steps 1000000]

The model has two blocks of width 64 with 4 heads of 16. Files are exported here and run in
processes that import NumPy and LiteRT only; memory is the largest resident size of such a process,
and in brackets less its size before the file was loaded. Every file agreed with Keras when it was
exported. "Plain" is the textbook form of the same sums: an outer product for every step, summed up.
"""

import argparse
import datetime
import json
import pathlib
import platform
import subprocess
import sys
import tempfile

import numpy as np

SEED, WIDTH, HEADS = 0, 64, 4

WORKER = """
import json, re, sys, time
import numpy as np
from ai_edge_litert.interpreter import Interpreter

def status(name):
    with open("/proc/self/status") as file:
        return int(re.search(name + r":\\s+(\\d+)", file.read())[1]) / 1024  # MiB

def load(path, signature):
    return Interpreter(path, num_threads=1).get_signature_runner(signature)

def draw(details):
    rng = np.random.default_rng(0)
    inputs = {}
    for name, about in details.items():
        shape, kind = about["shape"], about["dtype"]
        x = rng.integers(0, 256, shape) if kind == np.int32 else rng.standard_normal(shape)
        inputs[name] = (x if name == "x" else np.zeros(shape)).astype(kind)
    return inputs

def whole(path):
    before = status("VmRSS")
    run = load(path, "serve")
    inputs, times = draw(run.get_input_details()), []
    for _ in range(7):
        start = time.perf_counter()
        run(**inputs)
        times.append(1e3 * (time.perf_counter() - start))
    peak = status("VmHWM")
    return {"ms": float(np.median(times[1:])), "peak": peak, "more": peak - before}

def chunks(*paths):  # in turns, so that both meet the same disturbances
    runs = [load(path, "prefill") for path in paths]
    states = [draw(run.get_input_details()) for run in runs]
    times = [[] for _ in paths]
    for _ in range(400):
        for run, inputs, spent in zip(runs, states, times):
            start = time.perf_counter()
            found = run(**inputs)
            spent.append(1e6 * (time.perf_counter() - start) / inputs["x"].shape[1])
            inputs.update({name: found[name] for name in inputs if name != "x"})
    return [float(np.median(spent)) for spent in times]

def ages(path, young, old):
    prefill, step = load(path, "prefill"), load(path, "step")
    x, states, position = draw(prefill.get_input_details()), {}, 0
    sizes = set()
    while position < old:
        found = prefill(**x)
        x.update({name: found[name] for name in x if name != "x"})
        position += x["x"].shape[1]
        state = {name: value for name, value in x.items() if name != "x"}
        sizes.add(sum(value.nbytes for value in state.values()))
        for age in (young, old):
            if age not in states and position >= age:
                states[age] = dict(state)
    times = {age: [] for age in states}
    one = draw(step.get_input_details())["x"]
    for i in range(4000):
        for age, state in states.items():
            start = time.perf_counter()
            found = step(x=one, **state)
            times[age].append(1e6 * (time.perf_counter() - start))
            states[age] = {name: found[name] for name in state}
    return {"us": [float(np.median(times[age])) for age in (young, old)], "bytes": sorted(sizes)}

work, arguments = sys.argv[1], json.loads(sys.argv[2])
print(json.dumps({"whole": whole, "chunks": chunks, "ages": ages}[work](*arguments)))
"""


def on_device(work, *arguments):
    """What a function of the worker finds, in a process of its own."""
    command = [sys.executable, "-c", WORKER, work, json.dumps([str(a) if isinstance(a, pathlib.Path) else a for a in arguments])]  # fmt: skip  # noqa: E501
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        raise RuntimeError(found.stderr)
    return json.loads(found.stdout)


def plain_attention():
    """The layer of the textbook form: the sums before every step are written out."""
    import math

    import keras
    from keras import ops

    from keras_cosattn.attention.sums import SumsAttention

    @keras.saving.register_keras_serializable("benchmarks")
    class Plain(SumsAttention):
        """cosFormer up to `max_length` steps, O(t d e) memory."""

        def __init__(self, num_heads, key_dim, max_length, **kwargs):
            super().__init__(num_heads, key_dim, **kwargs)
            self.limit = self.max_length = max_length

        def get_config(self):
            return {**super().get_config(), "max_length": self.max_length}

        def _state_spec(self):
            sums = (self.num_heads, 2 * self.key_dim, self.value_dim + 1), "float32"
            return {"sums": sums, "position": ((), "int32")}

        def _sums(self, q, k, v, layout, state):
            t = ops.shape(q)[1]
            start = 0 if state is None else ops.expand_dims(state["position"], 1)
            position = start + ops.expand_dims(ops.arange(t, dtype="int32"), 0)
            angle = ops.cast(position, "float32") * (math.pi / 2 / self.limit)
            angle = ops.expand_dims(ops.expand_dims(angle, 2), 3)
            q, k = (
                ops.concatenate([x * ops.cos(angle), x * ops.sin(angle)], axis=-1)
                for x in (ops.relu(q), ops.relu(k))
            )
            v = ops.concatenate([v, ops.ones_like(v[..., :1])], axis=-1)
            sums = ops.cumsum(ops.expand_dims(k, 4) * ops.expand_dims(v, 3), axis=1)
            sums = sums if state is None else sums + ops.expand_dims(state["sums"], 1)
            out = ops.squeeze(ops.matmul(ops.expand_dims(q, 3), sums), 3)
            state = {"sums": sums[:, -1], "position": position[:, -1] + 1}
            return out[..., :-1] / (out[..., -1:] + 1e-12), state

    return Plain


def model(attention, causal):
    """Byte ids to two logits, of each step or of the whole."""
    import keras

    from keras_cosattn import TransformerDecoder, TransformerEncoder

    keras.utils.set_random_seed(SEED)
    block = TransformerDecoder if causal else TransformerEncoder
    x = inputs = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(256, WIDTH)(x)
    for _ in range(2):
        x = block(2 * WIDTH, attention=attention, normalize_first=True)(x)
    x = keras.layers.LayerNormalization()(x)
    x = x if causal else keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def beside_softmax(folder, lengths):
    """Time and memory of the whole input, as it grows."""
    from keras_cosattn import CosFormerAttention, SoftmaxAttention
    from keras_cosattn.export import to_tflite

    print(f"\n{'steps':>6} {'':9} {'file, bytes':>12} {'parts':>5} {'ms':>9} {'peak MiB':>17}")
    for n in lengths:
        rows = {}
        for name, attention in (
            ("cosFormer", CosFormerAttention(HEADS, WIDTH // HEADS, max_length=n)),
            ("softmax", SoftmaxAttention(HEADS, WIDTH // HEADS)),
        ):
            path = folder / f"{name}_{n}.tflite"
            sample = np.random.default_rng(SEED).integers(0, 256, (1, n)).astype("int32")
            report = to_tflite(
                model(attention, False), path, signatures=["serve"], length=n, sample=sample
            )
            rows[name] = row = on_device("whole", path)
            print(
                f"{n:6} {name:9} {report.size:12,} {report.partitions['serve']:5} {row['ms']:9.1f}"
                f" {row['peak']:8.0f} ({row['more']:6.0f})",
                flush=True,
            )
        ratios = {
            key: rows["softmax"][key] / rows["cosFormer"][key] for key in ("ms", "peak", "more")
        }
        print(
            f"{'':6} {'ratio':9} {'':18} {ratios['ms']:9.1f} {ratios['peak']:8.1f} "
            f"({ratios['more']:6.1f})"
        )
    any_length = CosFormerAttention(HEADS, WIDTH // HEADS, max_length=max(lengths))
    report = to_tflite(model(any_length, False), folder / "any.tflite", signatures=["serve"])
    print(f"   any cosFormer {report.size:12,} {report.partitions['serve']:5}")


def streaming(folder, steps):
    """A step early and late in a stream; the next steps in chunks, beside the plain form."""
    from keras_cosattn import CosFormerAttention
    from keras_cosattn.export import to_tflite

    endless = model(CosFormerAttention(HEADS, WIDTH // HEADS, horizon=1024), True)
    to_tflite(endless, folder / "endless.tflite", signatures=["prefill", "step"])
    found = on_device("ages", folder / "endless.tflite", 1_000, steps)
    young, old = found["us"]
    print(
        f"\nA step after 1,000 steps {young:.1f} us, after {steps:,} {old:.1f} us: ratio "
        f"{old / young:.3f}; bytes of state all along: {found['bytes']}"
    )
    limit = 1 << 17
    forms = {
        "bounded": CosFormerAttention(HEADS, WIDTH // HEADS, max_length=limit),
        "endless": CosFormerAttention(HEADS, WIDTH // HEADS, horizon=1024),
        "plain": plain_attention()(HEADS, WIDTH // HEADS, limit),
    }
    models = {name: model(attention, True) for name, attention in forms.items()}
    print(f"\n{'us a token':12}" + "".join(f"{name:>9}" for name in forms) + f"{'ratio':>9}")
    for chunk in (64, 128, 1024):
        paths = [folder / f"{name}_{chunk}.tflite" for name in forms]
        for path, each in zip(paths, models.values(), strict=True):
            each.set_weights(models["plain"].get_weights())
            to_tflite(each, path, signatures=["prefill"], prefill_chunk=chunk)
        times = on_device("chunks", *paths)
        print(
            f"chunks {chunk:5}" + "".join(f"{us:9.2f}" for us in times)
            + f"{times[-1] / times[0]:9.1f}",
            flush=True,
        )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 4096, 16384])
    parser.add_argument("--steps", type=int, default=1_000_000)
    arguments = parser.parse_args()
    import ai_edge_litert
    import keras
    import tensorflow as tf

    print(
        f"{datetime.date.today()}  {platform.machine()}  Python {platform.python_version()}  "
        f"TensorFlow {tf.__version__}  Keras {keras.__version__}  LiteRT "
        f"{ai_edge_litert.__version__}  seed {SEED}"
    )
    with tempfile.TemporaryDirectory() as folder:
        beside_softmax(pathlib.Path(folder), arguments.lengths)
        streaming(pathlib.Path(folder), arguments.steps)


if __name__ == "__main__":
    main()
