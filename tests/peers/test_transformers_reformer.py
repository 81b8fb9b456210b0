"""LSH attention against the Reformer of `transformers`, where both see every step.

Hashes then decide nothing: theirs cuts the sorted steps into chunks of any bucket, ours begin with
each bucket. More rounds are left out: theirs looks back from the first chunk of a round into the
round before. Their scores are not divided by sqrt(d), so our query weights are theirs times that.
"""

import numpy as np
import pytest
from support import assert_close

from keras_cosattn import LSHAttention

pytestmark = pytest.mark.peers
STEPS, HEADS, D, WIDTH = 16, 3, 5, 11
NORM = 1e-4  # theirs adds 1e-6 to the squared norm of keys


def peer(chunk_length, causal):
    import torch
    from transformers import ReformerConfig
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    torch.manual_seed(0)
    config = ReformerConfig(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        attention_head_size=D,
        lsh_attn_chunk_length=chunk_length,
        lsh_num_chunks_before=1,
        lsh_num_chunks_after=0,
        num_buckets=2,
        num_hashes=1,
        is_decoder=causal,
        lsh_attention_probs_dropout_prob=0.0,
        hash_seed=0,
    )
    return LSHSelfAttention(config).eval()


def ours(theirs):
    options = {"num_hashes": 1, "bucket_size": STEPS, "output_shape": HEADS * D}
    layer = LSHAttention(HEADS, D, num_buckets=1, use_bias=False, **options)
    layer.build((None, None, WIDTH), (None, None, WIDTH))

    def heads(linear):
        return linear.weight.detach().numpy().T.reshape(WIDTH, HEADS, D)

    layer.query_dense.kernel.assign(heads(theirs.query_key) * np.sqrt(D))
    layer.value_dense.kernel.assign(heads(theirs.value))
    layer.output_dense.kernel.assign(np.eye(HEADS * D).reshape(HEADS, D, HEADS * D))
    return layer


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunk_length", [STEPS, STEPS // 2])
def test_where_both_see_every_step(causal, chunk_length, rng):
    """In one chunk; or sorted into two, of which each sees both."""
    import torch

    theirs = peer(chunk_length, causal)
    x = 3 * rng.standard_normal((2, STEPS, WIDTH)).astype("float32")
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).hidden_states.numpy()
    assert_close(ours(theirs)(x, x, use_causal_mask=causal), expected, NORM)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_where_both_see_every_step(causal, rng):
    import torch

    theirs = peer(STEPS, causal)
    x = 3 * rng.standard_normal((2, STEPS, WIDTH)).astype("float32")
    mask = np.arange(STEPS) < np.array([[STEPS], [9]])
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(x), attention_mask=torch.from_numpy(mask)
        ).hidden_states.numpy()
    found = ours(theirs)(x, x, value_mask=mask, use_causal_mask=causal)
    assert_close(np.asarray(found)[mask], expected[mask], NORM)
