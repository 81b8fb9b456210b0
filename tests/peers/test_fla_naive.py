"""Sums that fade against the plain PyTorch forms of flash-linear-attention (fla-core).

Each form is a file that needs PyTorch and einops alone. It is loaded by its path, because the
package itself needs Triton.
"""

import importlib.util
import pathlib

import numpy as np
import pytest
from support import assert_close

from keras_cosattn import RetentionAttention
from keras_cosattn.ops import decayed_attention

pytestmark = pytest.mark.peers
B, T, H, D, E = 2, 70, 3, 8, 5  # a chunk of 64 steps, and more


def naive(name):
    found = importlib.util.find_spec("fla")
    (folder,) = found.submodule_search_locations
    file = pathlib.Path(folder, "ops", name, "naive.py")
    spec = importlib.util.spec_from_file_location(f"fla_naive_{name}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def steps(rng):
    """Queries, unit keys, values and gates of steps, `(b, t, h, ..)`."""
    q, k = rng.normal(size=(2, B, T, H, D))
    made = {
        "q": q,
        "k": k / np.linalg.norm(k, axis=-1, keepdims=True),
        "v": rng.normal(size=(B, T, H, E)),
        "g": -rng.random((B, T, H)),
        "gk": -rng.random((B, T, H, D)),
        "beta": 2 * rng.random((B, T, H)),
    }
    return {name: x.astype("float32") for name, x in made.items()}


def theirs(function, steps, *names, heads_first=False, **arguments):
    """Their output `(b, t, h, e)` and state. `names` are the steps by position."""
    import torch

    tensors = [torch.from_numpy(steps[name]) for name in names]
    if heads_first:
        tensors = [x.transpose(1, 2) for x in tensors]
    out, state = function(*tensors, output_final_state=True, **arguments)
    return (out.transpose(1, 2) if heads_first else out).numpy(), state.numpy()


def ours(steps, scale=D**-0.5, **gates):
    state = {"sums": np.zeros((B, H, D, E), "float32")}
    q, k, v = (steps[name] for name in "qkv")
    out, state = decayed_attention({"q": scale * q, "k": k, "v": v, **gates}, state)
    return np.asarray(out), np.asarray(state["sums"])


def check(found, expected):
    for mine, their in zip(found, expected, strict=True):
        assert_close(mine, their, 1e-5)


def test_one_decay_for_each_head(steps):
    function = naive("simple_gla").naive_recurrent_simple_gla
    check(ours(steps, log_decay=steps["g"][..., None]), theirs(function, steps, *"qkvg"))


def test_one_decay_for_each_channel(steps):
    function = naive("gla").naive_recurrent_gla
    check(ours(steps, log_decay=steps["gk"]), theirs(function, steps, "q", "k", "v", "gk"))


def test_the_delta_rule(steps):
    function = naive("delta_rule").delta_rule_recurrence
    expected = theirs(function, steps, "q", "k", "v", "beta", heads_first=True)
    check(ours(steps, beta=steps["beta"]), expected)


def test_the_gated_delta_rule(steps):
    function = naive("gated_delta_rule").naive_recurrent_gated_delta_rule
    expected = theirs(function, steps, "q", "k", "v", "beta", "g")
    check(ours(steps, log_decay=steps["g"][..., None], beta=steps["beta"]), expected)


def test_the_delta_rule_with_a_decay_for_each_channel(steps):
    function = naive("kda").naive_recurrent_kda
    expected = theirs(function, steps, "q", "k", "v", "gk", "beta")
    check(ours(steps, log_decay=steps["gk"], beta=steps["beta"]), expected)


def test_retention(steps):
    import torch

    q, k, v = (torch.from_numpy(steps[name]).transpose(1, 2) for name in "qkv")
    expected = naive("retention").naive_retention(q, k, v).transpose(1, 2).numpy()
    rates = RetentionAttention(H, D)._rates()
    one = np.ones((1, T, 1, 1), "float32")
    state = {"sums": np.zeros((B, H, D, E), "float32")}
    made = {"q": D**-0.5 * steps["q"], "k": steps["k"], "v": steps["v"], "log_decay": one}
    out, _ = decayed_attention(made, state, rates=lambda: rates)
    assert_close(out, expected, 1e-5)
