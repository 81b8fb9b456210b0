"""What the models answer. Each head makes a model of a body, `(b, t) -> (b, t, width)`."""

import keras
from keras import ops


def each_step(body, classes):
    """Logits at every step, `(b, t, classes)`."""
    return keras.Model(body.inputs[0], _logits(classes)(body.outputs[0]))


def at_places(body, classes):
    """Logits at the steps that the input `places (b, n)` names, `(b, n, classes)`."""
    places = keras.Input((None,), dtype="int32", name="places")
    asked = ops.take_along_axis(body.outputs[0], ops.expand_dims(places, 2), axis=1)
    inputs = {body.inputs[0].name: body.inputs[0], "places": places}
    return keras.Model(inputs, _logits(classes)(asked))


def mean(body, classes):
    """Logits of the mean over the valid steps, `(b, classes)`."""
    pooled = keras.layers.GlobalAveragePooling1D()(body.outputs[0])
    return keras.Model(body.inputs[0], _logits(classes)(pooled))


def of_pair(body, classes):
    """Logits of two inputs that the same body reads, `(b, classes)`.

    A network of one hidden layer reads both means, their product and their difference.
    """
    pooled = keras.layers.GlobalAveragePooling1D()(body.outputs[0])
    tower = keras.Model(body.inputs[0], pooled, name="tower")
    given = body.inputs[0]
    inputs = {
        name: keras.Input(given.shape[1:], dtype=given.dtype, name=name)
        for name in ("first", "second")
    }
    u, v = (tower(x) for x in inputs.values())
    both = ops.concatenate([u, v, u * v, u - v], axis=-1)
    hidden = keras.layers.Dense(u.shape[-1], activation="relu", name="pair")(both)
    return keras.Model(inputs, _logits(classes)(hidden))


def _logits(classes):
    return keras.layers.Dense(classes, dtype="float32", name="logits")
