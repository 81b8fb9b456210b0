"""Do two mails belong to the same newsgroup? Two towers read their bytes (as in retrieval tasks).

The 20 Newsgroups with their official split. One half of the pairs are of the same group; the
towers share their weights.
"""

import numpy as np
from measure.data_cache import mails
from measure.heads import of_pair
from measure.model_inputs import Tokens

from tasks.task import ACCURACY, Data, Task, majority, rows
from tasks.text import padded

LENGTH = 512
VALIDATION, TEST = 320, 1_024


def draw_pairs(rng, groups, count):
    """Indices of two mails `(count, 2)`, and whether their groups are equal: of one half."""
    same = rng.permutation(np.arange(count) % 2 == 0)
    first = rng.integers(len(groups), size=count)
    second = np.empty_like(first)
    for i, (one, wanted) in enumerate(zip(first, same, strict=True)):
        while True:
            second[i] = rng.integers(len(groups))
            if second[i] != one and (groups[second[i]] == groups[one]) == wanted:
                break
    return np.stack([first, second], axis=1), np.int32(same)


def examples(rng, tokens, groups, count):
    index, same = draw_pairs(rng, groups, count)
    inputs = {name: tokens[index[:, i]] for i, name in enumerate(("first", "second"))}
    return rows(inputs, same)


def read(seed):
    (texts, groups), (tests, test_groups) = mails("train"), mails("test")
    order = np.random.default_rng(0).permutation(len(texts))
    held, kept = order[: len(order) // 10], order[len(order) // 10 :]
    tokens, rng = padded(texts, LENGTH), np.random.default_rng(1)
    train, train_groups = tokens[kept], groups[kept]
    validation = examples(rng, tokens[held], groups[held], VALIDATION)
    test = examples(rng, padded(tests, LENGTH), test_groups, TEST)
    return Data(lambda rng, count: examples(rng, train, train_groups, count), validation, test)


def floors():
    from sklearn.feature_extraction.text import TfidfVectorizer

    (texts, groups), (tests, test_groups) = mails("train"), mails("test")
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2)

    def cosines(vectors, index):
        first, second = (vectors[index[:, i]] for i in (0, 1))
        return np.asarray(first.multiply(second).sum(axis=1))[:, 0]

    rng = np.random.default_rng(1)
    index, same = draw_pairs(rng, groups, 4 * TEST)
    found = cosines(vectorizer.fit_transform(texts), index)
    limits = np.quantile(found, np.linspace(0, 1, 201))
    best = max(limits, key=lambda limit: ((found > limit) == same).mean())
    index, same = draw_pairs(rng, test_groups, 4 * TEST)
    found = cosines(vectorizer.transform(tests), index)
    return {
        "majority": majority(same),
        "cosine of TF-IDF, whole mails": float(((found > best) == same).mean()),
    }


TASKS = [
    Task(
        name="pairs",
        about=f"two mails of 20 Newsgroups, the first {LENGTH} bytes of each, official split",
        length=LENGTH,
        batch=8,
        every=50,
        causal=False,
        inputs=Tokens(257, padded=True),
        head=of_pair,
        classes=2,
        scores=(ACCURACY,),
        read=read,
        floors=floors,
    )
]
