"""Data is moved and not computed: no copies of shared heads, and no products that only move."""

import contextlib

import numpy as np
import pytest
from support import BACKEND, assert_close
from variants import inputs

from keras_cosattn.ops import cache, dense

reads_graph = pytest.mark.skipif(BACKEND == "torch", reason="PyTorch has no graph to read")

PRODUCTS = {"dot_general", "MatMul", "BatchMatMul", "BatchMatMulV2", "Einsum"}
COPIES = {"concatenate", "tile", "gather", "ConcatV2", "Tile", "GatherV2", "Repeat"}


def operations(function, *arrays):
    """The names of the operations of a function of arrays, and the shapes of their results."""
    if BACKEND == "jax":
        import jax

        return list(_of_jaxpr(jax.make_jaxpr(function)(*arrays).jaxpr))
    import tensorflow as tf

    specs = [tf.TensorSpec(x.shape, x.dtype) for x in map(np.asarray, arrays)]
    graph = tf.function(function, autograph=False).get_concrete_function(*specs).graph
    return [(op.type, tuple(y.shape)) for op in graph.get_operations() for y in op.outputs]


def _of_jaxpr(jaxpr):
    for equation in jaxpr.eqns:
        yield from ((equation.primitive.name, tuple(y.aval.shape)) for y in equation.outvars)
        for inner in equation.params.values():
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _of_jaxpr(inner)


def rounded_products():
    """Where products round their operands to bfloat16, if the backend can be told to."""
    if BACKEND != "jax":
        return contextlib.nullcontext()
    import jax

    return jax.default_matmul_precision("bfloat16")


@reads_graph
@pytest.mark.parametrize("heads", [3, 1])
def test_the_heads_of_a_group_share_one_copy_of_keys_and_values(heads, rng):
    q, k, v = inputs(rng, 2, 7, 6, 5), inputs(rng, 2, 13, heads, 5), inputs(rng, 2, 13, heads, 4)
    found = operations(lambda *x: dense.attend(*x)[0], q, k, v)
    assert PRODUCTS & {name for name, _ in found}
    assert not COPIES & {name for name, _ in found}
    assert max(len(shape) for _, shape in found) == 4
    assert (2, 13, 6, 5) not in {shape for _, shape in found}


def appended(t, masked):
    """Arguments of `append` for two examples at different positions, one of them past the end."""
    position = np.array([[3], [8]], "int32")
    mask = None
    if masked:
        mask = np.arange(t) % 3 != 1
        mask = np.stack([mask, ~mask])
        position = position + np.maximum(np.cumsum(mask, axis=1, dtype="int32") - 1, 0)
    else:
        position = position + np.arange(t, dtype="int32")
    return position.astype("int32"), mask


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("t", [1, 5])
def test_a_cache_keeps_every_bit(t, masked, rng):
    """Also where products round their operands to 8 bits, as TPUs do by default."""
    n = 10
    old, new = inputs(rng, 2, n, 3, 4), inputs(rng, 2, t, 3, 4)
    position, mask = appended(t, masked)
    expected = old.copy()
    for b, i in np.ndindex(2, t):
        if position[b, i] < n and (mask is None or mask[b, i]):
            expected[b, position[b, i]] = new[b, i]
    with rounded_products():
        found = cache.append(old, new, position, mask)
    assert_close(found, expected, 0)


@pytest.mark.parametrize("masked", [False, True])
def test_no_step_changes_no_cache(masked, rng):
    old, none = inputs(rng, 2, 4, 3, 5), inputs(rng, 2, 0, 3, 5)
    position, mask = np.zeros((2, 0), "int32"), np.zeros((2, 0), "bool") if masked else None
    assert_close(cache.append(old, none, position, mask), old, 0)
    if BACKEND != "tensorflow":
        return
    import tensorflow as tf

    specs = [tf.TensorSpec((None, None, 3, 5)), tf.TensorSpec((None, None), "int32")]
    specs += [tf.TensorSpec((None, None), "bool")] if masked else []
    append = tf.function(lambda *new: cache.append(old, *new), input_signature=specs)
    assert_close(append(none, position, *([mask] if masked else [])), old, 0)


@reads_graph
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("t", [1, 5])
def test_steps_enter_a_cache_without_a_product(t, masked, rng):
    position, mask = appended(t, masked)
    arrays = [inputs(rng, 2, 10, 3, 4), inputs(rng, 2, t, 3, 4), position]
    found = operations(cache.append, *arrays, *([mask] if masked else []))
    assert not PRODUCTS & {name for name, _ in found}
