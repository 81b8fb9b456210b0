"""The tables of what runtimes can do are what the runtimes say."""

import json
import pathlib
import subprocess
import sys

import pytest
from runtimes import tflite_runtime

from keras_cosattn.export.runtime_ops import TFLITE_MICRO, TFLITE_RUNTIME_2_14

LACKING_OPS = pathlib.Path(__file__).parent / "programs" / "lacking_ops.py"


def test_tflite_runtime_has_the_ops_of_the_table_in_no_later_version(tmp_path):
    python, why_not = tflite_runtime()
    if python is None:
        pytest.skip(why_not)
    versions = {name: TFLITE_RUNTIME_2_14.get(name, 0) for name in builtin_ops()}
    asked = {(name, v) for name, latest in versions.items() for v in (latest, latest + 1) if v}
    lacking = lacking_ops(python, "tflite-runtime", asked, tmp_path)
    assert lacking == {(name, latest + 1) for name, latest in versions.items()}


def test_tflite_micro_has_the_ops_of_the_table_and_no_others(tmp_path):
    pytest.importorskip("tflite_micro", reason="needs tflite-micro")
    asked = {(name, 1) for name in builtin_ops()}
    lacking = lacking_ops(sys.executable, "micro", asked, tmp_path)
    assert {name for name, _ in asked - lacking} == TFLITE_MICRO


def lacking_ops(python, runtime, asked, folder):
    """Those (op, version) of `asked` that a runtime does not have."""
    for name, version in asked:
        (folder / f"{name} {version}").write_bytes(one_op(name, version))
    program = [python, LACKING_OPS, runtime, folder]
    said = subprocess.run(program, stdout=subprocess.PIPE, check=True).stdout
    return {(name, int(version)) for name, version in map(str.split, json.loads(said))}


def builtin_ops():
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    no_ops = {"CUSTOM", "DELEGATE", "PLACEHOLDER_FOR_GREATER_OP_CODES"}
    return [name for name in vars(BuiltinOperator) if name.isupper() and name not in no_ops]


def one_op(name, version):
    """A model of one operator, on inputs that may not suit it."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    code, operator, tensor = schema.OperatorCodeT(), schema.OperatorT(), schema.TensorT()
    code.builtinCode = getattr(schema.BuiltinOperator, name)
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), version
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0], [0]
    tensor.shape, tensor.type, tensor.buffer = [1], schema.TensorType.FLOAT32, 0
    graph, model = schema.SubGraphT(), schema.ModelT()
    graph.tensors, graph.inputs, graph.outputs, graph.operators = [tensor], [0], [0], [operator]
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [schema.BufferT()]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
