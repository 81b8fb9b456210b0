"""Positions against those of models in `transformers`."""

import numpy as np
import pytest
from support import assert_close

from keras_cosattn import ALiBi, Rotary, T5Bias
from keras_cosattn.ops import dense

pytestmark = pytest.mark.peers
T, S, HEADS, D = 13, 300, 6, 10
Q_POSITIONS, K_POSITIONS = np.arange(S - T, S)[None], np.arange(S)[None]  # the last are queries


@pytest.fixture
def vectors(rng):
    return [rng.standard_normal((2, n, HEADS, D)).astype("float32") for n in (T, S)]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (32, 64), (8, 20), (20, 999)])
def test_t5_bias(bidirectional, num_buckets, max_distance, vectors):
    import torch
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    config = T5Config(
        num_heads=HEADS,
        d_kv=D,
        d_model=HEADS * D,
        relative_attention_num_buckets=num_buckets,
        relative_attention_max_distance=max_distance,
        is_decoder=not bidirectional,
    )
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    position = T5Bias(num_buckets, max_distance, bidirectional)
    position.build((2, T, HEADS, D))
    position.embeddings.assign(theirs.relative_attention_bias.weight.detach().numpy())
    for first in (0, 140, S - T):
        places = np.arange(first, first + T)[None]
        with torch.no_grad():
            expected = theirs.compute_bias(T, S, past_seen_tokens=first).numpy()
        assert_close(position.bias(vectors[0], places, K_POSITIONS), expected, 0)


def test_rotary_of_gptj(vectors):
    """Pairs of neighbours, as ours."""
    import torch
    from transformers.models.gptj.modeling_gptj import (
        apply_rotary_pos_emb,
        create_sinusoidal_positions,
    )

    found = Rotary().encode(*vectors, Q_POSITIONS, K_POSITIONS)
    sin, cos = create_sinusoidal_positions(S, D).split(D // 2, dim=1)
    for x, places, turned in zip(vectors, (Q_POSITIONS, K_POSITIONS), found, strict=True):
        expected = apply_rotary_pos_emb(torch.from_numpy(x), sin[places], cos[places])
        assert_close(turned, expected.numpy())


@pytest.mark.parametrize("model", ["llama", "gpt_neox"])
@pytest.mark.parametrize("base", [10_000.0, 500.0])
def test_rotary_of_llama_and_gpt_neox(model, base, vectors):
    """Their pairs are feature i and i + d / 2: the same scores, with features in that order."""
    import torch
    import transformers
    from transformers.models.gpt_neox import modeling_gpt_neox
    from transformers.models.llama import modeling_llama

    modeling, name = {
        "llama": (modeling_llama, "Llama"),
        "gpt_neox": (modeling_gpt_neox, "GPTNeoX"),
    }[model]
    config = getattr(transformers, f"{name}Config")(
        hidden_size=HEADS * D,
        num_attention_heads=HEADS,
        rope_parameters={"rope_type": "default", "rope_theta": base, "partial_rotary_factor": 1.0},
    )
    angles = getattr(modeling, f"{name}RotaryEmbedding")(config)
    order = np.concatenate([np.arange(0, D, 2), np.arange(1, D, 2)])
    turned = []
    for x, places in zip(vectors, (Q_POSITIONS, K_POSITIONS), strict=True):
        x = torch.from_numpy(x[..., order]).transpose(1, 2)
        cos, sin = angles(x, torch.from_numpy(places))
        turned.append(modeling.apply_rotary_pos_emb(x, x, cos, sin)[0])
    expected = (turned[0] @ turned[1].transpose(2, 3)).numpy()
    found = dense.scores(*Rotary(base).encode(*vectors, Q_POSITIONS, K_POSITIONS))
    assert_close(found, expected, 1e-4)  # angles of up to 300, in float32


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 16, 25])
@pytest.mark.parametrize("model", ["bloom", "mpt"])
def test_alibi(heads, model):
    """The bias of the last query; theirs leave out, or not, what softmax takes away again."""
    import torch
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    if model == "bloom":
        expected = build_alibi_tensor(torch.ones(1, S), heads, torch.float32).numpy()
        expected = expected.reshape(heads, S) - expected.reshape(heads, S)[:, -1:]
    else:
        expected = build_mpt_alibi_tensor(heads, S).numpy().reshape(heads, S)
    q = np.zeros((1, 1, heads, D), "float32")
    found = np.asarray(ALiBi().bias(q, np.array([[S - 1]]), K_POSITIONS))
    assert_close(found[0, :, 0], expected)
