"""The encoder that an example converts, with the weights of `BertModel`: the same outputs."""

import numpy as np
import pytest
from support import assert_close
from test_sentence_encoder import SIZES

import minilm  # isort: skip  # in the folder of the examples, which the test above finds

pytestmark = pytest.mark.peers


def test_the_outputs_are_those_of_transformers(rng):
    import torch
    import transformers

    config = transformers.BertConfig(
        vocab_size=SIZES.vocabulary,
        hidden_size=SIZES.width,
        intermediate_size=SIZES.inner,
        num_hidden_layers=SIZES.blocks,
        num_attention_heads=SIZES.heads,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    theirs = transformers.BertModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3)
    ours = minilm.build(SIZES)
    minilm.load(ours, {name: x.numpy() for name, x in theirs.state_dict().items()})
    tokens = rng.integers(1, SIZES.vocabulary, (2, 30)).astype("int32")
    tokens[0, 20:] = 0
    with torch.no_grad():
        given = torch.tensor(tokens.astype("int64")), torch.tensor(tokens != 0)
        expected = theirs(*given).last_hidden_state.numpy()
    found = np.asarray(ours(tokens)["steps"])
    assert_close(found[tokens != 0], expected[tokens != 0], 5e-5)  # float32 through two blocks
