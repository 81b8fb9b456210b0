"""Bad input gets an error that says what was received and what to do."""

import keras
import numpy as np
import pytest
from variants import CANNOT, CASES, CAUSAL, build

from keras_cosattn import (
    CosFormerAttention,
    LinearAttention,
    SoftmaxAttention,
    TransformerDecoder,
    TransformerEncoder,
)
from keras_cosattn.ops import pointwise_features

X = np.zeros((2, 5, 11), "float32")
FULL = np.arange(50).reshape(2, 5, 5) % 3 > 0  # neither padding nor causal
LINEAR = [name for name in CASES if not name.startswith("Softmax")]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": X[0], "value": X}, r"`query` must have shape .* query.shape=\(5, 11\)"),
        ({"query": X, "value": X[:1]}, "must agree in batch size"),
        ({"query": X, "value": X, "key": X[:, :4]}, r"and value and key in length.*\(2, 4, 11\)"),
        ({"query_mask": np.ones((2, 4))}, r"`query_mask` must .* = \(2, 5\). Received: .*\(2, 4\)"),
        ({"value_mask": np.ones((2, 5, 5))}, r"`value_mask` must .*value_mask.shape=\(2, 5, 5\)"),
        ({"key_mask": np.ones(5)}, r"`key_mask` must have shape \(batch, steps\)"),
        ({"segment_ids": np.ones((2, 4), "int32")}, r"`segment_ids` must .* = \(2, 5\)"),
        (
            {"attention_mask": np.ones((2, 4, 5))},
            r"must broadcast to \(b, h, t, s\) = \(b, 6, 5, 5",
        ),
        (
            {"value": X[:, :4], "segment_ids": np.ones((2, 5), "int32")},
            "query and value must have the same number of steps, because `segment_ids`",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_bad_call_is_refused(case, arguments, message):
    if "segment_ids" in arguments and "value" in arguments and "cross" in CANNOT[case]:
        message = "cannot attend from queries to other values"
    elif "segment_ids" in arguments and "packed" in CANNOT[case]:
        message = f"{message}|cannot pack"
    with pytest.raises(ValueError, match=message):
        build(case)(**{"query": X, "value": X, "use_causal_mask": case in CAUSAL, **arguments})


@pytest.mark.parametrize("case", LINEAR)
def test_a_full_mask_is_refused_with_the_layers_that_take_it(case):
    with pytest.raises(ValueError, match=r"cannot take .*\(2, 5, 5\).*SoftmaxAttention"):
        build(case)(X, X, attention_mask=FULL, use_causal_mask=case in CAUSAL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 0}, "`num_heads` must be an integer of at least 1. Received: num_heads=0"),
        ({"key_dim": -3}, "`key_dim` must be .* key_dim=-3"),
        ({"num_key_value_heads": 4}, "num_heads=6, num_key_value_heads=4"),
        ({"max_length": 0}, "`max_length` must be .* max_length=0"),
        ({"max_length": -5}, "`max_length` must be .* max_length=-5"),
        ({"horizon": 7}, "`horizon` must be even, because it has two halves. Received: horizon=7"),
        ({"horizon": 0}, "`horizon` must be .* horizon=0"),
        ({"horizon": 8, "max_length": 9}, "not both. Received: max_length=9, horizon=8"),
        ({"chunk_size": 0}, "`chunk_size` must be .* chunk_size=0"),
    ],
)
def test_a_bad_constructor_argument_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CosFormerAttention(**{"num_heads": 6, "key_dim": 5, **arguments})


def test_an_unknown_feature_map_is_refused():
    with pytest.raises(ValueError, match=r"one of \['elu\+1', .*Received: feature_map='exp'"):
        LinearAttention(2, 3, feature_map="exp")
    assert pointwise_features.get(np.abs) is np.abs


def test_a_call_past_max_length_is_refused():
    layer = CosFormerAttention(2, 3, max_length=4)
    for causal in (False, True):
        with pytest.raises(ValueError, match=r"at most 4 steps. Received: 5 steps.*`horizon`"):
            layer(X, X, use_causal_mask=causal)
    assert layer(X[:, :4], X[:, :4]).shape == (2, 4, 11)


def test_a_horizon_needs_causality():
    with pytest.raises(ValueError, match=r"`horizon` is for causal .*`use_causal_mask=True`"):
        CosFormerAttention(2, 3, horizon=4)(X, X)


def test_a_stream_refuses_what_needs_the_past():
    from keras_cosattn import scope

    layer = LinearAttention(2, 3)
    for arguments, message in [
        ({"use_causal_mask": False}, "looks ahead"),
        ({"segment_ids": np.ones((2, 5), "int32")}, "reset the stream instead"),
        ({"return_attention_scores": True}, "would need the whole past"),
    ]:
        with (
            scope.opened(scope.Stream()),
            pytest.raises(ValueError, match=f"cannot stream: .*{message}"),
        ):
            layer(X, X, **{"use_causal_mask": True, **arguments})


def test_a_block_refuses_arguments_that_disagree():
    with pytest.raises(ValueError, match=r"`num_heads` and `attention` disagree.*num_heads=3"):
        TransformerEncoder(8, num_heads=3, attention=LinearAttention(2, 3))
    with pytest.raises(ValueError, match=r"give `attention`, a layer, or `num_heads`"):
        TransformerEncoder(8)
    with pytest.raises(ValueError, match=r"must be an attention layer of keras_cosattn"):
        TransformerDecoder(8, attention=keras.layers.MultiHeadAttention(2, 3))
    with pytest.raises(ValueError, match=r"must divide the width.*num_heads=4.*11"):
        TransformerEncoder(8, num_heads=4)(X)
    block = TransformerDecoder(8, attention=LinearAttention(2, 3))
    block(X)
    with pytest.raises(ValueError, match=r"built without an `encoder_sequence`"):
        block(X, X)


def test_softmax_takes_any_mask_that_broadcasts():
    layer = SoftmaxAttention(2, 3)
    for shape in [(5,), (5, 5), (2, 5, 5), (2, 1, 5, 5), (1, 2, 5, 5)]:
        assert layer(X, X, attention_mask=np.ones(shape)).shape == X.shape
    with pytest.raises(ValueError, match=r"Received: attention_mask.shape=\(2, 3, 5, 5\)"):
        layer(X, X, attention_mask=np.ones((2, 3, 5, 5)))
