"""A model as a SavedModel, for servers."""

import dataclasses

from keras_cosattn.export import checks, runners
from keras_cosattn.export.files import METADATA, beside, size
from keras_cosattn.export.plan import Plan
from keras_cosattn.export.report import Report, metadata


def to_saved_model(model, path, *, signatures=None, sample=None, tokenizer=None):
    """Write `model` as a SavedModel that loads without Keras and without this package.

    Args:
        model: a built model on the TensorFlow backend.
        path: the folder; an older SavedModel there is replaced once the new one is complete.
        signatures: which of `"serve"` (the whole input; any batch size and length that the model
            takes), `"prefill"` (the next steps of a stream, any number) and `"step"` (the next
            step). None is all that the model can do: `Streaming` decides. With a stream comes
            `"init"`, from `batch_size ()` to its first state.
        sample: an input for the checks, as for `Streaming`.
        tokenizer: a `ByteTokenizer`, a `WordPieceTokenizer`, or another function of TensorFlow ops
            from strings `(b,)` to integer ids `(b, t)`, padded with 0, or ragged; for a model of
            ids. It adds `"serve_text"`, from `text (b,)`, UTF-8, to the outputs of `serve`, and
            `"tokenize"`, from `text` to the ids. A text of a batch gets the same outputs as alone
            only if the model masks 0, as `Embedding(mask_zero=True)` does.

    The input is called `x` and the output `y` (several: by their names in the model). State goes
    in and comes out as tensors of the same names; every state starts as zeros.

    Returns:
        A `Report`. The file has been run and compared with `model` before it is put in place.

    Raises:
        ValueError: if the model cannot do what is asked, or the file computes something else.
        ImportError: if the tokenizer needs a package that is not installed. The description of the
            file names those to import before it is loaded, as `"needs"`.
        OSError: if the path cannot be written. Nothing is left there, an older file stays whole.
    """
    plan = Plan(model, signatures, sample, tokenizer=tokenizer)
    needs = plan.text.needs if plan.text is not None else []
    with beside(path) as new:
        plan.write_saved_model(new)
        differences, sqnr = checks.compare(plan, runners.saved_model(new))
        checks.accept(plan, differences, sqnr)
        report = Report.of(plan, new, differences, sqnr)
        (new / "assets.extra").mkdir()
        (new / "assets.extra" / METADATA).write_text(metadata(report, needs=needs))
    return dataclasses.replace(report, path=str(path), size=size(path))
