"""Data is moved and not computed: no copies of shared heads, and no products that only move."""

import numpy as np
import pytest
from support import BACKEND
from variants import inputs

from keras_cosattn.ops import dense

pytestmark = pytest.mark.skipif(BACKEND == "torch", reason="reads the graph of a function")

PRODUCTS = {"dot_general", "MatMul", "BatchMatMul", "BatchMatMulV2", "Einsum"}
COPIES = {"concatenate", "tile", "gather", "ConcatV2", "Tile", "GatherV2", "Repeat"}


def operations(function, *arrays):
    """The names of the operations of a function of arrays, and the shapes of their results."""
    if BACKEND == "jax":
        import jax

        return list(_of_jaxpr(jax.make_jaxpr(function)(*arrays).jaxpr))
    import tensorflow as tf

    specs = [tf.TensorSpec(x.shape, x.dtype) for x in map(np.asarray, arrays)]
    graph = tf.function(function).get_concrete_function(*specs).graph
    return [(op.type, tuple(y.shape)) for op in graph.get_operations() for y in op.outputs]


def _of_jaxpr(jaxpr):
    for equation in jaxpr.eqns:
        yield from ((equation.primitive.name, tuple(y.aval.shape)) for y in equation.outvars)
        for inner in equation.params.values():
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _of_jaxpr(inner)


@pytest.mark.parametrize("heads", [3, 1])
def test_the_heads_of_a_group_share_one_copy_of_keys_and_values(heads, rng):
    q, k, v = inputs(rng, 2, 7, 6, 5), inputs(rng, 2, 13, heads, 5), inputs(rng, 2, 13, heads, 4)
    found = operations(lambda *x: dense.attend(*x)[0], q, k, v)
    assert PRODUCTS & {name for name, _ in found}
    assert not COPIES & {name for name, _ in found}
    assert max(len(shape) for _, shape in found) == 4
    assert (2, 13, 6, 5) not in {shape for _, shape in found}
