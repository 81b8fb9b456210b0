"""Nystrom attention against the Nystromformer of `transformers`, its weights copied across."""

import numpy as np
import pytest
from support import assert_close

from keras_cosattn import NystromAttention

pytestmark = pytest.mark.peers
STEPS, D = 24, 5


def peer(heads, num_landmarks=6, conv_kernel_size=None):
    import torch
    from transformers import NystromformerConfig
    from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

    torch.manual_seed(0)
    config = NystromformerConfig(
        hidden_size=heads * D,
        num_attention_heads=heads,
        num_landmarks=num_landmarks,
        segment_means_seq_len=STEPS,
        conv_kernel_size=conv_kernel_size or 1,
        attention_probs_dropout_prob=0.0,
    )
    layer = NystromformerSelfAttention(config).eval()
    layer.conv_kernel_size = conv_kernel_size  # its config no longer takes None
    return layer


def ours(theirs, heads, **arguments):
    """The same weights; the heads side by side are the output."""
    width = heads * D
    layer = NystromAttention(heads, D, num_landmarks=theirs.num_landmarks, **arguments)
    layer.build((None, None, width), (None, None, width))
    for dense, linear in [
        (layer.query_dense, theirs.query),
        (layer.key_dense, theirs.key),
        (layer.value_dense, theirs.value),
    ]:
        dense.kernel.assign(linear.weight.detach().numpy().T.reshape(width, heads, D))
        dense.bias.assign(linear.bias.detach().numpy().reshape(heads, D))
    layer.output_dense.kernel.assign(np.eye(width).reshape(heads, D, width))
    if theirs.conv_kernel_size is not None:
        layer.conv_kernel.assign(theirs.conv.weight.detach().numpy()[:, 0, :, 0].T)
    return layer


def outputs(theirs, x):
    import torch

    with torch.no_grad():
        return theirs(torch.from_numpy(x))[0].numpy()


def inputs(rng, batch, heads):
    return 3 * rng.standard_normal((batch, STEPS, heads * D)).astype("float32")


@pytest.mark.parametrize("conv_kernel_size", [None, 1, 7])
def test_one_head_of_one_example(conv_kernel_size, rng):
    theirs, x = peer(1, conv_kernel_size=conv_kernel_size), inputs(rng, 1, 1)
    layer = ours(theirs, 1, conv_kernel_size=conv_kernel_size)
    assert_close(layer(x, x), outputs(theirs, x))


@pytest.mark.parametrize("num_landmarks", [1, 4, 12, STEPS])
def test_their_exact_start_for_each_head_of_a_batch(num_landmarks, rng):
    theirs, x = peer(3, num_landmarks), inputs(rng, 4, 3)
    theirs.init_option = "exact"
    iterations = 16 if num_landmarks == STEPS else 6  # there theirs is softmax attention
    tolerance = 1e-4 if num_landmarks == STEPS else 1e-5
    layer = ours(theirs, 3, pinv_iterations=iterations)
    assert_close(layer(x, x), outputs(theirs, x), tolerance)


def test_their_other_start_depends_on_the_neighbours_and_ours_does_not(rng):
    theirs, x = peer(2), inputs(rng, 2, 2)
    x[1] *= 10
    layer = ours(theirs, 2)
    assert np.abs(outputs(theirs, x)[:1] - outputs(theirs, x[:1])).max() > 1e-3
    assert_close(np.asarray(layer(x, x))[:1], layer(x[:1], x[:1]))
