"""The signatures of a file: what each takes, what it computes, what it gives.

Sizes are dicts name -> (shape with None where any size will do, dtype). Each class is a function of
named tensors, for a `Plan`.
"""


class Serve:
    """The whole input."""

    def __init__(self, plan):
        self.plan = plan

    def takes(self):
        return self.plan.input_sizes(self.plan.length)

    def gives(self):
        return self.plan.output_sizes(self.takes())

    def __call__(self, inputs):
        return self.plan.call(inputs)


class ServeText(Serve):
    """As `Serve`, with a tokenizer before it."""

    def takes(self):
        return self.plan.text.spec

    def gives(self):
        return self.plan.output_sizes(super().takes())

    def __call__(self, inputs):
        return self.plan.call(self.plan.text.ids(inputs["text"]))


class Tokenize:
    """The tokenizer alone."""

    def __init__(self, plan):
        self.plan = plan

    def takes(self):
        return self.plan.text.spec

    def gives(self):
        return self.plan.input_sizes(None)

    def __call__(self, inputs):
        return self.plan.text.ids(inputs["text"])


class Piece:
    """The next steps of a stream: state in, state out.

    Args:
        plan: a `Plan`.
        length: how many; None is any number.
    """

    def __init__(self, plan, length):
        self.plan, self.length = plan, length

    def takes(self):
        return self.plan.input_sizes(self.length) | self.plan.state_sizes()

    def gives(self):
        sizes = self.plan.output_sizes(self.plan.input_sizes(self.length))
        return sizes | self.plan.state_sizes()

    def __call__(self, inputs):
        outputs, state = self.plan.go_on(inputs, {key: inputs[key] for key in self.plan.state_spec})
        return {**outputs, **state}


class Init:
    """The state before the first step."""

    def __init__(self, plan):
        self.plan = plan

    def takes(self):
        return {} if self.plan.batch_size else {"batch_size": ((), "int32")}

    def gives(self):
        return self.plan.state_sizes()

    def __call__(self, inputs=None):
        import tensorflow as tf

        batch = self.plan.batch_size or inputs["batch_size"]
        return {
            key: tf.zeros(tf.stack([batch, *shape]), dtype)
            for key, (shape, dtype) in self.plan.state_spec.items()
        }


class KeptPiece(Piece):
    """The next steps of a stream whose state stays in variables of the file."""

    def takes(self):
        return self.plan.input_sizes(self.length)

    def gives(self):
        return self.plan.output_sizes(self.takes())

    def __call__(self, inputs):
        variables = self.plan.variables
        state = {key: variable.value() for key, variable in variables.items()}
        outputs, state = self.plan.go_on(inputs, state)
        for key, value in state.items():
            variables[key].assign(value)
        return outputs


class Reset:
    """Begin the stream in the variables again."""

    def __init__(self, plan):
        self.plan = plan

    def takes(self):
        return {}

    def gives(self):
        return {"steps": ((), "int32")}

    def __call__(self):
        import tensorflow as tf

        for variable in self.plan.variables.values():
            variable.assign(tf.zeros_like(variable))
        return {"steps": tf.zeros((), "int32")}
