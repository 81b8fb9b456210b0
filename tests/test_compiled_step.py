"""A stream compiles its step: seldom, for the weights that the model has, and changes no number."""

import copy
import pickle
import threading

import keras
import numpy as np
import pytest
from support import BACKEND, assert_close, traced, value_and_gradients
from variants import inputs

from keras_cosattn import (
    CausalConv1D,
    PositionEmbedding,
    RunningMean,
    SoftmaxAttention,
    Streaming,
    TransformerDecoder,
)

EXACT = 1e-5  # float32 sums in another order
CHANNELS = 6

where_it_compiles = pytest.mark.skipif(BACKEND == "torch", reason="PyTorch compiles nothing")


@keras.saving.register_keras_serializable("test")
class Counting(keras.layers.Layer):
    """Counts how often Python runs its call. A compiled call does not run Python."""

    calls = 0

    def call(self, x):
        self.calls += 1
        return x


def model_of(*layers):
    x = y = keras.Input((None, CHANNELS))
    for layer in layers:
        y = layer(y)
    return keras.Model(x, y, name="sensor")


def counted(**options):
    """A stream with a state, and its layer that counts from now on."""
    layer = Counting()
    stream = Streaming(model_of(layer, CausalConv1D(5, 3), RunningMean()), **options)
    layer.calls = 0
    return stream, layer


def read(stream, x, mask=None):
    return stream(x, stream.initial_state(len(x)), mask)[0]


@where_it_compiles
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.sample(2)
def test_a_few_traces_serve_all_lengths_and_batch_sizes(masked, rng):
    stream, layer = counted()
    batches = (3, 1, 4)
    data = [inputs(rng, b, t, CHANNELS) for b in batches for t in (1, 5, 2, 16, 33, 63, 3, 21)]
    expected = [stream.model(x) for x in data]
    layer.calls = 0
    for x, y in zip(data, expected, strict=True):
        assert_close(read(stream, x, np.ones(x.shape[:2], bool) if masked else None), y, EXACT)
    # TensorFlow traces one step and any number; JAX 1, 4 and 16 steps for each batch size.
    assert layer.calls == (2 if BACKEND == "tensorflow" else 3 * len(batches))


def test_python_runs_in_each_call_where_that_is_asked_for(rng):
    stream, layer = counted(run_eagerly=True)
    for _ in range(3):
        read(stream, inputs(rng, 2, 5, CHANNELS))
    assert stream.run_eagerly
    assert layer.calls == 3


def test_a_compiled_stream_has_the_numbers_of_an_eager_one(rng):
    model = model_of(PositionEmbedding(40), CausalConv1D(4, 3), RunningMean())
    streams = Streaming(model), Streaming(model, run_eagerly=True)
    x, mask = inputs(rng, 2, 30, CHANNELS), rng.random((2, 30)) < 0.7
    states = [stream.initial_state(2) for stream in streams]
    for part in np.split(np.arange(30), [1, 8]):
        for given in (None, mask[:, part]):
            results = [
                stream(x[:, part], state, given)
                for stream, state in zip(streams, states, strict=True)
            ]
            kept = np.s_[:] if given is None else given
            assert_close(*(np.asarray(y)[kept] for y, _ in results), EXACT)
        states = [state for _, state in results]
    for name, value in states[1].items():
        assert_close(states[0][name], value, EXACT)


def test_weights_that_change_after_the_first_call_are_used(rng):
    model = model_of(CausalConv1D(5, 3), RunningMean())
    stream, x = Streaming(model), inputs(rng, 4, 7, CHANNELS)
    before = read(stream, x)
    model.set_weights([2 * w for w in model.get_weights()])
    doubled = read(stream, x)
    assert_close(doubled, 2 * np.asarray(before), EXACT)
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(x, inputs(rng, 4, 7, 5), verbose=0)
    assert np.any(np.asarray(model(x)) != np.asarray(doubled))
    assert_close(read(stream, x), model(x), EXACT)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.quantize("int8"),
        lambda model: (
            model.layers[-1].enable_lora(2),
            model.layers[-1].lora_kernel_b.assign(np.ones((2, 3))),
        ),
    ],
    ids=["int8", "lora"],
)
def test_variables_that_change_after_the_first_call_are_used(change, rng):
    model = model_of(RunningMean(), keras.layers.Dense(3))
    stream, x = Streaming(model), inputs(rng, 2, 7, CHANNELS)
    before = np.asarray(read(stream, x))
    change(model)
    after = np.asarray(model(x))
    assert np.abs(after - before).max() > 1e-4
    assert_close(read(stream, x), after, EXACT)


