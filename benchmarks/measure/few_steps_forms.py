"""Forms of cosFormer and linear attention for few steps, where a softmax is hard to beat."""

import keras
import tensorflow as tf

from keras_cosattn.ops import (
    causal_cosine_attention,
    cosine_attention,
    elu_plus_one,
    linear_attention,
)
from keras_cosattn.ops.block_size import all_at_once
from measure import forms

LENGTHS = (1, 4, 16, 64, 128)
REPEATS = 60
"""A call takes less than a few milliseconds."""
SOFTMAX = "keras.ops.dot_product_attention, us"


def rows(given):
    """Rows of text, the head first: microseconds of Keras's softmax, then ratios to it."""
    head = ["steps", "direction", "pass", "compiled by", SOFTMAX]
    found = []
    for n in LENGTHS:
        shape = given.batch, n, given.heads, given.size
        arrays = [tf.random.normal(shape, seed=i) for i in range(3)]
        for causal in (False, True):
            for gradient in (False, True):
                for jit in (False, True):
                    us, ratios = timed(causal, arrays, gradient, jit)
                    what = ["causal" if causal else "both", "+ gradient" if gradient else "forward"]
                    what += ["XLA" if jit else "graph", f"{us:,.0f}"]
                    found.append([f"{n}", *what, *(f"{ratio:.2f}" for ratio in ratios.values())])
    return [head + list(ratios), *found]


def timed(causal, arrays, gradient, jit):
    """Microseconds of softmax, and of each form its time, of that of softmax in the same turns."""

    def softmax(q, k, v):
        return keras.ops.dot_product_attention(q, k, v, is_causal=causal)

    def cosformer(q, k, v):
        if causal:
            return causal_cosine_attention(q, k, v, max_length=8192)[0]
        return cosine_attention(q, k, v, max_length=8192)

    def linear(q, k, v):
        return linear_attention(elu_plus_one(q), elu_plus_one(k), v, causal=causal)[0]

    def sums_of(attention):
        def call(*arrays):
            with all_at_once():
                return attention(*arrays)

        return call

    ratios = {}
    for name, attention in (("cosFormer", cosformer), ("linear", linear)):
        functions = {
            SOFTMAX: softmax,
            name: attention,
            f"{name}, sums": sums_of(attention),
        }
        times = forms.timed(functions, arrays, gradient=gradient, jit=jit, repeats=REPEATS,
                            alone=[SOFTMAX])  # fmt: skip
        softmax_ms = times.pop(SOFTMAX)
        ratios |= {form: ms / softmax_ms for form, ms in times.items()}
    return 1e3 * softmax_ms, ratios
