"""Softmax attention without its weights: the numbers of the form that returns them."""

import keras
import numpy as np
import pytest
from support import BACKEND, assert_close, float64, value_and_gradients
from variants import WIDTH, inputs

from keras_cosattn import SoftmaxAttention
from keras_cosattn.ops import dense, fused, timesteps

B, T, S, HEADS, D = 2, 6, 9, 6, 5
HALF = {"float16": 6e-4, "bfloat16": 5e-3}  # 11 and 8 bits, of the weights and of the output
if BACKEND == "tensorflow":  # the products are float32
    HALF = dict.fromkeys(HALF, 1e-5)


def random_pairs(rng, *shape):
    """A mask in which the first query, and every query of the first example, sees nothing."""
    allowed = rng.random(shape) < 0.5
    allowed[..., :1, :] = False
    allowed[0] = False
    return allowed


@pytest.mark.parametrize("heads", [6, 2, 1])
@pytest.mark.parametrize("size", [D, 7])
@pytest.mark.parametrize(
    "kind", ["none", "causal", "keys", "pairs", "heads", "s", "bias", "both", "capped"]
)
def test_the_numbers_are_those_of_the_form_with_weights(kind, size, heads, rng):
    arrays = (
        inputs(rng, B, T, HEADS, D),
        inputs(rng, B, S, heads, D),
        inputs(rng, B, S, heads, size),
    )
    g, allowed, bias = inputs(rng, B, T, HEADS, size), None, None
    cap = 0.5 if kind == "capped" else None
    shapes = {"keys": (B, 1, 1, S), "pairs": (B, 1, T, S), "heads": (B, HEADS, T, S)}
    if kind in ("bias", "both", "capped"):
        bias = inputs(rng, 1, HEADS, T, S)
    if kind == "s":
        allowed = rng.random(S) < 0.5
    elif kind in (*shapes, "both", "capped"):
        allowed = random_pairs(rng, *shapes.get(kind, (B, 1, T, S)))
    causal = kind == "causal"
    pairs = timesteps.pair_mask(T, S, causal=True) if causal else allowed

    def with_weights(q, k, v):
        return dense.attend(q, k, v, pairs, bias=bias, logit_soft_cap=cap)[0]

    def without(q, k, v):
        return fused.attend(q, k, v, allowed, bias, causal=causal, logit_soft_cap=cap)

    expected, expected_gradients = value_and_gradients(with_weights, g, *arrays)
    found, gradients = value_and_gradients(without, g, *arrays)
    assert_close(found, expected)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, wanted)
    if kind in ("keys", "pairs", "heads", "both", "capped"):
        assert not np.any(found[0])


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("causal", [False, True])
def test_half_precision_sums_in_float32(causal, dtype, rng):
    steps, heads, d = 512, 2, 16
    arrays = [keras.ops.cast(inputs(rng, 1, steps, heads, d), dtype) for _ in range(3)]
    found = keras.ops.convert_to_numpy(
        keras.ops.cast(fused.attend(*arrays, causal=causal), "float32")
    )
    q, k, v = (
        keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")).astype("float64") for x in arrays
    )
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(d)
    weights = np.exp(scores) * (np.tri(steps) if causal else 1)
    weights /= weights.sum(axis=-1, keepdims=True)
    assert_close(found, np.einsum("bhts,bshd->bthd", weights, v), HALF[dtype])


def test_float64_stays_float64(rng):
    with float64():
        arrays = [rng.standard_normal((B, S, HEADS, D)) for _ in range(3)]
        tensors = [keras.ops.convert_to_tensor(x, "float64") for x in arrays]
        found = fused.attend(*tensors, causal=True)
        pairs = timesteps.pair_mask(S, S, causal=True)
        assert_close(found, dense.attend(*tensors, pairs)[0], 1e-14)


@pytest.fixture
def calls(monkeypatch):
    """The arguments of each call of the backend's operation."""
    seen, operation = [], keras.ops.dot_product_attention

    def record(*args, **kwargs):
        seen.append(kwargs)
        return operation(*args, **kwargs)

    monkeypatch.setattr(keras.ops, "dot_product_attention", record)
    return seen


@pytest.mark.skipif(BACKEND == "tensorflow", reason="two products are faster on TensorFlow")
def test_the_operation_of_the_backend_is_taken_where_no_weights_are_asked_for(calls, rng):
    layer, x = SoftmaxAttention(2, 4, dropout=0.5), inputs(rng, 1, 7, WIDTH)
    layer(x, x, use_causal_mask=True)
    assert [call["is_causal"] for call in calls] == [True]
    assert calls[0]["mask"] is None
    layer(x, x, use_causal_mask=True, training=True)
    layer(x, x, return_attention_scores=True)
    SoftmaxAttention(2, 4, logit_soft_cap=3.0)(x, x)
    assert len(calls) == 1


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow has no such kernels")
def test_kernels_can_be_turned_off(calls, rng):
    x = inputs(rng, 1, 7, WIDTH)
    SoftmaxAttention(2, 4)(x, x)
    SoftmaxAttention(2, 4, flash_attention=False)(x, x)
    keras.config.disable_flash_attention()
    try:
        SoftmaxAttention(2, 4)(x, x)
    finally:
        keras.config.enable_flash_attention()
    assert [call["flash_attention"] for call in calls] == [None, False, False]


@pytest.mark.skipif(BACKEND != "jax", reason="JAX runs on TPUs")
def test_the_kernel_for_tpus_is_not_taken(calls, monkeypatch, rng):
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["tpu:0"])
    x = inputs(rng, 1, 7, WIDTH)
    SoftmaxAttention(2, 4)(x, x)
    assert calls[0]["flash_attention"] is False


def test_values_may_have_fewer_heads_than_keys(rng):
    q, k, v = inputs(rng, B, T, 6, D), inputs(rng, B, S, 6, D), inputs(rng, B, S, 3, D)
    assert_close(fused.attend(q, k, v), dense.attend(q, k, v)[0])


def test_queries_without_any_key_get_zero_in_a_graph_of_any_length(rng):
    arrays = inputs(rng, B, T, HEADS, D), *[inputs(rng, B, 0, HEADS, D)] * 2
    run = fused.attend
    if BACKEND == "tensorflow":
        import tensorflow as tf

        steps = tf.TensorSpec([None, None, HEADS, D])
        pairs = tf.TensorSpec([None, 1, None, None], "bool")
        run = tf.function(run, input_signature=[steps] * 3 + [pairs])
    assert not np.any(run(*arrays, np.ones((B, 1, T, 0), bool)))
