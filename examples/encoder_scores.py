"""How near a student of MiniLM comes to its embeddings, and whether passages find documents."""

import minilm
import numpy as np
from long_texts import LAYOUTS, begin_again, first_piece, marked

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
        teacher, student: `Encoder`s.
        held: dict of a length to marked texts `(n, length)` and their embeddings by the teacher.

    Returns:
        dict: the mean relative error of an attention layer, on the longest texts, and the mean
        cosine of the embeddings for each length.
    """
    errors = attention_errors(teacher.model, student.model, held[max(held)][0][:2])
    found = {"error of a layer": np.mean([*errors.values()])}
    for n, (x, expected) in held.items():
        found[f"cosine, {n} tokens"] = np.sum(expected * student.embed(x), axis=1).mean()
    return found


def by_length(teacher, student, held):
    """`agreement` for each length of held-out texts, as `"row/column"` -> number."""
    found = {}
    for n, x in held.items():
        scores = agreement(teacher.embed(x), student.embed(x))
        found |= {f"{row}/{n} tokens": score for row, score in scores.items()}
    return found


def by_layout(student, arrays, search):
    """The mean reciprocal rank with each of `LAYOUTS`; all passages are read by the student."""
    queries, found = student.embed([marked(x) for x in search.passages]), {}
    for layout in LAYOUTS:
        documents = read_whole(student, arrays, layout, search)
        found[f"{layout}/student"] = search.scores(queries, documents)["mean reciprocal rank"]
    return found


def by_reader(teacher, student, local, arrays, layout, search):
    """The numbers of a search for each way to read documents, as `"row/column"` -> number.

    Args:
        teacher, student, local: `Encoder`s; the last one's steps see near steps alone.
        arrays: of MiniLM.
        layout: one of `LAYOUTS`.
        search: a `Search`.
    """
    passages = [marked(x) for x in search.passages]
    short = [first_piece(x) for x in search.documents]
    theirs, ours = teacher.embed(passages), student.embed(passages)
    found = {
        "MiniLM, first 512 tokens": search.scores(theirs, teacher.embed(short)),
        "MiniLM, mean of pieces": search.scores(theirs, teacher.embed_pieces(search.documents)),
        "student, first 512 tokens": search.scores(ours, student.embed(short)),
        "student, mean of pieces": search.scores(ours, student.embed_pieces(search.documents)),
    }
    whole = read_whole(student, arrays, layout, search)
    found["student, whole"] = search.scores(ours, whole)
    found["student, whole; passages by MiniLM"] = search.scores(theirs, whole)
    whole = read_whole(local, arrays, layout, search)
    found["segments, whole"] = search.scores(local.embed(passages), whole)
    found["TF-IDF, whole"] = search.of_tfidf()
    return {f"{way}/{name}": x for way, scores in found.items() for name, x in scores.items()}


def read_whole(encoder, arrays, layout, search):
    """The embeddings of all documents, each read at once with one of `LAYOUTS`."""
    write, position = LAYOUTS[layout]
    minilm.set_positions(encoder.model, arrays, position)
    found = encoder.embed([write(x) for x in search.documents])
    minilm.set_positions(encoder.model, arrays, begin_again)
    return found