def test_a_variable_that_a_call_changes_is_changed(rng):
    class Seen(keras.layers.Layer):
        def build(self, shape):
            self.seen = self.add_weight(shape=(), dtype="int32", trainable=False)

        def call(self, x):
            self.seen.assign(self.seen + 1)
            return x

    layer = Seen()
    stream, state = Streaming(model_of(layer)), {}
    layer.seen.assign(0)
    for _ in range(3):
        _, state = stream(inputs(rng, 2, 1, CHANNELS), state)
    assert int(layer.seen.value) == 3


@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.sample(2)
def test_a_full_stream_raises_the_same_error(run_eagerly, rng):
    block = TransformerDecoder(8, attention=SoftmaxAttention(2, 3, max_length=20))
    stream = Streaming(model_of(block), run_eagerly=run_eagerly)
    x, message = inputs(rng, 2, 27, CHANNELS), r"stream of 'sensor' is full: at most 20 steps"
    with pytest.raises(ValueError, match=f"{message}. Received: 27 steps"):
        read(stream, x)
    _, state = stream(x[:, :20], stream.initial_state(2))
    with pytest.raises(ValueError, match=f"{message}. Received: 21 steps"):
        stream(x[:, :1], state)


def test_a_wrong_input_has_the_error_of_the_layer(rng):
    stream = Streaming(model_of(keras.layers.Dense(3)))
    with pytest.raises(
        ValueError, match=r"expected shape=\(None, None, 6\), found shape=\(2, 5, 4"
    ):
        read(stream, inputs(rng, 2, 5, 4))
    x = inputs(rng, 2, 5, CHANNELS)
    assert_close(read(stream, x), stream.model(x), EXACT)


@where_it_compiles
def test_a_step_that_cannot_be_compiled_runs_after_one_warning(rng):
    class ReadsNumbers(keras.layers.Layer):
        def call(self, x):
            return x * np.sign(np.abs(keras.ops.convert_to_numpy(x)).max())

        def compute_output_shape(self, shape):
            return shape

    model, x = model_of(ReadsNumbers(), RunningMean()), inputs(rng, 2, 5, CHANNELS)
    expected = model(x)
    with pytest.warns(RuntimeWarning) as warned:  # noqa: PT031, JAX warns in the constructor
        stream = Streaming(model)
        found = [read(stream, x) for _ in range(2)]
    for y in found:
        assert_close(y, expected, EXACT)
    (message,) = (str(each.message) for each in warned if each.category is RuntimeWarning)
    assert "The stream of 'sensor' runs without compilation" in message
    assert "with `run_eagerly=True`" in message


@where_it_compiles
def test_inside_a_trace_a_call_is_a_part_of_it(rng):
    stream, layer = counted()
    call = traced(stream)
    for t in (5, 9):
        x = inputs(rng, 2, t, CHANNELS)
        y, _ = call(x, stream.initial_state(2))
        traces = layer.calls
        assert_close(y, stream.model(x), EXACT)
        layer.calls = traces
    assert layer.calls == 2  # neither a graph of any length nor pieces of 1 and 4 steps


def test_a_symbolic_call_stays_symbolic():
    stream = Streaming(model_of(keras.layers.Dense(3)))
    y, state = stream(keras.Input((None, CHANNELS)), {})
    assert isinstance(y, keras.KerasTensor)
    assert (y.shape, state) == ((None, None, 3), {})


