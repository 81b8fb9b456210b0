"""The signatures of a plan as a SavedModel: for users, and for the converter to TFLite."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import keras

from keras_cosattn.export.export_plan import ExportPlan
from keras_cosattn.export.sample_inputs import Sizes
from keras_cosattn.ops.block_size import all_at_once


def write_archive(plan: ExportPlan, path: str | os.PathLike[str]) -> None:
    """Write the signatures as a SavedModel for users.

    Args:
        plan: What to write.
        path: str or path. The folder.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If the model or its tokenizer uses variables or tables that it does not hold.
    """
    archive = keras.export.ExportArchive()
    archive.track(plan.model)
    archive._tf_trackable.stream_state = plan.variables
    if plan.text is not None:
        archive._tf_trackable.tokenizer = plan.text.tokenizer  # which may hold tables
    for name, function in plan.functions.items():
        archive.add_endpoint(name, function, input_signature=_specs(function.inputs()))
    with _errors(
        f"'{plan.named.name}', or its tokenizer, uses variables or tables that it does not hold. "
        "Make them attributes of a layer, a tf.Module or the tokenizer."
    ):
        archive.write_out(str(path), verbose=False)


def write_signatures(plan: ExportPlan, path: str | os.PathLike[str]) -> None:
    """Write the signatures, each traced once, as a SavedModel that TensorFlow's converter reads.

    An archive of Keras traces each signature twice and the model itself once more, for functions
    that the converter does not read.

    Args:
        plan, path: As in `write_archive`.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If the model has lookup tables.
    """
    import tensorflow as tf

    with all_at_once():
        traced = {
            name: tf.function(function, autograph=False).get_concrete_function(
                *_specs(function.inputs())
            )
            for name, function in plan.functions.items()
        }
    holder = tf.Module()
    holder.held = [variable for function in traced.values() for variable in function.variables]
    with _errors(
        f"'{plan.named.name}' has lookup tables, which TFLite's builtin ops cannot read. Give the "
        "model what was found in them."
    ):
        tf.saved_model.save(holder, str(path), signatures=traced)


def _specs(sizes: Sizes) -> list[dict[str, Any]]:
    """The arguments of a signature: one dict, or none if it has no inputs."""
    import tensorflow as tf

    specs = {key: tf.TensorSpec(shape, dtype, name=key) for key, (shape, dtype) in sizes.items()}
    return [specs] if specs else []


@contextlib.contextmanager
def _errors(of_untracked: str) -> Iterator[None]:
    """Errors of the disk as OSError, and of what the file cannot hold as ValueError."""
    import tensorflow as tf

    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
        raise  # the model's own, not the disk's
    except tf.errors.OpError as error:  # TensorFlow's own, for a disk that is full
        raise OSError(error.message) from error
    except AssertionError as error:
        if "untracked" not in str(error):
            raise
        raise ValueError(f"{of_untracked} TensorFlow says: {error}") from error
