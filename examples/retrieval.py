"""Passages that were cut out of documents, and whether they find their documents again."""

import dataclasses
import itertools

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer


@dataclasses.dataclass(frozen=True)
class Search:
    """Attributes: `documents` and `passages`, lists of tokens; `owners`, the document of each."""

    documents: list
    passages: list
    owners: np.ndarray

    def scores(self, queries, documents):
        """The numbers of `summary` for embeddings `(passages, m)` and `(documents, m)`."""
        return summary(ranks(queries @ documents.T, self.owners))

    def of_tfidf(self):
        """The same for the cosine of TF-IDF of tokens."""
        model = TfidfVectorizer(analyzer=lambda text: text, sublinear_tf=True)
        vectors = model.fit_transform([text.tolist() for text in self.documents])
        queries = model.transform([text.tolist() for text in self.passages])
        return summary(ranks((queries @ vectors.T).toarray(), self.owners))


def search(texts, count, size, after, rng):
    """`hold_out` of each of some texts, as a `Search`."""
    cut = [hold_out(text, count, size, after, rng) for text in texts]
    owners = np.repeat(np.arange(len(texts)), count)
    return Search([rest for rest, _ in cut], [x for _, found in cut for x in found], owners)


def hold_out(text, count, size, after, rng):
    """Cut passages out of a text, at random places behind its first tokens.

    Args:
        text: `(n,)`; with n - after of at least `count * size`.
        count, size: of the passages, which do not overlap.
        after: tokens at the beginning that stay.

    Returns:
        The rest of the text, `(n - count * size,)`, and the passages, `(count, size)`.
    """
    ends = np.linspace(after, len(text), count + 1).astype(int)
    starts = [rng.integers(a, b - size + 1) for a, b in itertools.pairwise(ends)]
    cut = np.array(starts)[:, None] + np.arange(size)
    return np.delete(text, cut.ravel()), text[cut]


def ranks(scores, owners):
    """The place of each passage's document among all documents, 1 for the first.

    Args:
        scores: `(passages, documents)`, higher for what is more alike.
        owners: `(passages,)`, the numbers of the documents that they were cut out of.
    """
    own = np.take_along_axis(scores, owners[:, None], axis=1)
    return (scores >= own).sum(axis=1)


def summary(found):
    """Numbers on `ranks`: the share of the first, of the first ten, and the mean of 1 / rank."""
    return {
        "recall@1": (found <= 1).mean(),
        "recall@10": (found <= 10).mean(),
        "mean reciprocal rank": (1 / found).mean(),
    }
