"""One small model for every attention: an encoder or a decoder of equally many parameters."""

import dataclasses
import math

import keras

from keras_cosattn import (
    CausalDepthwiseConv1D,
    PositionEmbedding,
    TransformerDecoder,
    TransformerEncoder,
)
from measure import attentions

KERNEL = 4
"""Steps of the short convolution."""
ALLOWED = 0.02
"""How far the number of parameters may be from that of the model with softmax."""


@dataclasses.dataclass(frozen=True)
class Built:
    """Attributes:
    model: from the inputs to the logits, which is trained.
    body: the part before the head, `(b, t, width)`.
    hidden: feed-forward units of a block.
    parameters: of the model, those that are trained.
    softmax_parameters: of the same model with softmax.
    """

    model: keras.Model
    body: keras.Model
    hidden: int
    parameters: int
    softmax_parameters: int


def build(task, attention, conv=False, capacity=None):
    """Return the model of a task with an attention, as large as that with softmax.

    The feed-forward width makes up for what an attention has more or less.

    Args:
        task: a `Task`.
        attention: its name.
        conv: whether a causal convolution of four steps stands before each block.
        capacity: steps that a stream of the model may have, if more than the task's length.

    Raises:
        ValueError: If there is no such attention, or the models cannot be made equally large.
    """

    def with_units(attention, hidden):
        body = make_body(task, attention, conv, capacity, hidden)
        return task.head(body, task.classes), body

    def parameters(attention, hidden):
        return trained(with_units(attention, hidden)[0])

    base = task.size.hidden
    wanted = parameters("softmax", base)
    there = parameters(attention, base)
    each_unit = (parameters(attention, 2 * base) - there) // base
    hidden = base + round((wanted - there) / each_unit)
    if hidden < 1:
        raise ValueError(
            f"The model of {task.name!r} with {attention!r} has {there:,} parameters, that with "
            f"softmax {wanted:,}, of which the feed-forward parts of {base} units cannot make up "
            "for the difference. Give the task's `Size` more `hidden` units."
        )
    model, body = with_units(attention, hidden)
    found = trained(model)
    if abs(found - wanted) > ALLOWED * wanted:
        raise ValueError(f"{attention!r} has {found:,} parameters, softmax {wanted:,}: more than "
                         f"{ALLOWED:.0%} apart. Change the task's `Size`.")  # fmt: skip
    return Built(model, body, hidden, found, wanted)


def trained(model):
    """The number of weights that are trained, which leaves out drawn projections."""
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def make_body(task, attention, conv, capacity, hidden):
    """Embedding, blocks and a last norm, each norm before its part."""
    inputs, x = task.inputs.layers(task.size.width)
    if not task.causal:
        x = PositionEmbedding(task.length, name="positions")(x)
    block = TransformerDecoder if task.causal else TransformerEncoder
    for i, layer in enumerate(attentions.layers(attention, task, capacity)):
        if conv:
            normed = keras.layers.LayerNormalization(name=f"conv_norm_{i}")(x)
            x = x + CausalDepthwiseConv1D(KERNEL, name=f"conv_{i}")(normed)
        x = block(
            hidden, attention=layer, activation="gelu", normalize_first=True, name=f"block_{i}"
        )(x)
    return keras.Model(inputs, keras.layers.LayerNormalization(name="last_norm")(x), name="body")
