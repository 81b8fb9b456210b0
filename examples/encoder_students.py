"""Encoders whose attention takes linear time, made of one with softmax, and how they learn."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from keras.optimizers.schedules import CosineDecay

from keras_cosattn import (
    CosFormerAttention,
    HedgehogFeatures,
    LinearAttention,
    SegmentedAttention,
)
from keras_cosattn.convert import replace_attention, transfer

COSFORMER = CosFormerAttention(1, 1, max_length=16_384)
HEDGEHOG = LinearAttention(1, 1, feature_map=HedgehogFeatures())
SEGMENTS = SegmentedAttention(1, 1, segment_length=64, look_back=1)
STUDENTS = {
    "cosFormer": (COSFORMER, COSFORMER),
    "Hedgehog": (HEDGEHOG, HEDGEHOG),
    "segments": (SEGMENTS, SEGMENTS),
    "segments, then Hedgehog": (SEGMENTS, HEDGEHOG),
}
"""What takes the place of softmax in the first and the second half of the blocks. Sizes are those
of the blocks."""
LOCAL = "segments"
"""The student whose steps see near steps alone."""
GLOBAL = STUDENTS.keys() - {LOCAL}
"""The students in which every step sees every other."""


def student_of(teacher, name):
    blocks = [layer.name for layer in teacher.layers if layer.name.startswith("block_")]
    first, second = STUDENTS[name]
    model = replace_attention(teacher, first, where=blocks[: len(blocks) // 2])
    return replace_attention(model, second, where=blocks[len(blocks) // 2 :])


def learn_attention(teacher, student, new, attention):
    """Train new weights on the batches `new`, then also the projections on `attention`.

    A student without new weights learns on all batches with its projections.
    """
    if len(student.trainable_weights) == len(teacher.trainable_weights):
        new, attention = [], [*new, *attention]
    for train, rate, batches in ("new", 1e-2, new), ("attention", 5e-4, attention):
        if batches:
            data = dataset(lambda given=batches: iter(given), tf.TensorSpec((None, None), tf.int32))
            data = data.apply(tf.data.experimental.assert_cardinality(len(batches)))
            options = {"optimizer": adam(rate, len(batches)), "shuffle": False, "verbose": 2}
            transfer(teacher, student, data, train=train, **options)


def learn_embeddings(teacher, student, batches, rate, epochs, backup_dir):
    """Train all of a student but its vectors of tokens and positions on what the teacher says.

    It reads each batch once. A call that was interrupted goes on behind its last finished epoch.
    """
    answer = tf.function(teacher, reduce_retracing=True)
    examples = [(x, keras.tree.map_structure(np.asarray, answer(x))) for x in batches]
    width = teacher.output["embedding"].shape[-1]
    said = {
        "steps": tf.TensorSpec((None, None, width)),
        "embedding": tf.TensorSpec((None, width)),
    }
    student.compile(adam(rate, len(batches)), dict.fromkeys(said, relative_error))

    next_batch = []  # known once the backup has restored the optimizer

    def note(logs=None):
        next_batch.append(int(student.optimizer.iterations))

    def rest():
        yield from examples[next_batch[-1] :]

    restore = keras.callbacks.BackupAndRestore(backup_dir)
    student.fit(
        dataset(rest, (tf.TensorSpec((None, None), tf.int32), said)),
        epochs=epochs,
        steps_per_epoch=len(batches) // epochs,
        callbacks=[restore, keras.callbacks.LambdaCallback(on_train_begin=note)],
        shuffle=False,
        verbose=2,
    )


def adam(rate, steps):
    """Adam, whose rate rises for a tenth of the steps and then falls to zero."""
    schedule = CosineDecay(0.0, steps, warmup_target=rate, warmup_steps=max(1, steps // 10))
    return keras.optimizers.Adam(schedule)


def relative_error(expected, found):
    """`|y' - y|^2 / |y|^2` of each vector."""
    square = ops.sum(ops.square(found - expected), axis=-1)
    return square / ops.sum(ops.square(expected), axis=-1)


def dataset(examples, specification):
    return tf.data.Dataset.from_generator(examples, output_signature=specification)
