"""Fashion-MNIST, one pixel after the other: 784 steps, one of ten kinds of clothes.

The files are those of the Debian package `dataset-fashion-mnist`, or of `keras.datasets`.
"""

import gzip
import pathlib
import subprocess
import tempfile

import numpy as np
from measure.data_cache import kept_arrays
from measure.heads import mean
from measure.model_inputs import Signal

from tasks.task import ACCURACY, Data, Task, chosen, drawn_from, majority, rows

SIDE = 28
VALIDATION, TEST = 320, 2_048
PACKAGE = "dataset-fashion-mnist"
FOLDER = pathlib.Path("usr", "share", "datasets", "fashion-mnist")
IMAGES_HEADER, LABELS_HEADER = 16, 8
FITTED = 5_000
"""Training images of the logistic regression."""


def images():
    """Images `(n, 28, 28)` and labels, to train on and to test with.

    Raises:
        RuntimeError: If they can be had neither from Debian's package nor from Keras.
    """

    def make():
        (train, labels), (test, test_labels) = _from_debian() or _from_keras()
        return {"train": train, "labels": labels, "test": test, "test_labels": test_labels}

    found = kept_arrays("fashion_mnist", make)
    return (found["train"], found["labels"]), (found["test"], found["test_labels"])


def _from_debian():
    """The arrays of Debian's package, installed or downloaded; None where there is no Debian."""
    if pathlib.Path("/", FOLDER).exists():
        return _read(pathlib.Path("/", FOLDER))
    with tempfile.TemporaryDirectory() as folder:
        try:
            options = {"cwd": folder, "check": True, "capture_output": True}
            subprocess.run(["apt-get", "download", PACKAGE], **options)
            (archive,) = pathlib.Path(folder).glob("*.deb")
            subprocess.run(["dpkg-deb", "--extract", archive, "."], **options)
        except (OSError, subprocess.CalledProcessError):
            return None
        return _read(pathlib.Path(folder, FOLDER))


def _read(folder):
    def numbers(name, header):
        content = gzip.decompress((folder / name).read_bytes())
        return np.frombuffer(content, "uint8", offset=header)

    return [
        (
            numbers(f"{part}-images-idx3-ubyte.gz", IMAGES_HEADER).reshape(-1, SIDE, SIDE),
            numbers(f"{part}-labels-idx1-ubyte.gz", LABELS_HEADER),
        )
        for part in ("train", "t10k")
    ]


def _from_keras():
    import keras

    try:
        return keras.datasets.fashion_mnist.load_data()
    except Exception as error:  # Keras raises plain ones
        raise RuntimeError(
            f"Fashion-MNIST could not be downloaded. Install the Debian package {PACKAGE}, or "
            f"connect and run again. Keras said: {error}"
        ) from error


def examples(pixels, labels):
    """`Examples` of pixels from -1 to 1, one a step."""
    return rows(np.float32(pixels.reshape(len(pixels), -1, 1)) / 127.5 - 1, labels)


def read(seed):
    (pixels, labels), (tests, test_labels) = images()
    train = examples(pixels, labels)
    return Data(
        drawn_from(chosen(train, slice(VALIDATION, None))),
        chosen(train, slice(VALIDATION)),
        examples(tests[:TEST], test_labels[:TEST]),
    )


def floors():
    from sklearn.linear_model import LogisticRegression

    (pixels, labels), (tests, test_labels) = images()
    flat = [part.reshape(len(part), -1) / 255 for part in (pixels[:FITTED], tests[:TEST])]
    model = LogisticRegression(max_iter=100).fit(flat[0], labels[:FITTED])
    return {
        "majority": majority(test_labels[:TEST]),
        f"logistic regression on pixels, {FITTED:,} images": float(
            (model.predict(flat[1]) == test_labels[:TEST]).mean()
        ),
    }


TASKS = [
    Task(
        name="image",
        about="Fashion-MNIST, one pixel a step, official split",
        length=SIDE * SIDE,
        batch=8,
        every=50,
        causal=False,
        inputs=Signal(1),
        head=mean,
        classes=10,
        scores=(ACCURACY,),
        read=read,
        floors=floors,
    )
]
