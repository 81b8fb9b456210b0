"""Every layer, target and quantisation: exported, run on the target, and compared with Keras."""

import contextlib
import functools
import pathlib
import re
import shutil
import sys
import typing
from unittest import mock

import keras
import numpy as np
from runtimes import Runtime, play, tflite_runtime
from variants import BIDIRECTIONAL, CASES, LOOPS, STREAMING, layer_of

from keras_cosattn import (
    CausalConv1D,
    PositionEmbedding,
    RunningMean,
    TransformerDecoder,
    TransformerEncoder,
)
from keras_cosattn import export as exporting
from keras_cosattn.export import checks, conversion
from keras_cosattn.export.file_runners import micro_runner
from keras_cosattn.export.micro_arena import micro_arena
from keras_cosattn.export.quantization import QUANTIZATIONS
from keras_cosattn.export.targets import TARGETS

SEED = 0
CHANNELS = 6
WIDTH = 64
"""So that every kernel has the 1,024 numbers from which on TensorFlow's converter quantises it."""

CHUNK = 8
STEPS = 20
"""Of the stream: two chunks, then single steps; and of `serve` where its length is fixed."""

SIZES = ((1, 1), (3, 31), (2, 13))
"""Batch and length of the calls of a `serve` that takes any, back to a shorter one too."""

EQUAL = 1e-4
"""Float32 in another order of summation, relative to the largest output."""

CHOOSING = ("LSHAttention", "ClusteredRoutingAttention")
LOST_BY_CHOICES = 3.0
"""Layers that choose by hash or rank, and dB that they may keep less than is promised for the
inputs of the exporter's check: on others smaller weights may change a choice."""

ROWS = [(case, True) for case in STREAMING] + [(case, False) for case in BIDIRECTIONAL]
COLUMNS = [(name, way) for name, target in TARGETS.items() for way in target.quantizations]


class Cell(typing.NamedTuple):
    """One layer, causal or looking both ways, on one target in one quantisation."""

    case: str
    causal: bool
    target: str
    quantize: str | None

    def __str__(self):
        way = "causal" if self.causal else "both ways"
        return f"{self.case}, {way}, {self.target}, {self.quantize or 'float32'}"

    @property
    def length(self):
        """Of `serve`, fixed where any length would be refused."""
        old_float16 = (self.target, self.quantize) == ("tflite-runtime", "float16")
        return STEPS if self.target in ("gpu", "micro") or old_float16 else None

    @property
    def batch_size(self):
        """Of all calls, fixed where the length is, or where any would be refused."""
        return 1 if self.length or (self.causal and self.case in LOOPS) else None

    @property
    def signatures(self):
        """All of the model, on micro the one that the target takes."""
        if not self.causal:
            return ["serve"]
        return ["step"] if self.target == "micro" else ["serve", "prefill", "step"]


CELLS = [Cell(*row, *column) for row in ROWS for column in COLUMNS]


class Outcome(typing.NamedTuple):
    """What became of a cell.

    Attributes:
        refused: why the exporter refused it, or None.
        difference, sqnr: of the outputs on the target to Keras, relative to the largest; in dB.
        least_sqnr: what the quantisation is to keep, None in float32.
    """

    refused: str | None = None
    difference: float | None = None
    sqnr: float | None = None
    least_sqnr: float | None = None

    @property
    def right(self):
        if self.refused is not None:
            return True
        if self.least_sqnr is None:
            return self.difference <= EQUAL
        return self.sqnr >= self.least_sqnr


def outcome(cell, path, runtime, signatures=None):
    """Export one cell, and unless that is refused run the file and compare.

    Args:
        cell: a `Cell`.
        path: of the file.
        runtime: what `runtime_of` gives for the cell's target.
        signatures: in place of the cell's.

    Raises RuntimeError if a file that was accepted cannot be loaded or run.
    """
    signatures = signatures or cell.signatures
    try:
        exporting.to_tflite(
            model(cell.case, cell.causal), path, target=cell.target, quantize=cell.quantize,
            signatures=signatures, prefill_chunk=CHUNK, length=cell.length,
            batch_size=cell.batch_size,
            representative_data=random_batches() if cell.quantize == "int8" else None,
        )  # fmt: skip
    except ValueError as error:
        return Outcome(refused=reason(error))
    calls, expected = zip(*questions(cell, signatures), strict=True)
    found = runtime.play(path, calls)
    pairs = [({"y": y}, {"y": z}) for y, z in zip(expected, found, strict=True)]
    least = QUANTIZATIONS[cell.quantize].least_sqnr if cell.quantize else None
    if least is not None and cell.case.startswith(CHOOSING):
        least -= LOST_BY_CHOICES
    return Outcome(None, checks.largest_difference(pairs), checks.sqnr(pairs), least)


