"""What a TFLite file holds, read from its bytes: ops, versions, tensors, and how they live."""

import collections
import math

import numpy as np

from keras_cosattn.export.runners import interpreter_class


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
        definition = self._definition(signature)
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
        definition = self._definition(signature)
        graph = self.model.subgraphs[definition.subgraphIndex]
        for side, names in (("inputs", inputs), ("outputs", outputs)):
            places = {m.name.decode(): m.tensorIndex for m in getattr(definition, side) or ()}
            setattr(graph, side, np.array([places[name] for name in names], "int32"))

    def replace_op(self, operator, name, version=1):
        """Make another builtin op of the same inputs and outputs of an operator."""
        operator.opcodeIndex = self._code(name, version)
        operator.builtinOptions, operator.builtinOptionsType = None, 0

    def narrow(self):
        """Hold in 32 bits what is held in 64, unless a signature takes or gives that or a constant
        does not fit.
        """
        types, graphs = self._schema.TensorType, self.model.subgraphs
        wide = [t for graph in graphs for t in graph.tensors if t.type == types.INT64]
        ends = [g.tensors[i] for g in graphs for i in (*g.inputs, *g.outputs)]
        constants = {id(t): self._values(t, "int64") for t in wide}
        fit = all(np.array_equal(x, x.astype("int32")) for x in constants.values())
        if not fit or any(tensor.type == types.INT64 for tensor in ends):
            return
        for tensor in wide:
            tensor.type = types.INT32
            if len(constants[id(tensor)]):
                tensor.buffer = self._buffer(constants[id(tensor)].astype("int32"))
        for *_, operator, _ in self.operators():
            for option in ("outputType", "outType", "inDataType", "outDataType"):
                if getattr(operator.builtinOptions, option, None) == types.INT64:
                    setattr(operator.builtinOptions, option, types.INT32)

    def spread(self, operator, graph):
        """Make BROADCAST_TO of a TILE that repeats axes of size one; others stay as they are."""
        old, new = (graph.tensors[side[0]].shape for side in (operator.inputs, operator.outputs))
        if all(m in (1, n) for m, n in zip(old, new, strict=True)):
            shape = self._constant(graph, np.array(new, "int32"))
            operator.inputs = np.array([operator.inputs[0], shape], "int32")
            self.replace_op(operator, "BROADCAST_TO", version=2)

    def any_as_all(self, operator, graph):
        """Make `not all(not x)` of REDUCE_ANY."""
        operator.opcodeIndex = self._code("REDUCE_ALL")
        self._convert(operator, graph, [0], "LOGICAL_NOT", "BOOL")

    def through_float(self, operator, graph, places):
        """Let an operator on integers or booleans compute in float32: CAST, the operator, CAST.

        Args:
            operator: one on other types stays as it is.
            places: of the inputs that it computes with.
        """
        names = _names(self._schema.TensorType)
        types = {names[graph.tensors[operator.inputs[i]].type] for i in places}
        if types <= {"INT32", "BOOL"}:
            self._convert(operator, graph, places, "CAST", "FLOAT32")

    def _definition(self, signature):
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
                found += [i for i in _calls(operator).values() if i not in found]
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

    def _convert(self, operator, graph, places, name, dtype):
        """Put an op of one input before some inputs of an operator and behind all its outputs.

        Args:
            places: of the inputs.
            name, dtype: the op's, and that of the tensors between it and the operator.
        """
        place = next(i for i, other in enumerate(graph.operators) if other is operator)
        takes, gives = np.array(operator.inputs)[places], np.array(operator.outputs)
        new = [self._like(graph, i, dtype) for i in (*takes, *gives)]
        operator.inputs = np.array(operator.inputs, "int32")
        operator.inputs[places] = new[: len(places)]
        operator.outputs = np.array(new[len(places) :], "int32")
        graph.operators[place : place + 1] = [
            *(self._single(name, x, y) for x, y in zip(takes, new, strict=False)),
            operator,
            *(self._single(name, x, y) for x, y in zip(operator.outputs, gives, strict=True)),
        ]

    def _like(self, graph, index, dtype):
        """A new tensor of the shape of another: its number."""
        return self._tensor(graph, graph.tensors[index].shape, dtype)

    def _constant(self, graph, values):
        """A new tensor with int32 `values`: its number."""
        return self._tensor(graph, values.shape, "INT32", self._buffer(values))

    def _values(self, tensor, dtype):
        """Of a constant, in one row; none of another tensor."""
        data = self.model.buffers[tensor.buffer].data
        return np.frombuffer(b"" if data is None else bytes(data), dtype)

    def _buffer(self, values):
        buffer = self._schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), "uint8")
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1

    def _tensor(self, graph, shape, dtype, buffer=0):
        tensor = self._schema.TensorT()
        tensor.shape, tensor.type = shape, getattr(self._schema.TensorType, dtype)
        tensor.buffer, tensor.name = buffer, f"new {len(graph.tensors)}".encode()
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def _single(self, name, source, destination):
        operator = self._schema.OperatorT()
        operator.opcodeIndex = self._code(name)
        operator.inputs = np.array([source], "int32")
        operator.outputs = np.array([destination], "int32")
        return operator

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
        dtype = dtype or _names(self._schema.TensorType)[like.type]
        return self._tensor(graph, like.shape if shape is None else list(shape), dtype)

    def integers(self, graph, values):
        """A new tensor that holds a list of int32: its number."""
        return self._constant(graph, np.array(values, "int32"))

    def floats(self, graph, values):
        """A new tensor that holds an array of float32: its number."""
        made = self._constant(graph, values.astype("float32"))
        graph.tensors[made].type = self._schema.TensorType.FLOAT32
        return made

    def type(self, graph, index):
        """The type of a tensor, such as `"INT32"`."""
        return _names(self._schema.TensorType)[graph.tensors[index].type]

    def values(self, graph, index):
        """The array that a constant of float32, int32 or bool holds; None for other tensors."""
        tensor, kind = graph.tensors[index], self.type(graph, index).lower()
        if index < 0 or kind not in ("float32", "int32", "bool") or not self.is_constant(tensor):
            return None
        data = bytes(self.model.buffers[tensor.buffer].data)
        return np.frombuffer(data, kind).reshape(() if tensor.shape is None else tensor.shape)

    def is_constant(self, tensor):
        """Whether the file holds its numbers."""
        data = self.model.buffers[tensor.buffer].data
        return data is not None and len(data) > 0

    def forget_names(self):
        """Number the tensors in place of their names, which are a tenth of a small file."""
        for graph in self.model.subgraphs:
            for i, tensor in enumerate(graph.tensors):
                tensor.name = str(i).encode()

    def pack(self):
        """The bytes of the model as it is now."""
        import flatbuffers

        builder = flatbuffers.Builder(len(self.content))
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def allocated(self, signature, shapes):
        """How a runtime lays out one signature at given sizes of its inputs.

        Args:
            signature: its name.
            shapes: input name -> shape.

        Returns:
            The number of parts that XNNPACK runs, and the largest number of bytes that live at
            once: constants all the time, an input, output or variable likewise, every other tensor
            from the op that makes it to the last that reads it.
        """
        interpreter = self._interpreter(signature, shapes)
        delegated = [op for op in interpreter._get_ops_details() if op["op_name"] == "DELEGATE"]
        graph = self.model.subgraphs[self.signatures[signature]]
        return len(delegated), self._peak(graph, _sizes(interpreter))

    def largest_tensors(self, signature, shapes, count=3):
        """`(bytes, shape, op)` of the largest that its ops compute, arguments as `allocated`."""
        interpreter = self._interpreter(signature, shapes)
        found = {d["index"]: tuple(map(int, d["shape"])) for d in interpreter.get_tensor_details()}
        sizes = _sizes(interpreter)
        computed = [
            (sizes[i], found[i], self.op_name(operator))
            for operator in self.model.subgraphs[self.signatures[signature]].operators or ()
            for i in operator.outputs
            if i in sizes
        ]
        return sorted(computed, reverse=True)[:count]

    def _interpreter(self, signature, shapes):
        """An interpreter whose first graph is that of a signature, after a run on ones.

        Where shapes are open, many tensors have no size before.
        """
        index, packed = self.signatures[signature], self.content
        if index:
            self._swap(index)
            packed = self.pack()
            self._swap(index)
        interpreter = interpreter_class()(model_content=packed, num_threads=1)
        places = {d["index"]: d for d in interpreter.get_input_details()}
        entries = self._definition(signature).inputs or ()
        for entry in entries:
            shape = shapes[entry.name.decode()]
            if tuple(places[entry.tensorIndex]["shape"]) != tuple(shape):
                interpreter.resize_tensor_input(entry.tensorIndex, shape)
        interpreter.allocate_tensors()
        for entry in entries:
            ones = np.ones(shapes[entry.name.decode()], places[entry.tensorIndex]["dtype"])
            interpreter.set_tensor(entry.tensorIndex, ones)
        interpreter.invoke()
        return interpreter

    def _peak(self, graph, sizes):
        always, spans, ends = 0, {}, {*graph.inputs, *graph.outputs}
        for i, tensor in enumerate(graph.tensors):
            buffer = self.model.buffers[tensor.buffer].data
            constant = buffer is not None and len(buffer)
            if constant or tensor.isVariable or i in ends:
                always += sizes.get(i, 0)
            else:
                spans[i] = None
        for step, operator in enumerate(graph.operators):
            for i in (*operator.inputs, *operator.outputs):
                if i in spans:
                    spans[i] = (spans[i] or [step, step])[0], step
        changes = np.zeros(len(graph.operators) + 1, "int64")
        for i, span in spans.items():
            if span is not None:
                changes[span[0]] += sizes.get(i, 0)
                changes[span[1] + 1] -= sizes.get(i, 0)
        return int(always + np.cumsum(changes).max(initial=0))

    def _swap(self, index):
        """Exchange the first graph with another, wherever they are spoken of."""
        graphs = self.model.subgraphs
        graphs[0], graphs[index] = graphs[index], graphs[0]

        def new(i):
            return {0: index, index: 0}.get(i, i)

        for definition in self.model.signatureDefs:
            definition.subgraphIndex = new(definition.subgraphIndex)
        for _, _, operator, _ in self.operators():
            for name, called in _calls(operator).items():
                setattr(operator.builtinOptions, name, new(called))


def _names(enum):
    """Number -> name of an enumeration of the schema."""
    return {number: name for name, number in vars(enum).items() if not name.startswith("_")}


def _calls(operator):
    """Option -> number of the graph that an operator runs by it, such as a loop its body."""
    options = vars(operator.builtinOptions or object).items()
    return {name: index for name, index in options if name.endswith("SubgraphIndex")}


def _sizes(interpreter):
    """Number of a tensor -> its bytes."""
    return {
        d["index"]: math.prod(d["shape"].tolist()) * np.dtype(d["dtype"]).itemsize
        for d in interpreter.get_tensor_details()
    }
