"""A language model of our blocks with the weights of `LlamaForCausalLM`: the same logits."""

import numpy as np
import pytest
from support import assert_close
from test_llama_like import (
    EPSILON,
    HEADS,
    INNER,
    MODELS,
    SHARED,
    SIZE,
    VOCABULARY,
    WIDTH,
    llama,
    tokens,
)

pytestmark = pytest.mark.peers


def theirs():
    """A small model with random weights; and them, in the order of ours."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=len(MODELS["softmax"]),
        num_attention_heads=HEADS,
        num_key_value_heads=SHARED,
        head_dim=SIZE,
        rms_norm_eps=EPSILON,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model, [w.detach().numpy() for w in weights_of(model.model)]


def weights_of(model):
    yield model.embed_tokens.weight
    for layer in model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        # Their rotary positions pair feature i with i + d / 2, ours neighbours.
        yield heads(attention.q_proj)[..., order()]
        yield heads(attention.k_proj)[..., order()]
        yield heads(attention.v_proj)
        yield attention.o_proj.weight.T.reshape(HEADS, SIZE, WIDTH)
        yield layer.input_layernorm.weight
        yield from (part.weight.T for part in (mlp.up_proj, mlp.gate_proj, mlp.down_proj))
        yield layer.post_attention_layernorm.weight
    yield model.norm.weight


def heads(dense):
    return dense.weight.T.reshape(WIDTH, -1, SIZE)


def order():
    return np.arange(SIZE).reshape(2, SIZE // 2).T.ravel()


def test_a_model_with_the_weights_of_llama(rng):
    import torch

    model, weights = theirs()
    ours, ids = llama(MODELS["softmax"]), tokens(rng, 2, 13)
    ours.set_weights(weights)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids).long()).logits.numpy()
    assert_close(ours(ids), expected)
