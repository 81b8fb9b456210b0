"""The import of tf_keras (Keras 2), with errors that say what is missing."""

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "keras_cosattn.models computes with Keras's TensorFlow backend. Set the environment "
        f"variable KERAS_BACKEND=tensorflow. Received: KERAS_BACKEND={keras.backend.backend()}"
    )

try:
    import tf_keras
except ImportError as error:
    raise ImportError(
        "keras_cosattn.models has layers for models of tf_keras, which cannot be imported: "
        "pip install tf-keras tf-models-official, in an environment of its own if another release "
        "of TensorFlow than that of tf-models-official is needed elsewhere."
    ) from error

__all__ = ["is_compiled_by_xla", "tf_keras"]


def is_compiled_by_xla() -> bool:
    """Return whether XLA compiles the graph that TensorFlow traces now."""
    import tensorflow as tf
    from tf_keras.src.utils import control_flow_util

    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
