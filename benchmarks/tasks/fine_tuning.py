"""Reviews as good or bad, by a model whose body has learned the task `mlm` before."""

from measure.heads import mean
from measure.model_inputs import Tokens

from tasks import mlm, pieces, reviews
from tasks.task import ACCURACY, Data, Task, drawn_from, majority, rows

LENGTHS = {"rotten_tomatoes": 64, "imdb": mlm.LENGTH}
"""Pieces that are read of a text: the sentences are short."""


def read(source):
    parts = [
        rows(pieces.padded(text, lengths, LENGTHS[source]), labels)
        for text, lengths, labels in pieces.read(source)
    ]
    return Data(drawn_from(parts[0]), *parts[1:])


def floors(source):
    labels = reviews.split(source, pieces.VALIDATION, pieces.TEST)[2][1]
    return {
        "majority": majority(labels),
        "TF-IDF and logistic regression": reviews.tfidf_accuracy(
            source, pieces.VALIDATION, pieces.TEST
        ),
    }


def task(source):
    return Task(
        name=f"mlm_{source}",
        about=f"reviews of {source.replace('_', ' ')}, the first {LENGTHS[source]} pieces; the "
        "body starts from `mlm`; 80/20 of those in the package",
        length=mlm.LENGTH,
        batch=16,
        every=25,
        causal=False,
        inputs=Tokens(pieces.VOCABULARY, padded=True),
        head=mean,
        classes=2,
        scores=(ACCURACY,),
        read=lambda seed: read(source),
        floors=lambda: floors(source),
        size=mlm.SIZE,
        rates=(3e-4, 1e-3, 3e-3),
        starts_from="mlm",
    )


TASKS = [task(source) for source in LENGTHS]
