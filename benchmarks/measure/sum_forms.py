"""Forms of the causal sums of cosFormer, and the time that is predicted for each."""

import numpy as np
import tensorflow as tf

from keras_cosattn.ops import causal_cosine_attention
from measure import forms
from measure.clock import best_rate

HORIZON = 1024
FORMS = {
    # name: chunk, block (None: all steps), other arguments
    "all chunks of 64 at once": (64, None, {}),
    "loop over blocks of 64": (64, 64, {}),
    "loop over blocks of 128": (128, 128, {}),
    "loop over blocks of 256": (256, 256, {}),
    "loop over blocks of 512, in chunks of 64": (64, 512, {}),
    "loop over blocks of 128, horizon": (128, 128, {"horizon": HORIZON}),
    "loop over blocks of 128, packed": (128, 128, {"packed": True}),
}
ALONE = [name for name, (_, _, options) in FORMS.items() if options]


def rows(given, rates):
    """Rows of text, the head first: predicted and measured milliseconds."""
    head, found = ["form"], {name: [name] for name in FORMS}
    for n in given.lengths:
        shape = given.batch, n, given.heads, given.size
        arrays = [tf.random.normal(shape, seed=i) for i in range(3)]
        functions = {name: attention(n, *form[:2], **form[2]) for name, form in FORMS.items()}
        for gradient in (False, True):
            what = f"{n:,}, {'with gradient' if gradient else 'forward'}"
            head += [f"{what}: predicted", "graph", "XLA"]
            for name, (chunk, block, options) in FORMS.items():
                ms = prediction(n, chunk, block, given.heads * given.batch, given.size, gradient,
                                rates, **options)  # fmt: skip
                found[name].append(f"{ms:,.0f}")
            for jit in (False, True):
                times = forms.timed(functions, arrays, gradient=gradient, jit=jit,
                                    repeats=given.repeats, alone=ALONE)  # fmt: skip
                for name, ms in times.items():
                    found[name].append(f"{ms:,.0f}")
    return [head, *found.values()]


def attention(n, chunk, block, horizon=None, packed=False):
    options = {"horizon": horizon} if horizon else {"max_length": n}
    if packed:
        ids = np.arange(n) // (n // 8) + np.arange(n) // 1000
        options["segment_ids"] = tf.constant(ids[None], "int32")

    def call(q, k, v):
        return causal_cosine_attention(
            q, k, v, chunk_size=chunk, block_size=block or max(n, chunk), **options
        )[0]

    return call


def prediction(n, chunk, block, heads, d, gradient, rates, horizon=None, packed=False):
    """Milliseconds: products at their rate, and tensors that leave the cache."""
    products = n * heads * (2 * 2 * chunk * d + 2 * 2 * (2 * d) * d * (1.5 if horizon else 1))
    floats = 4 * n * heads * d  # q, k, v and the output
    if block is None:  # features of q and k, scores, and the sums of the chunks, four times
        floats += 2 * n * heads * (2 * 2 * d + chunk) + 4 * n // chunk * heads * 2 * d * d
    if gradient:
        products, floats = products * 4, floats * 3  # the forward again, and twice its products
    return 1e3 * (products / rates["flops"] + 4 * floats / rates["bytes"])


def measured_rates():
    x = tf.random.normal((2048, 2048))
    product = tf.function(lambda x: tf.linalg.matmul(x, x))
    source = np.ones(1 << 24, np.float32)
    return {
        "flops": best_rate(lambda: product(x).numpy(), 2 * 2048**3),
        "bytes": best_rate(lambda: source.copy(), source.nbytes),
    }
