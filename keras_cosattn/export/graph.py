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
    graph.
    """

    def __init__(self, content):
        from ai_edge_litert import schema_py_generated as schema

        self._schema = schema
        self.content = content
        self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
        self.signatures = {
            signature.signatureKey.decode(): signature.subgraphIndex
            for signature in self.model.signatureDefs or ()
        }
        self._names = {
            code: name
            for name, code in vars(schema.BuiltinOperator).items()
            if not name.startswith("_")
        }

    def op_name(self, operator):
        """`"FULLY_CONNECTED"`, or for a custom op `"CUSTOM name"`."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        name = self._names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        return f"CUSTOM {code.customCode.decode()}" if name == "CUSTOM" else name

    def operators(self):
        """Yields (name, version, operator, graph) for every one."""
        for graph in self.model.subgraphs:
            for operator in graph.operators or ():
                version = self.model.operatorCodes[operator.opcodeIndex].version
                yield self.op_name(operator), version, operator, graph

    def ops(self):
        """Name -> `[largest version, how often]`, by name."""
        versions, counts = {}, collections.Counter()
        for name, version, _, _ in self.operators():
            versions[name] = max(version, versions.get(name, 0))
            counts[name] += 1
        return {name: [versions[name], counts[name]] for name in sorted(versions)}

    def sort_ends(self, signature, inputs, outputs):
        """Put its inputs and outputs in the order of two lists of their names."""
        definition = self._definition(signature)
        graph = self.model.subgraphs[definition.subgraphIndex]
        sides = (definition.inputs, graph.inputs), (definition.outputs, graph.outputs)
        return tuple(
            [{m.tensorIndex: m.name.decode() for m in maps}[i] for i in order]
            for maps, order in sides
        )

    def replace_op(self, operator, name):
        """Make another builtin op of the same inputs and outputs of an operator."""
        operator.opcodeIndex = self._code(name)
        operator.builtinOptions, operator.builtinOptionsType = None, 0

    def through_float(self, operator, graph):
        """Let an operator on integers compute in float32: CAST, the operator, CAST."""
        place = next(i for i, other in enumerate(graph.operators) if other is operator)
        takes, gives = operator.inputs, operator.outputs
        operator.inputs = np.array([self._float_like(graph, i) for i in takes], "int32")
        operator.outputs = np.array([self._float_like(graph, i) for i in gives], "int32")
        graph.operators[place : place + 1] = [
            *map(self._cast, takes, operator.inputs),
            operator,
            *map(self._cast, operator.outputs, gives),
        ]

    def types(self, operator, graph):
        """The types of its inputs, such as `{"INT32"}`."""
        names = {
            number: name
            for name, number in vars(self._schema.TensorType).items()
            if not name.startswith("_")
        }
    def _definition(self, signature):
        return next(d for d in self.model.signatureDefs if d.signatureKey.decode() == signature)

        return {names[graph.tensors[i].type] for i in operator.inputs}

    def _code(self, name):
        code = getattr(self._schema.BuiltinOperator, name)
        new = self._schema.OperatorCodeT()
        new.builtinCode, new.deprecatedBuiltinCode, new.version = code, min(code, 127), 1
        self.model.operatorCodes.append(new)
        return len(self.model.operatorCodes) - 1

    def _float_like(self, graph, index):
        """A new float32 tensor of the shape of another: its number."""
        tensor = self._schema.TensorT()
        tensor.shape, tensor.type = graph.tensors[index].shape, self._schema.TensorType.FLOAT32
        tensor.buffer, tensor.name = 0, f"float {len(graph.tensors)}".encode()
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def _cast(self, source, destination):
        operator = self._schema.OperatorT()
        operator.opcodeIndex = self._code("CAST")
        operator.inputs = np.array([source], "int32")
        operator.outputs = np.array([destination], "int32")
        return operator

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
        index, packed = self.signatures[signature], self.content
        if index:
            self._swap(index)
            packed = self.pack()
            self._swap(index)
        interpreter = interpreter_class()(model_content=packed, num_threads=1)
        places = {d["index"]: d for d in interpreter.get_input_details()}
        definition = self._definition(signature)
        for entry in definition.inputs or ():
            shape = shapes[entry.name.decode()]
            if tuple(places[entry.tensorIndex]["shape"]) != tuple(shape):
                interpreter.resize_tensor_input(entry.tensorIndex, shape)
        interpreter.allocate_tensors()
        delegated = [op for op in interpreter._get_ops_details() if op["op_name"] == "DELEGATE"]
        sizes = {
            d["index"]: math.prod(d["shape"]) * np.dtype(d["dtype"]).itemsize
            for d in interpreter.get_tensor_details()
        }
        return len(delegated), self._peak(self.model.subgraphs[index], sizes)

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
            for name, value in vars(operator.builtinOptions or object).items():
                if name.endswith("SubgraphIndex"):
                    setattr(operator.builtinOptions, name, new(value))
