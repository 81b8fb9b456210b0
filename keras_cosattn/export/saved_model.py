"""A model as a SavedModel, for servers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_cosattn.atomic_write import atomic_write
from keras_cosattn.compact_state import StateDtype
from keras_cosattn.export import checks
from keras_cosattn.export.export_options import ExportOptions, SignatureName
from keras_cosattn.export.export_plan import make_plan
from keras_cosattn.export.file_metadata import files_in, saved_model_metadata, size_on_disk
from keras_cosattn.export.file_runners import saved_model_runner
from keras_cosattn.export.overwrite_checks import check_saved_model
from keras_cosattn.export.report import Report, description_of, make_report
from keras_cosattn.export.saved_model_archive import write_archive


def to_saved_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    signatures: Sequence[SignatureName] | None = None,
    state_dtype: StateDtype | None = None,
    sample: Any = None,
    tokenizer: Callable[[Any], Any] | None = None,
) -> Report:
    """Write a model as a SavedModel that loads without Keras and without this package.

    One input is called `x` and one output `y`; several have their names in the model. The state
    goes in and out as tensors of the same names, and every state starts as zeros. The file is run
    and compared with the model before it is put in place.

    Args:
        model: A built Keras model on the TensorFlow backend.
        path: str or path. The folder. An older export there is replaced once the new one is
            complete.
        signatures: Sequence of `"serve"` (the whole input; any batch size and length that the model
            takes), `"prefill"` (the next steps of a stream, any number) and `"step"` (the next
            step). `None` is all that the model can do, as `Streaming` decides. A stream also has
            `"init"`, from `batch_size` of shape `()` to its first state. Defaults to `None`.
        state_dtype: As in `to_tflite`. Defaults to `None`.
        sample: Inputs for the checks, as for `Streaming`. `None` draws some. Defaults to `None`.
        tokenizer: A `ByteTokenizer`, a `WordPieceTokenizer`, or another function of TensorFlow ops
            from strings `(b,)` to integer ids `(b, t)`, padded with 0, or ragged; for a model of
            ids. It adds `"serve_text"`, from `text (b,)`, UTF-8, to the outputs of `serve`, and
            `"tokenize"`, from `text` to the ids. A text of a batch gets the same outputs as alone
            only if the model masks 0, as `Embedding(mask_zero=True)` does. Defaults to `None`.

    Returns:
        A `Report`.

    Raises:
        ValueError: If the model cannot do what is asked, or the file computes something else.
        ImportError: If the tokenizer needs a package that is not installed. The description of the
            file names those to import before it is loaded, as `"needs"`.
        FileExistsError: If there is something else at `path` than an export: a file, another
            folder, or an export with files that were added to it.
        OSError: If the path cannot be written. Nothing is left there, an older file stays whole.

    Example:
    >>> import pathlib, tempfile
    >>> x = keras.Input((None, 3))
    >>> model = keras.Model(x, keras.layers.Dense(2)(x))
    >>> path = pathlib.Path(tempfile.mkdtemp(), "model")
    >>> report = to_saved_model(model, path, signatures=["serve"])
    >>> report.signatures["serve"]["outputs"]
    {'y': [[None, None, 2], 'float32']}
    """
    with atomic_write(path, folder=True, check=check_saved_model) as new:
        options = ExportOptions(signatures, state_dtype=state_dtype)
        plan = make_plan(model, sample, options, tokenizer)
        write_archive(plan, new)
        comparison = checks.compare(plan, saved_model_runner(new))
        checks.accept(plan, comparison)
        report = make_report(plan, new, comparison)
        metadata = saved_model_metadata(new)
        metadata.parent.mkdir(exist_ok=True)
        metadata.touch()
        needs = plan.text.needs if plan.text is not None else []
        metadata.write_text(description_of(report, needs=needs, files=files_in(new)))
    return dataclasses.replace(report, path=str(path), size=size_on_disk(path))
