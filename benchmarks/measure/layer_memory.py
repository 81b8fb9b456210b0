"""Peak memory of a layer on TensorFlow, in a process that does nothing else."""

import tensorflow as tf

from measure.resident import largest_resident

SHORT = 64


def gradient_peak(layer, x, causal=True):
    """MiB of forward + gradient on x `(1, n, m)`, less those of a call on 64 steps."""

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            y = layer(x, x, use_causal_mask=causal)
        return tape.gradient(y, layer.trainable_variables)

    gradient(x[:, :SHORT])
    before = largest_resident()
    gradient(x)
    return (largest_resident() - before) / 2**20
