"""ListOps: the value of nested lists of digits, such as `[MAX 2 9 [MIN 4 7 ] 0 ]`.

Nangia and Bowman, 2018, as in the Long-Range Arena (Tay et al., 2021): a node above depth 10 is an
operator with probability 0.25, and else a digit; an operator has 2 to 10 arguments. Kept are trees
whose length (two for each operator, one for each digit) lies strictly between two bounds. No tree
is kept twice. 15 tokens, and 0 for padding.
"""

import functools

import numpy as np
from measure.data_cache import kept_arrays
from measure.heads import mean
from measure.model_inputs import Tokens

from tasks.task import ACCURACY, Data, Task, chosen, drawn_from, rows

OPERATORS = MIN, MAX, MED, SM = range(11, 15)
CLOSE, PADDING = 15, 0
FIRST_DIGIT = 1
"""Token 1 is the digit 0, token 10 the digit 9."""
VOCABULARY = 16
VALIDATED = 400
"""Of the validation's trees, so that the curves cost little."""
FITTED = 40_000
"""Trees that the floors learn from."""
OPERATOR_PART, MOST_ARGUMENTS, DEEPEST = 0.25, 10, 10
APPLY = {
    MIN: min,
    MAX: max,
    MED: lambda digits: int(np.median(digits)),
    SM: lambda digits: sum(digits) % 10,
}


def tree(rng, longest):
    """The tokens and the value of a drawn tree, or None if it has `longest` tokens or more."""
    tokens, open_lists = [], []  # of each open list: operator, arguments to come, values so far
    while True:
        value = None
        if len(open_lists) + 1 < DEEPEST and rng.random() <= OPERATOR_PART:
            operator = OPERATORS[int(rng.random() * len(OPERATORS))]
            arguments = 2 + int(rng.random() * (MOST_ARGUMENTS - 1))
            tokens.append(operator)
            open_lists.append((operator, arguments, []))
        else:
            value = int(rng.random() * 10)
            tokens.append(FIRST_DIGIT + value)
        while value is not None and open_lists:
            operator, arguments, values = open_lists[-1]
            values.append(value)
            value = None
            if len(values) == arguments:
                open_lists.pop()
                tokens.append(CLOSE)
                value = APPLY[operator](values)
        if not open_lists:
            return (tokens, value) if len(tokens) < longest else None
        if len(tokens) >= longest:
            return None


def draw_trees(rng, count, shortest, longest):
    """`count` different trees with `shortest < length < longest`, and how many were drawn."""
    found, drawn = {}, 0
    while len(found) < count:
        drawn += 1
        one = tree(rng, longest)
        if one is not None and len(one[0]) > shortest:
            found.setdefault(bytes(one[0]), one[1])
    return found, drawn


def arrays(count, shortest, longest, seed=0):
    """Padded tokens `(count, longest)` and values of drawn trees."""
    found, _ = draw_trees(np.random.default_rng(seed), count, shortest, longest)
    tokens = np.full((count, longest), PADDING, "uint8")
    for row, text in zip(tokens, found, strict=True):
        row[: len(text)] = np.frombuffer(text, "uint8")
    return {"tokens": tokens, "values": np.array(list(found.values()), "int32")}


def split(shortest, longest, sizes):
    """`Examples` to train on, to validate with and to test with."""
    name = f"listops_{shortest}_{longest}_{'_'.join(map(str, sizes))}"
    found = kept_arrays(name, lambda: arrays(sum(sizes), shortest, longest))
    cuts = np.cumsum(sizes)[:-1]
    return [rows(x, y) for x, y in zip(np.split(found["tokens"], cuts),
                                                 np.split(found["values"], cuts),
                                                 strict=True)]  # fmt: skip


def read(shortest, longest, sizes):
    train, validation, test = split(shortest, longest, sizes)
    draw_rows = drawn_from(train)

    def draw(rng, count):
        return integers(draw_rows(rng, count))

    return Data(draw, integers(chosen(validation, slice(VALIDATED))), integers(test))


def integers(examples):
    """`Examples` whose tokens have four bytes. All trees together have one byte for a token."""
    return examples._replace(inputs=np.int32(examples.inputs))


def near_root(row):
    """What is next to the root of a tree: three arrays, each a part of the next one.

    Returns:
        Which operator the root is `(4,)`; with its own digits and how many lists it has `(16,)`;
        with the operators of these lists `(20,)`.
    """
    digits, lists, depth = [], [], 0
    for token in row[row != PADDING]:
        if token in OPERATORS:
            if depth == 1:
                lists.append(token)
            depth += 1
        elif token == CLOSE:
            depth -= 1
        elif depth == 1:
            digits.append(int(token) - FIRST_DIGIT)
    root = np.eye(len(OPERATORS))[row[0] - MIN]
    value = APPLY[row[0]](digits) if digits else -1
    counts = np.bincount(digits, minlength=10)
    own = np.concatenate([root, counts, [len(lists), value]])
    return root, own, np.concatenate([own, np.bincount(lists, minlength=CLOSE)[MIN:]])


def floors_of(train, test):
    """Accuracies without reading the whole tree: of the most frequent value, and of forests."""
    from sklearn.ensemble import RandomForestClassifier

    names = "root operator", "and its own digits", "and the operators of its own lists"
    found = {"majority": float((test.labels == np.bincount(train.labels).argmax()).mean())}
    views = [zip(*map(near_root, part.inputs), strict=True) for part in (train, test)]
    for name, x, tests in zip(names, *views, strict=True):
        forest = RandomForestClassifier(200, min_samples_leaf=5, random_state=0)
        forest.fit(np.array(x), train.labels)
        found[name] = float(forest.score(np.array(tests), test.labels))
    return found


def floors(shortest, longest, sizes):
    train, _, test = split(shortest, longest, sizes)
    return floors_of(chosen(train, slice(FITTED)), test)


def task(name, shortest, longest, sizes, batch):
    given = shortest, longest, sizes
    return Task(
        name=name,
        about=f"trees of {shortest + 1:,} to {longest - 1:,} tokens, "
        + " / ".join(f"{n:,}" for n in sizes),
        length=longest,
        batch=batch,
        every=50,
        causal=False,
        inputs=Tokens(VOCABULARY, padded=True),
        head=mean,
        classes=10,
        scores=(ACCURACY,),
        read=lambda seed: read(*given),
        floors=functools.partial(floors, *given),
    )


TASKS = [
    task("listops", 500, 2000, (96_000, 2_000, 2_000), batch=8),
    task("listops_500", 100, 500, (96_000, 2_000, 2_000), batch=20),
    task("listops_200", 20, 200, (96_000, 2_000, 2_000), batch=25),
]
