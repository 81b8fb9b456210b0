"""Forms of causal softmax attention: in windows, and over the whole past."""

import contextlib

import tensorflow as tf

from measure import forms, side_keras
from measure.cells import Cell
from measure.process import Worker

WINDOW = 64
WINDOWS = {
    # name: what a side calls it, options
    "all at once": ("windows", {}),
    "loop over blocks of 512": ("windows", {"block_size": 512}),
    "loop over blocks of 2,048": ("windows", {"block_size": 2048}),
    "loop over blocks of 8,192": ("windows", {"block_size": 8192}),
}
"""A loop whose block has all steps is the first form."""

WHOLE = {
    "keras.ops.dot_product_attention": ("softmax", {}),
    "two products": ("softmax_products", {}),
}


def window_rows(given):
    options = {"size": WINDOW, "look_back": WINDOW}
    named = {name: (what, {**options, **more}) for name, (what, more) in WINDOWS.items()}
    return rows("windows", named, given.lengths, given)


def whole_rows(given):
    lengths = [n for n in given.lengths if n <= given.softmax_up_to]
    return rows("softmax", WHOLE, lengths, given)


def rows(title, named, lengths, given):
    """Rows of text, the head first: milliseconds, and MiB of the gradient under XLA."""
    head, found = [title], {name: [name] for name in named}
    for n in lengths:
        shape = given.batch, n, given.heads, given.size
        arrays = [tf.random.normal(shape, seed=i) for i in range(3)]
        cells = {
            name: Cell("core", what, "tensorflow-xla", n, True, True, given.batch,
                       given.heads, given.size, 0, options=tuple(options.items()))
            for name, (what, options) in named.items()
        }  # fmt: skip
        functions = {name: side_keras.core(cell.request()) for name, cell in cells.items()}
        for gradient in (False, True):
            head += [f"{n:,}, {'with gradient' if gradient else 'forward'}: graph", "XLA"]
            for jit in (False, True):
                times = forms.timed(functions, arrays, gradient=gradient, jit=jit,
                                    repeats=given.repeats)  # fmt: skip
                for name, ms in times.items():
                    found[name].append(f"{ms:,.0f}")
        head.append("XLA, peak MiB")
        for name, cell in cells.items():
            found[name].append(f"{peak(cell):,.0f}")
    return [head, *found.values()]


def peak(cell):
    """MiB of a call that is compiled already, in a process of its own."""
    with contextlib.closing(Worker(cell.worker)) as worker:
        return worker.ask("peak", warm=True, cell=cell.request())
