"""The stream that is open while a model is stepped, where its layers find and leave their state.

A layer that looks back in time asks `current()`. With no stream it computes the whole sequence;
inside one it continues from the state it finds there and leaves the new one. Nothing is kept on
the layer, so one model serves training, many streams and export. In the same way attention layers
hand their weights to who watches them.
"""

import contextlib
import contextvars
import re

from keras import ops

_stream = contextvars.ContextVar("keras_cosattn_stream", default=None)
_watch = contextvars.ContextVar("keras_cosattn_watch", default=None)


class Stream:
    """State in, state out, for one call of a model.

    State is a flat dict of tensors whose first axis is the batch. Every state starts as zeros,
    and has a name made of the layer's class, its rank among the calls of that class, and the
    tensor's name, so the same architecture always has the same names: `"linear_attention_0_sums"`.

    Args:
        state: the dict to go on from; None starts afresh.
        mask: bool `(b, t)`: False where an example has no input at this step.
        means: keep sums without end as means over the steps, which divide out of the outputs and
            stay in the range of float16.
    """

    def __init__(self, state=None, mask=None, means=False):
        self.state, self.mask, self.means = state, mask, means
        self.next_state = {}
        self.limits = {}
        self._calls = {}

    def read(self, layer, batch, limit=None, **spec):
        """The layer's slot, and its state: a dict with a tensor for each name in `spec`.

        Args:
            layer: the layer that asks.
            batch: b.
            limit: the number of steps after which the layer's state is full, if there is one;
                the state then has a tensor `position (b,)`.
            **spec: name = (shape without the batch axis, dtype).
        """
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(layer).__name__).lower()
        rank = self._calls.get(kind, 0)
        self._calls[kind] = rank + 1
        slot = f"{kind}_{rank}"
        if limit is not None:
            self.limits[f"{slot}_position"] = limit
        if self.state is None:
            return slot, {
                name: ops.zeros((batch, *shape), dtype) for name, (shape, dtype) in spec.items()
            }
        return slot, {name: self.state[f"{slot}_{name}"] for name in spec}

    def write(self, slot, state):
        """Leave the layer's new state, with the names that `read` gave."""
        self.next_state.update({f"{slot}_{name}": value for name, value in state.items()})


def current():
    """The open stream, or None."""
    return _stream.get()


@contextlib.contextmanager
def opened(stream):
    """Make `stream` the current one."""
    token = _stream.set(stream)
    try:
        yield stream
    finally:
        _stream.reset(token)


def watching():
    """The function that wants every attention layer's weights, `(layer, weights)`, or None."""
    return _watch.get()


@contextlib.contextmanager
def watched(watch):
    """Call `watch(layer, weights)` for every attention layer that is called."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)
