"""Multi-query associative recall, and the parity of a stream: examples as `fit` takes them.

An example is tokens `(t,)` and places `(n,)`, then n labels and n weights: only the outputs at the
places are compared with labels. NumPy alone; all numbers come from the generator that is given.
"""

import numpy as np

POWER = 0.01
"""The gaps' a in Zoology: most questions come soon after the pairs, a few much later."""
FILLER = 0

TRAIN, VALIDATION, TEST = range(3)
"""Each has random numbers of its own."""


def generator(seed, part):
    return np.random.default_rng([seed, part])


def recall(rng, count, length, pairs, vocabulary):
    """Keys with their values, then each key again; its label is its value.

    A row is `k1 v1 ... kn vn`: distinct keys from the lower half of the vocabulary, distinct values
    from the upper half. Each key comes once more, 2 g steps after the pairs, with p(g) proportional
    to `(g + 1)^(a - 1)`, and no g twice. All other steps are token 0, which is no key.

    Reference:
        - [Arora et al., 2023 (Zoology)](https://arxiv.org/abs/2312.04927), appendix on MQAR; the
          fillers are those of its figure 2.
    """
    if length < 4 * pairs:
        raise ValueError(f"{pairs} pairs and their questions need {4 * pairs} steps, not {length}.")
    half = vocabulary // 2
    keys = 1 + draw_distinct(rng, count, np.ones(half - 1), pairs)
    values = half + draw_distinct(rng, count, np.ones(vocabulary - half), pairs)
    gaps = np.arange((length - 2 * pairs) // 2)
    places = 2 * pairs + 2 * draw_distinct(rng, count, (gaps + 1.0) ** (POWER - 1), pairs)
    tokens = np.full((count, length), FILLER)
    tokens[:, : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
    np.put_along_axis(tokens, places, keys, axis=1)
    return examples(tokens, places, values)


def parity(rng, count, shortest, longest, first=0):
    """Bits, and at each step whether the number of ones so far is odd.

    A row has from `shortest` to `longest` bits; steps behind its end weigh nothing. Only the steps
    from `first` on have a label.
    """
    bits = rng.integers(0, 2, (count, longest))
    lengths = rng.integers(shortest, longest + 1, (count, 1))
    places = np.tile(np.arange(first, longest), (count, 1))
    return examples(bits, places, (bits.cumsum(1) % 2)[:, first:], places < lengths)


def examples(tokens, places, labels, weights=None):
    inputs = {"tokens": tokens.astype("int32"), "places": places.astype("int32")}
    weights = np.ones(labels.shape) if weights is None else weights
    return inputs, labels.astype("int32"), weights.astype("float32")


def draw_distinct(rng, count, weights, n):
    """`(count, n)` indices: one after the other, by their weights, none twice in a row."""
    arrivals = rng.exponential(size=(count, len(weights))) / weights  # of a race, as fast as heavy
    return arrivals.argsort(axis=1)[:, :n]
