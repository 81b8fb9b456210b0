"""The layers refuse to be called inside a model of tf_keras, whose name and context stand in here.

`peers/test_tf_models.py` tests the same with tf_keras itself.
"""

import sys
import types

import keras
import pytest
from variants import VARIANTS, WIDTH, build, inputs

import keras_cosattn
from keras_cosattn import CosFormerAttention, SoftmaxAttention, TransformerEncoder
from keras_cosattn.component import Component
from keras_cosattn.keras3_only import CALL_CONTEXT, Keras3Only

LAYERS = [
    cls
    for cls in vars(keras_cosattn).values()
    if isinstance(cls, type)
    and issubclass(cls, keras.layers.Layer)
    and not issubclass(cls, keras.Model)
]
COSFORMER = "CosFormerAttention-bounded"


@pytest.fixture
def context(monkeypatch):
    """The call context of tf_keras, in modules that have its names."""
    context = types.SimpleNamespace(in_call=False, layer=None)
    module = types.ModuleType(CALL_CONTEXT)
    module.call_context = lambda: context
    monkeypatch.setitem(sys.modules, "tf_keras", types.ModuleType("tf_keras"))
    monkeypatch.setitem(sys.modules, CALL_CONTEXT, module)
    return context


class Scaffold:
    """A layer of tf_keras that is being called."""

    name = "scaffold"


def test_every_public_layer_but_the_components_of_others_has_the_check():
    assert {*VARIANTS, TransformerEncoder} <= set(LAYERS)
    for cls in LAYERS:
        assert issubclass(cls, Keras3Only) or issubclass(cls, Component), cls


@pytest.mark.parametrize("case", [COSFORMER, "SoftmaxAttention-cache"])
def test_a_call_inside_a_tf_keras_layer_names_it_and_the_remedy(case, context, rng):
    layer, x = build(case), inputs(rng, 2, 3, WIDTH)
    layer(x, x)  # tf_keras is imported, and none of its layers is being called
    context.in_call, context.layer = True, Scaffold()
    with pytest.raises(ValueError, match=r"inside scaffold \(Scaffold\), a layer of tf_keras") as e:
        layer(x, x)
    assert layer.name in str(e.value)
    assert "keras_cosattn.models.CosFormerAttention" in str(e.value)
    context.in_call = False
    layer(x, x)


def test_a_block_inside_a_tf_keras_layer_is_refused_as_a_whole(context, rng):
    block = TransformerEncoder(4, attention=CosFormerAttention(2, 3))
    context.in_call, context.layer = True, Scaffold()
    with pytest.raises(ValueError, match=r"TransformerEncoder.* is a layer of Keras 3"):
        block(inputs(rng, 2, 3, WIDTH))
    assert not block.built


def test_a_symbolic_tensor_of_tf_keras_is_refused(context, rng):
    symbolic = type("KerasTensor", (), {"__module__": "tf_keras.src.engine.keras_tensor"})()
    layer = SoftmaxAttention(2, 3)
    for arguments in [(symbolic, symbolic), (inputs(rng, 2, 3, WIDTH), symbolic)]:
        with pytest.raises(ValueError, match="with a symbolic tensor of tf_keras"):
            layer(*arguments)
    with pytest.raises(ValueError, match="with a symbolic tensor of tf_keras"):
        layer(query=symbolic, value=symbolic)


def test_a_tf_keras_without_this_context_changes_nothing(monkeypatch, rng):
    monkeypatch.setitem(sys.modules, "tf_keras", types.ModuleType("tf_keras"))
    monkeypatch.delitem(sys.modules, CALL_CONTEXT, raising=False)
    x = inputs(rng, 2, 3, WIDTH)
    assert build(COSFORMER)(x, x).shape == (2, 3, WIDTH)