def reason(error):
    """The first sentence of a refusal, and what was measured or the runtime itself said."""
    return re.split(r"(?<=\.) (?!It says|Differences)| \| Traceback", str(error))[0]


@contextlib.contextmanager
def traced_once(folder):
    """Within it, exports of a model with the same signatures and sizes share one SavedModel.

    To trace and write it takes much of the time of an export.
    """
    write, written = conversion.write_signatures, {}

    def write_or_copy(plan, path):
        options = plan.options
        sizes = options.batch_size, options.length, options.prefill_chunk
        asked = id(plan.model), *plan.functions, *sizes, options.means, options.state_dtype
        if asked not in written:
            written[asked] = pathlib.Path(folder, f"{len(written)}")
            write(plan, written[asked])
        shutil.copytree(written[asked], path, dirs_exist_ok=True)

    with mock.patch.object(conversion, "write_signatures", write_or_copy):
        yield


def runtime_of(target):
    """Where the files of a target run, a context, or None; and why there is none.

    Those for a GPU run on LiteRT's CPU.
    """
    if target == "micro":
        return contextlib.nullcontext(Micro()), None
    python, why_not = tflite_runtime() if target == "tflite-runtime" else (sys.executable, None)
    return python and Runtime(python), why_not


@functools.cache
def model(case, causal):
    """A small model around the layer, the same at every call."""
    keras.utils.set_random_seed(SEED)
    cls, arguments = CASES[case]
    layer = layer_of(cls, 4, 8, num_key_value_heads=2, **arguments)
    block = TransformerDecoder if causal else TransformerEncoder
    x = keras.Input((None, CHANNELS))
    y = PositionEmbedding(400)(CausalConv1D(WIDTH, 3)(x))
    y = block(WIDTH, attention=layer, normalize_first=True)(y)
    y = RunningMean()(y) if causal else y
    return keras.Model(x, keras.layers.Dense(16)(y), name="causal" if causal else "both_ways")


def random_batches():
    rng = np.random.default_rng(SEED + 1)
    return [rng.standard_normal((4, STEPS, CHANNELS)).astype("float32") for _ in range(3)]


def questions(cell, signatures):
    """Calls to a `Device`, each with the outputs of the Keras model: ((method, input), output)."""
    rng, keras_model = np.random.default_rng(SEED), model(cell.case, cell.causal)

    def example(*shape):
        x = rng.standard_normal((*shape, CHANNELS)).astype("float32")
        return x, np.asarray(keras_model(x))

    if "serve" in signatures:
        for batch, length in [(1, STEPS)] if cell.length else SIZES:
            x, y = example(cell.batch_size or batch, length)
            yield ("whole", x), y
    pieces = [("prefill", CHUNK)] * 2 if "prefill" in signatures else []
    taken = CHUNK * len(pieces)
    pieces += [("step", 1)] * (STEPS - taken if "step" in signatures else 0)
    x, y = example(1, STEPS)
    start = 0
    for name, size in pieces:
        part = slice(start, start + size)
        yield (name, x[:, part]), y[:, part]
        start += size


class Micro:
    """As `Runtime`, for tflite-micro, in this process."""

    def play(self, path, calls):
        return play(MicroDevice(path), calls)


class MicroDevice:
    """As `Device`, for the one signature of a file for tflite-micro."""

    def __init__(self, path):
        about = exporting.describe(path)
        content = path.read_bytes()[: about["content"]["bytes"]]
        ((self._signature, sides),) = about["signatures"].items()
        names = list(sides["inputs"]), list(sides["outputs"])
        self._run = micro_runner(content, names, micro_arena(content))
        self._state = {name: np.zeros(*sides["inputs"][name]) for name in about["state"]}

    def step(self, x):
        found = self._run(self._signature, {"x": x, **self._state})
        self._state = {name: found[name] for name in self._state}
        return found["y"]

    whole = step
