"""How near a student of MiniLM comes to its embeddings, and whether passages find documents."""

import contextlib

import minilm
import numpy as np
from long_texts import (
    LAYOUTS,
    begin_again,
    embed,
    embed_pieces,
    embedder,
    first_piece,
    marked,
)

from keras_cosattn.convert import attention_errors


def agreement(expected, found):
    """Compare embeddings `(n, m)` of the same texts.

    Returns:
        dict: the mean cosine of both embeddings of a text, the mean cosine of the expected ones of
        two texts, and the correlation of the cosines of all pairs in one with those in the other.
    """
    pairs = np.triu_indices(len(expected), 1)
    cosines = [(x @ x.T)[pairs] for x in (expected, found)]
    return {
        "cosine of student and MiniLM": np.sum(expected * found, axis=1).mean(),
        "cosine of two texts, MiniLM": cosines[0].mean(),
        "correlation over all pairs of texts": np.corrcoef(cosines)[0, 1],
    }


def nearness(teacher, student, held):
    """How near a student is.

    Args:
        teacher, student: the models.
        held: dict of a length to marked texts `(n, length)` and their embeddings by the teacher.

    Returns:
        dict: the mean relative error of an attention layer, on the longest texts, and the mean
        cosine of the embeddings for each length.
    """
    errors = attention_errors(teacher, student, held[max(held)][0][:2])
    found = {"error of a layer": np.mean([*errors.values()])}
    for n, (x, expected) in held.items():
        cosines = np.sum(expected * embed(embedder(student), x), axis=1)
        found[f"cosine, {n} tokens"] = cosines.mean()
    return found


def by_length(teacher, student, held):
    """`agreement` for each length of held-out texts, as `"row/column"` -> number."""
    found = {}
    for n, x in held.items():
        scores = agreement(*(embed(embedder(model), x) for model in (teacher, student)))
        found |= {f"{row}/{n} tokens": score for row, score in scores.items()}
    return found


def by_layout(teacher, student, arrays, search):
    """The mean reciprocal rank with each of `LAYOUTS`; all passages are read by the student."""
    run = embedder(student)
    queries, found = embed(run, [marked(x) for x in search.passages]), {}
    for name, (write, position) in LAYOUTS.items():
        with positions(student, arrays, position):
            documents = embed(run, [write(x) for x in search.documents])
        found[f"{name}/student"] = search.scores(queries, documents)["mean reciprocal rank"]
    return found


def by_reader(teacher, student, arrays, layout, search):
    """The numbers of a search for each way to read documents, as `"row/column"` -> number."""
    teach, run = embedder(teacher), embedder(student)
    passages = [marked(x) for x in search.passages]
    short = [first_piece(x) for x in search.documents]
    theirs, ours = embed(teach, passages), embed(run, passages)
    write, position = LAYOUTS[layout]
    with positions(student, arrays, position):
        whole = embed(run, [write(x) for x in search.documents])
    found = {
        "MiniLM, the first 512 tokens": search.scores(theirs, embed(teach, short)),
        "MiniLM, mean of pieces of 512": search.scores(
            theirs, embed_pieces(teach, search.documents)
        ),
        "student, the first 512 tokens": search.scores(ours, embed(run, short)),
        "student, mean of pieces of 512": search.scores(ours, embed_pieces(run, search.documents)),
        "student, all tokens": search.scores(ours, whole),
        "student, all tokens; passages by MiniLM": search.scores(theirs, whole),
        "TF-IDF, all tokens": search.of_tfidf(),
    }
    return {f"{way}/{name}": x for way, scores in found.items() for name, x in scores.items()}


@contextlib.contextmanager
def positions(model, arrays, position):
    """Within it the steps have the positions that a function of `LAYOUTS` gives them."""
    minilm.set_positions(model, arrays, position)
    try:
        yield
    finally:
        minilm.set_positions(model, arrays, begin_again)