def test_a_stateless_scope_gives_the_values(rng):
    stream, x = Streaming(model_of(keras.layers.Dense(3))), inputs(rng, 2, 5, CHANNELS)
    read(stream, x)
    values = [(v, 2 * keras.ops.convert_to_tensor(v)) for v in stream.model.variables]
    with keras.StatelessScope(values):
        found = read(stream, x)
    assert_close(found, 2 * np.asarray(stream.model(x)), EXACT)


def test_gradients_pass_through_a_call(rng):
    model, x = model_of(CausalConv1D(3, 2), RunningMean()), inputs(rng, 2, 5, CHANNELS)
    stream = Streaming(model, run_eagerly=BACKEND == "torch")
    g = inputs(rng, 2, 5, 3)
    y, (gradient,) = value_and_gradients(lambda x: read(stream, x), g, x)
    expected, (expected_gradient,) = value_and_gradients(model, g, x)
    assert_close(y, expected, EXACT)
    assert_close(gradient, expected_gradient, EXACT)


@pytest.mark.skipif(BACKEND != "torch", reason="gradients are recorded by themselves on PyTorch")
@pytest.mark.parametrize("run_eagerly", [False, True])
def test_a_stream_on_pytorch_does_not_hold_its_past(run_eagerly, rng):
    stream, _ = counted(run_eagerly=run_eagerly)
    _, state = stream(inputs(rng, 2, 5, CHANNELS), stream.initial_state(2))
    assert any(value.requires_grad for value in state.values()) == run_eagerly


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_used_stream_can_be_copied(copied, rng):
    stream, _ = counted()
    x = inputs(rng, 2, 5, CHANNELS)
    expected = read(stream, x)
    other = copied(stream)
    assert_close(read(other, x), expected, EXACT)


def test_threads_share_what_is_compiled(rng):
    stream, layer = counted()
    data = [inputs(rng, 1, 4, CHANNELS) for _ in range(4)]
    expected, found = [stream.model(x) for x in data], {}
    layer.calls = 0

    def run(i):
        found[i] = read(stream, data[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(data))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, y in enumerate(expected):
        assert_close(found[i], y, EXACT)
    assert layer.calls == (4 if BACKEND == "torch" else 1)


def test_dicts_and_lists_go_in_and_out(rng):
    class Pairs(keras.Model):
        def __init__(self):
            super().__init__()
            self.mean, self.dense = RunningMean(), keras.layers.Dense(3)

        def call(self, x):
            first, second = x["pair"]
            return {"mean": self.mean(first), "both": [self.dense(second), x["one"]]}

    model = Pairs()
    shapes = [(2, 9, CHANNELS), (2, 9, 4), (2, 9)]
    first, second, one = (inputs(rng, *shape) for shape in shapes)
    x = {"pair": (first, second), "one": one}
    expected = model(x)
    stream = Streaming(model, x)
    state, parts = stream.initial_state(2), []
    for start, end in ((0, 7), (7, 8), (8, 9)):
        piece = keras.tree.map_structure(lambda a, s=start, e=end: a[:, s:e], x)
        y, state = stream(piece, state)
        parts.append(y)
    assert parts[0].keys() == expected.keys()
    found = keras.tree.map_structure(lambda *ys: np.concatenate(ys, axis=1), *parts)
    keras.tree.map_structure(lambda a, b: assert_close(a, b, EXACT), found, expected)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has tensors of strings")
def test_strings_are_read(recwarn):
    words = keras.Input((None,), dtype="string")
    ids = keras.layers.StringLookup(vocabulary=["sit", "walk"])(words)
    model = keras.Model(words, RunningMean()(keras.layers.Embedding(3, 4)(ids)))
    sample = np.array([["sit", "walk", "walk", "run"]] * 2, object)
    stream = Streaming(model, sample)
    assert_close(read(stream, sample), model(keras.ops.convert_to_tensor(sample)), EXACT)
    assert not [each for each in recwarn if each.category is RuntimeWarning]
