"""A trained language model on streams that are longer than what it was trained on."""

import numpy as np

from keras_cosattn import Streaming
from measure import models

STREAMS, LONGEST = 4, 16_384


def bits_by_length(task, built, data, given):
    """Bits per byte of the second half of the first n steps, for n from the training's length on.

    The text is that of the test, whose examples follow each other. The same weights stream up to
    the longest n.

    Args:
        task: a `Task` with logits at every step.
        built: what `models.build` returned for it, trained.
        data: `Data` of the task.
        given: of the run.
    """
    longest = task.length
    while 2 * longest * STREAMS <= min(data.test.inputs.size, LONGEST * STREAMS):
        longest *= 2
    x, y = (part.reshape(-1)[: STREAMS * longest].reshape(STREAMS, longest)
            for part in (data.test.inputs, data.test.labels))  # fmt: skip
    model = models.build(task, given["attention"], given["conv"], capacity=longest).model
    model.set_weights(built.model.get_weights())
    stream = Streaming(model)
    state, bits = stream.initial_state(STREAMS), []
    for start in range(0, longest, task.length):
        piece = slice(start, start + task.length)
        logits, state = stream(x[:, piece], state)
        bits.append(bits_of(np.asarray(logits), y[:, piece]))
    bits = np.concatenate(bits, axis=1)
    lengths = [n for n in (task.length << i for i in range(20)) if n <= longest]
    return {"bits_by_length": {str(n): round(float(bits[:, n // 2 : n].mean()), 4)
                               for n in lengths}}  # fmt: skip


def bits_of(logits, labels):
    """`-log2` of the probability of each label, `(b, t)`."""
    logits = np.float64(logits) - logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return (np.log(np.exp(logits).sum(axis=-1)) - chosen) / np.log(2)
