"""Datasets that end at once, so that a `fit` or `predict` takes the time of its steps."""

import tensorflow as tf


def untuned(dataset):
    """Switch off the thread with which TensorFlow tunes a dataset.

    At the end TensorFlow 2.21 wakes that thread before it marks the end (callbacks of
    `CancellationManager` run first), so the thread often sleeps on, and the end waits for it. It
    sleeps for 10 ms and then twice as long each time: a `fit`, `evaluate` or `predict` may take
    twice its time, up to a minute more.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def in_order(arrays, count):
    """A dataset of batches of `count` examples of a tuple of arrays, the rest of them last."""
    return untuned(tf.data.Dataset.from_tensor_slices(arrays).batch(count))
