"""The signatures of a plan as a SavedModel."""

from __future__ import annotations

import contextlib
import os

import keras

from keras_cosattn.export.export_plan import ExportPlan
from keras_cosattn.ops.block_size import all_at_once


def write_archive(plan: ExportPlan, path: str | os.PathLike[str], for_tflite: bool = False) -> None:
    """Write the signatures as a SavedModel.

    Args:
        plan: What to write.
        path: str or path. The folder.
        for_tflite: bool. Whether TensorFlow's converter to TFLite is to read it. Defaults to
            `False`.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If the model or its tokenizer uses variables or tables that it does not hold.
    """
    with all_at_once() if for_tflite else contextlib.nullcontext():
        _write(plan, path, for_tflite)


def _write(plan, path, for_tflite):
    import tensorflow as tf

    archive = keras.export.ExportArchive()
    archive.track(plan.model)
    archive._tf_trackable.stream_state = plan.variables
    if plan.text is not None:
        archive._tf_trackable.tokenizer = plan.text.tokenizer  # which may hold tables
    for name, function in plan.functions.items():
        specs = {
            key: tf.TensorSpec(shape, dtype, name=key)
            for key, (shape, dtype) in function.inputs().items()
        }
        archive.add_endpoint(name, function, input_signature=[specs] if specs else [])
    if for_tflite:
        # Without this attribute the converter takes every archive with an endpoint "serve"
        # for one of `Model.export`, and drops its other endpoints.
        archive.add_endpoint(
            "_default_save_signature", lambda: {"unused": tf.zeros(())}, input_signature=[]
        )
    try:
        archive.write_out(str(path), verbose=False)
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
        raise  # the model's own, not the disk's
    except tf.errors.OpError as error:  # TensorFlow's own, for a disk that is full
        raise OSError(error.message) from error
    except AssertionError as error:
        if "untracked" not in str(error):
            raise
        raise ValueError(
            f"'{plan.named.name}', or its tokenizer, uses variables or tables that it does not "
            f"hold. Make them attributes of a layer, a tf.Module or the tokenizer. {error}"
        ) from error
