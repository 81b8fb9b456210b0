"""What a TFLite file holds, read from its bytes, and the means to write it otherwise."""

import collections

import numpy as np


class Graph:
    """The graphs of a TFLite model, one for each signature, and others that these call.

    Args:
        content: bytes of the model.

    Attributes: `model`, a `ModelT` of the public schema, and `signatures`, name -> number of the
    graph. A file without signatures gets one, `main`, for its first graph.

    Raises ValueError if it is not the bytes of a model.
    """

    def __init__(self, content):
        from ai_edge_litert import schema_py_generated as schema

        self._schema = schema
        self.content = content
        try:
            if content[4:8] != b"TFL3":
                raise ValueError("the bytes that identify the format are missing")
            self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
            self.model.signatureDefs = self.model.signatureDefs or [self._main()]
            self.signatures = {
                signature.signatureKey.decode(): signature.subgraphIndex
                for signature in self.model.signatureDefs
            }
        except Exception as error:  # damaged files raise many kinds
            raise ValueError(f"This is no TFLite model, or it is damaged: {error}") from error
        self._names = _names(schema.BuiltinOperator)

    def op_name(self, operator):
        """`"FULLY_CONNECTED"`, or for a custom op `"CUSTOM name"`."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        name = self._names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        return f"CUSTOM {code.customCode.decode()}" if name == "CUSTOM" else name

    def operators(self, signature=None):
        """Yields (name, version, operator, graph) for every one, or those that a signature runs."""
        graphs = self.model.subgraphs
        for graph in graphs if signature is None else [graphs[i] for i in self._run_by(signature)]:
            for operator in graph.operators or ():
                version = self.model.operatorCodes[operator.opcodeIndex].version
                yield self.op_name(operator), version, operator, graph

    def ops(self, signature=None):
        """Name -> `[largest version, how often]`, by name; in the whole file, or a signature."""
        versions, counts = {}, collections.Counter()
        for name, version, _, _ in self.operators(signature):
            versions[name] = max(version, versions.get(name, 0))
            counts[name] += 1
        return {name: [versions[name], counts[name]] for name in sorted(versions)}

    def specs(self, signature):
        """Inputs and outputs, each name -> (shape with None where any size will do, dtype)."""
        definition = self.definition(signature)
        tensors = self.model.subgraphs[definition.subgraphIndex].tensors
        return tuple(
            {m.name.decode(): self._spec(tensors[m.tensorIndex]) for m in side or ()}
            for side in (definition.inputs, definition.outputs)
        )

    @property
    def constant_bytes(self):
        """Weights, tables and other constants, those that signatures share counted once."""
        return sum(len(buffer.data) for buffer in self.model.buffers if buffer.data is not None)

    def sort_ends(self, signature, inputs, outputs):
        """Put its inputs and outputs in the order of two lists of their names."""
        definition = self.definition(signature)
        graph = self.model.subgraphs[definition.subgraphIndex]
        for side, names in (("inputs", inputs), ("outputs", outputs)):
            places = {m.name.decode(): m.tensorIndex for m in getattr(definition, side) or ()}
            setattr(graph, side, np.array([places[name] for name in names], "int32"))

    def definition(self, signature):
        return next(d for d in self.model.signatureDefs if d.signatureKey.decode() == signature)

    def _main(self):
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

    def _spec(self, tensor):
        shape = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
        sizes = tuple(None if n < 0 else int(n) for n in (() if shape is None else shape))
        return sizes, _names(self._schema.TensorType)[tensor.type].lower()

    def _run_by(self, signature):
        """The numbers of a signature's graph and of those that it calls."""
        found = [self.signatures[signature]]
        for index in found:  # which grows meanwhile
            for operator in self.model.subgraphs[index].operators or ():
                found += [i for i in calls(operator).values() if i not in found]
        return found

    def _code(self, name, version=1):
        code = getattr(self._schema.BuiltinOperator, name)
        for i, old in enumerate(self.model.operatorCodes):
            if (max(old.builtinCode, old.deprecatedBuiltinCode), old.version) == (code, version):
                return i
        new = self._schema.OperatorCodeT()
        new.builtinCode, new.deprecatedBuiltinCode, new.version = code, min(code, 127), version
        self.model.operatorCodes.append(new)
        return len(self.model.operatorCodes) - 1

    def replace_op(self, operator, name, version=1, keep_options=False):
        """Make another builtin op of the same inputs and outputs of an operator."""
        operator.opcodeIndex = self._code(name, version)
        if not keep_options:
            operator.builtinOptions, operator.builtinOptionsType = None, 0

    def new_operator(self, name, inputs, outputs, like=None):
        """A builtin operator, to be put into a graph, with the options of `like` or without."""
        operator = self._schema.OperatorT()
        if like is not None:
            operator.builtinOptions = like.builtinOptions
            operator.builtinOptionsType = like.builtinOptionsType
        operator.opcodeIndex = self._code(name)
        operator.inputs, operator.outputs = np.array(inputs, "int32"), np.array(outputs, "int32")
        return operator

    def reshape(self, graph, source, destination):
        """A RESHAPE from one tensor to another."""
        shape = self.integers(graph, graph.tensors[destination].shape)
        return self.new_operator("RESHAPE", [source, shape], [destination])

    def new_tensor(self, graph, like, shape=None, dtype=None):
        """A new tensor of the shape and type of another, but for those given: its number."""
        tensor = self._schema.TensorT()
        tensor.shape = like.shape if shape is None else list(shape)
        tensor.type = like.type if dtype is None else getattr(self._schema.TensorType, dtype)
        tensor.buffer, tensor.name = 0, f"new {len(graph.tensors)}".encode()
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def integers(self, graph, values):
        """A new tensor that holds a list of int32: its number."""
        return self._constant(graph, np.array(values, "int32"), "INT32")

    def floats(self, graph, values):
        """A new tensor that holds an array of float32: its number."""
        return self._constant(graph, values.astype("float32"), "FLOAT32")

    def new_buffer(self, values):
        """The number of a new buffer that holds an array."""
        buffer = self._schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), "uint8")
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1

    def _constant(self, graph, values, dtype):
        made = self.new_tensor(graph, graph.tensors[0], values.shape, dtype)
        graph.tensors[made].buffer = self.new_buffer(values)
        return made

    @property
    def tensor_types(self):
        """The enumeration of the types of tensors."""
        return self._schema.TensorType

    def type(self, graph, index):
        """The type of a tensor, such as `"INT32"`."""
        return _names(self._schema.TensorType)[graph.tensors[index].type]

    def values(self, graph, index):
        """The array that a constant of float32, int32 or bool holds; None for other tensors."""
        kind = self.type(graph, index).lower()
        if index < 0 or kind not in ("float32", "int32", "bool"):
            return None
        tensor = graph.tensors[index]
        found = self.read(tensor, kind)
        return (
            None if found is None else found.reshape(() if tensor.shape is None else tensor.shape)
        )

    def read(self, tensor, dtype):
        """The numbers of a constant in one row; None for another tensor."""
        data = self.model.buffers[tensor.buffer].data
        return np.frombuffer(bytes(data), dtype) if self.is_constant(tensor) else None

    def is_constant(self, tensor):
        """Whether the file holds its numbers."""
        data = self.model.buffers[tensor.buffer].data
        return data is not None and len(data) > 0

    def forget_names(self):
        """Number the tensors in place of their names, which are a tenth of a small file."""
        for graph in self.model.subgraphs:
            for i, tensor in enumerate(graph.tensors):
                tensor.name = str(i).encode()

    def put_first(self, signature):
        """Exchange the first graph with that of a signature, wherever they are spoken of."""
        graphs, index = self.model.subgraphs, self.signatures[signature]
        graphs[0], graphs[index] = graphs[index], graphs[0]

        def new(i):
            return {0: index, index: 0}.get(i, i)

        for definition in self.model.signatureDefs:
            definition.subgraphIndex = new(definition.subgraphIndex)
        self.signatures = {name: new(i) for name, i in self.signatures.items()}
        for _, _, operator, _ in self.operators():
            for name, called in calls(operator).items():
                setattr(operator.builtinOptions, name, new(called))

    def pack(self):
        """The bytes of the model as it is now."""
        import flatbuffers

        builder = flatbuffers.Builder(len(self.content))
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _names(enum):
    """Number -> name of an enumeration of the schema."""
    return {number: name for name, number in vars(enum).items() if not name.startswith("_")}


def calls(operator):
    """Option -> number of the graph that an operator runs by it, such as a loop its body."""
    options = vars(operator.builtinOptions or object).items()
    return {name: index for name, index in options if name.endswith("SubgraphIndex")}
