"""Bytes of IMDB reviews as good or bad: like the Long-Range Arena's text, with a split of our own.

The official test reviews are not in the package: a fifth of its 25,000 are held out.
"""

import numpy as np
from measure.heads import mean
from measure.model_inputs import Tokens
from measure.weight_measures import weight_measures

from tasks import reviews
from tasks.task import ACCURACY, Data, Task, drawn_from, majority, rows

VALIDATION, TEST = 320, 1_024


def padded(texts, length):
    """The first bytes of each text `(texts, length)`, one more than their values; 0 is padding."""
    tokens = np.zeros((len(texts), length), "int32")
    for row, text in zip(tokens, texts, strict=True):
        codes = np.frombuffer(text.encode()[:length], "uint8")
        row[: len(codes)] = codes.astype("int32") + 1
    return tokens


def read(length):
    parts = [rows(padded(*part[:1], length), part[1])
             for part in reviews.split("imdb", VALIDATION, TEST)]  # fmt: skip
    return Data(drawn_from(parts[0]), *parts[1:])


def floors(length):
    return {
        "majority": majority(reviews.split("imdb", VALIDATION, TEST)[2][1]),
        f"TF-IDF and logistic regression, {length:,} bytes": reviews.tfidf_accuracy(
            "imdb", VALIDATION, TEST, length
        ),
        "TF-IDF and logistic regression, whole reviews": reviews.tfidf_accuracy(
            "imdb", VALIDATION, TEST
        ),
    }


def task(name, length, batch):
    return Task(
        name=name,
        about=f"the first {length:,} bytes of IMDB reviews, 80/20 of the 25,000",
        length=length,
        batch=batch,
        every=50,
        causal=False,
        inputs=Tokens(257, padded=True),
        head=mean,
        classes=2,
        scores=(ACCURACY,),
        read=lambda seed: read(length),
        floors=lambda: floors(length),
        also=weight_measures,
    )


TASKS = [task("text", 1024, batch=8), task("text_4k", 4096, batch=2)]
