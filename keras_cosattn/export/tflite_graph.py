"""The graphs of a TFLite model: what they hold, and how to change them."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_cosattn.export.sample_inputs import Sizes, TensorSize


class TFLiteGraph:
    """The graphs of a TFLite model, one for each signature, and others that these call.

    Args:
        content: bytes. The model.

    Attributes:
        content: The bytes that were read.
        model: A `ModelT` of TFLite's public schema.
        signatures: The name of each signature and the number of its graph. A file without
            signatures gets one, `main`, for its first graph.

    Raises:
        ImportError: If `ai-edge-litert` is not installed.
        ValueError: If the bytes are no model, or are damaged.
    """

    def __init__(self, content: bytes) -> None:
        self._schema, self._tools = _schema_and_tools()
        self.content = content
        try:
            if content[4:8] != b"TFL3":
                raise ValueError("the bytes that identify the format are missing")
            self.model = self._tools.read_model_from_bytearray(content)
            for buffer in self.model.buffers:
                if buffer.data is not None:  # bytes would be packed one by one, in minutes
                    buffer.data = np.frombuffer(buffer.data, "uint8")
            self.model.signatureDefs = self.model.signatureDefs or [self._main()]
            self.signatures = {
                signature.signatureKey.decode(): signature.subgraphIndex
                for signature in self.model.signatureDefs
            }
        except Exception as error:  # damaged files raise many kinds
            raise ValueError(f"This is no TFLite model, or it is damaged: {error}") from error

    def op_name(self, operator: Any) -> str:
        """`"FULLY_CONNECTED"`, or for a custom op `"CUSTOM name"`."""
        name = self._tools.opcode_to_name(self.model, operator.opcodeIndex)
        code = self.model.operatorCodes[operator.opcodeIndex]
        return f"CUSTOM {code.customCode.decode()}" if name == "CUSTOM" else name

    def operators(self, signature: str | None = None) -> Iterator[tuple[str, int, Any, Any]]:
        """Yield (name, version, operator, graph) for all of them, or those of one signature."""
        graphs = self.model.subgraphs
        for graph in graphs if signature is None else [graphs[i] for i in self._run_by(signature)]:
            for operator in graph.operators or ():
                version = self.model.operatorCodes[operator.opcodeIndex].version
                yield self.op_name(operator), version, operator, graph

    def ops(self, signature: str | None = None) -> dict[str, list[int]]:
        """Name -> `[largest version, count]`, sorted by name, in the file or one signature."""
        versions: dict[str, int] = {}
        counts: collections.Counter[str] = collections.Counter()
        for name, version, _, _ in self.operators(signature):
            versions[name] = max(version, versions.get(name, 0))
            counts[name] += 1
        return {name: [versions[name], counts[name]] for name in sorted(versions)}

    def specs(self, signature: str) -> tuple[Sizes, Sizes]:
        """Names and sizes of the inputs and of the outputs of a signature."""
        definition = self.definition(signature)
        tensors = self.model.subgraphs[definition.subgraphIndex].tensors
        inputs, outputs = (
            {m.name.decode(): self._size(tensors[m.tensorIndex]) for m in side or ()}
            for side in (definition.inputs, definition.outputs)
        )
        return inputs, outputs

    @property
    def constant_bytes(self) -> int:
        """Bytes of weights, tables and other constants; shared ones count once."""
        return sum(len(buffer.data) for buffer in self.model.buffers if buffer.data is not None)

    def sort_ends(self, signature: str, inputs: Iterable[str], outputs: Iterable[str]) -> None:
        """Put the inputs and outputs of a signature in the order of two lists of their names."""
        definition = self.definition(signature)
        graph = self.model.subgraphs[definition.subgraphIndex]
        for side, names in (("inputs", inputs), ("outputs", outputs)):
            places = {m.name.decode(): m.tensorIndex for m in getattr(definition, side) or ()}
            setattr(graph, side, np.array([places[name] for name in names], "int32"))

    def definition(self, signature: str) -> Any:
        """The `SignatureDefT` of a signature."""
        return next(d for d in self.model.signatureDefs if d.signatureKey.decode() == signature)

    def _main(self) -> Any:
        graph, definition = self.model.subgraphs[0], self._schema.SignatureDefT()
        definition.signatureKey, definition.subgraphIndex = b"main", 0
        for side in ("inputs", "outputs"):
            entries = []
            for index in getattr(graph, side):
                entry = self._schema.TensorMapT()
                entry.name, entry.tensorIndex = graph.tensors[index].name, index
                entries.append(entry)
            setattr(definition, side, entries)
        return definition

    def _size(self, tensor: Any) -> TensorSize:
        shape = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
        sizes = tuple(None if n < 0 else int(n) for n in (() if shape is None else shape))
        return TensorSize(sizes, self._tools.type_to_name(tensor.type).lower())

    def _run_by(self, signature: str) -> list[int]:
        """The numbers of a signature's graph and of the graphs that it calls."""
        found = [self.signatures[signature]]
        for index in found:  # which grows meanwhile
            for operator in self.model.subgraphs[index].operators or ():
                found += [i for i in called_graphs(operator).values() if i not in found]
        return found

    def _code(self, name: str, version: int = 1) -> int:
        code = getattr(self._schema.BuiltinOperator, name)
        for i, old in enumerate(self.model.operatorCodes):
            found = self._tools.get_builtin_code_from_operator_code(old)
            if (found, old.version) == (code, version):
                return i
        new = self._schema.OperatorCodeT()
        new.builtinCode, new.deprecatedBuiltinCode, new.version = code, min(code, 127), version
        self.model.operatorCodes.append(new)
        return len(self.model.operatorCodes) - 1

    def replace_op(
        self, operator: Any, name: str, version: int = 1, keep_options: bool = False
    ) -> None:
        """Make another builtin op of an operator, with the same inputs and outputs."""
        operator.opcodeIndex = self._code(name, version)
        if not keep_options:
            operator.builtinOptions, operator.builtinOptionsType = None, 0

    def new_operator(
        self, name: str, inputs: Sequence[int], outputs: Sequence[int], like: Any = None
    ) -> Any:
        """A new builtin operator, with the options of `like` or without, in no graph yet."""
        operator = self._schema.OperatorT()
        if like is not None:
            operator.builtinOptions = like.builtinOptions
            operator.builtinOptionsType = like.builtinOptionsType
        operator.opcodeIndex = self._code(name)
        operator.inputs, operator.outputs = np.array(inputs, "int32"), np.array(outputs, "int32")
        return operator

    def reshape(self, graph: Any, source: int, destination: int) -> Any:
        """A RESHAPE from one tensor to another."""
        shape = self.integers(graph, graph.tensors[destination].shape)
        return self.new_operator("RESHAPE", [source, shape], [destination])

    def new_tensor(
        self, graph: Any, like: Any, shape: Sequence[int] | None = None, dtype: str | None = None
    ) -> int:
        """Add a tensor with the shape and type of `like`, except for those given: its number."""
        tensor = self._schema.TensorT()
        tensor.shape = like.shape if shape is None else list(shape)
        tensor.type = like.type if dtype is None else getattr(self._schema.TensorType, dtype)
        tensor.buffer, tensor.name = 0, f"new {len(graph.tensors)}".encode()
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def integers(self, graph: Any, values: Any) -> int:
        """Add a constant that holds a list of int32: its number."""
        return self._constant(graph, np.array(values, "int32"), "INT32")

    def floats(self, graph: Any, values: np.ndarray) -> int:
        """Add a constant that holds an array of float32: its number."""
        return self._constant(graph, values.astype("float32"), "FLOAT32")

    def new_buffer(self, values: np.ndarray) -> int:
        """Add a buffer that holds an array: its number."""
        buffer = self._schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), "uint8")
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1

    def _constant(self, graph: Any, values: np.ndarray, dtype: str) -> int:
        made = self.new_tensor(graph, graph.tensors[0], values.shape, dtype)
        graph.tensors[made].buffer = self.new_buffer(values)
        return made

    @property
    def tensor_types(self) -> Any:
        """The enumeration of the types of tensors."""
        return self._schema.TensorType

    def type(self, graph: Any, index: int) -> str:
        """The type of a tensor, such as `"INT32"`."""
        return self._tools.type_to_name(graph.tensors[index].type)

    def values(self, graph: Any, index: int) -> np.ndarray | None:
        """The array that a constant of float32, int32 or bool holds; `None` for other tensors."""
        kind = self.type(graph, index).lower()
        if index < 0 or kind not in ("float32", "int32", "bool"):
            return None
        tensor = graph.tensors[index]
        found = self.read(tensor, kind)
        shape = () if tensor.shape is None else tensor.shape
        return None if found is None else found.reshape(shape)

    def constant(self, graph: Any, index: int) -> np.ndarray:
        """The array that a constant holds. Raise ValueError for other tensors."""
        found = self.values(graph, index)
        if found is None:
            raise ValueError(f"Tensor {index} is no constant of float32, int32 or bool.")
        return found

    def read(self, tensor: Any, dtype: str) -> np.ndarray | None:
        """The numbers of a constant in one row; `None` for another tensor."""
        data = self.model.buffers[tensor.buffer].data
        return np.frombuffer(bytes(data), dtype) if self.is_constant(tensor) else None

    def is_constant(self, tensor: Any) -> bool:
        """Whether the file holds the numbers of a tensor."""
        data = self.model.buffers[tensor.buffer].data
        return data is not None and len(data) > 0

    def share_constants(self) -> None:
        """Keep equal constants once. A quantiser copies a table for each of its users."""
        first: dict[bytes, int] = {}
        number_of: dict[int, int] = {}
        for number, buffer in enumerate(self.model.buffers):
            if buffer.data is not None and len(buffer.data) > 0:
                digest = hashlib.sha256(buffer.data).digest()
                number_of[number] = first.setdefault(digest, number)
                if number_of[number] != number:
                    buffer.data = None
        users = [tensor for graph in self.model.subgraphs for tensor in graph.tensors or ()]
        for user in [*users, *(self.model.metadata or ())]:
            user.buffer = number_of.get(user.buffer, user.buffer)

    def number_tensors(self) -> None:
        """Give the tensors numbers for names. Names are a tenth of a small file."""
        for graph in self.model.subgraphs:
            for i, tensor in enumerate(graph.tensors):
                tensor.name = str(i).encode()

    def put_first(self, signature: str) -> None:
        """Exchange the first graph with the graph of a signature, with all references to them."""
        graphs, index = self.model.subgraphs, self.signatures[signature]
        graphs[0], graphs[index] = graphs[index], graphs[0]

        def new(i: int) -> int:
            return {0: index, index: 0}.get(i, i)

        for definition in self.model.signatureDefs:
            definition.subgraphIndex = new(definition.subgraphIndex)
        self.signatures = {name: new(i) for name, i in self.signatures.items()}
        for _, _, operator, _ in self.operators():
            for name, called in called_graphs(operator).items():
                setattr(operator.builtinOptions, name, new(called))

    def pack(self) -> bytes:
        """The bytes of the model as it is now."""
        return bytes(self._tools.convert_object_to_bytearray(self.model))


def called_graphs(operator: Any) -> dict[str, int]:
    """Option -> number of the graph that an operator runs by it, such as the body of a loop."""
    options = vars(operator.builtinOptions or object).items()
    return {name: index for name, index in options if name.endswith("SubgraphIndex")}


def _schema_and_tools() -> tuple[Any, Any]:
    try:
        from ai_edge_litert import schema_py_generated
        from ai_edge_litert.tools import flatbuffer_utils
    except ImportError as error:
        raise ImportError(
            "TFLite files are read with LiteRT: pip install ai-edge-litert"
        ) from error
    return schema_py_generated, flatbuffer_utils
