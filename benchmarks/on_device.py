"""A small cosFormer on LiteRT, one thread: beside softmax, as its stream grows old, and in chunks.

    python benchmarks/on_device.py [--lengths 512 4096 16384] [--steps 1000000]

The model has two blocks of width 64 with 4 heads of 16. Files are exported here and run in
processes that import NumPy and LiteRT only; memory is the largest resident size of such a process,
and in brackets less its size before the file was loaded. Every file agreed with Keras when it was
exported. "Plain" is the textbook form of the same sums: an outer product for every step, summed up.
The last table is of one causal layer whose files take all steps at once, as exports do, or loop
over blocks of them. "Parts" are those that XNNPACK runs, without those inside a loop.
"""

import argparse
import contextlib
import datetime
import pathlib
import platform
import tempfile
from unittest import mock

import numpy as np
from measure.program import run_program

SEED, WIDTH, HEADS = 0, 64, 4


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
            rows[name] = row = run_program("litert_times", "whole", path)
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
    found = run_program("litert_times", "ages", folder / "endless.tflite", 1_000, steps)
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
        times = run_program("litert_times", "chunks", *paths)
        print(
            f"chunks {chunk:5}" + "".join(f"{us:9.2f}" for us in times)
            + f"{times[-1] / times[0]:9.1f}",
            flush=True,
        )  # fmt: skip


def causal_layer(length):
    """cosFormer alone, `(1, t, 64) -> (1, t, 64)`."""
    import keras

    from keras_cosattn import CosFormerAttention

    keras.utils.set_random_seed(SEED)
    x = keras.Input((None, WIDTH))
    attention = CosFormerAttention(HEADS, WIDTH // HEADS, max_length=length)
    return keras.Model(x, attention(x, x, use_causal_mask=True))


def looping():
    """A context in which files keep the loop over blocks that a CPU runs."""
    from keras_cosattn.export import saved_model_archive

    return mock.patch.object(saved_model_archive, "all_at_once", contextlib.nullcontext)


def beside_loop(folder, steps=4096):
    """Time of the causal sums with all steps at once, as files are made, and as a loop."""
    from keras_cosattn.export import to_tflite

    layer, paths, parts = causal_layer(steps), [], []
    for context in (contextlib.nullcontext, looping):
        for length in (steps, None):
            paths.append(folder / f"{len(paths)}.tflite")
            with context():
                report = to_tflite(layer, paths[-1], signatures=["serve"], length=length)
            parts.append(report.partitions["serve"])
    times = run_program("litert_times", "turns", steps, *paths)
    print(f"\n{f'{steps:,} steps':13}{'all at once':>17}{'loop':>17}{'ratio':>8}")
    print(f"{'':13}" + 2 * f"{'parts':>7}{'ms':>10}")
    for i, name in enumerate(("fixed length", "any length")):
        whole, loop = (f"{parts[j]:7}{times[j]:10.2f}" for j in (i, i + 2))
        print(f"{name:13}{whole}{loop}{times[i + 2] / times[i]:8.1f}", flush=True)


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
        beside_loop(pathlib.Path(folder))


if __name__ == "__main__":
    main()
