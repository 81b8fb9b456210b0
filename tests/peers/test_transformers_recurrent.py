"""Mamba-2 and gated DeltaNet against those of `transformers`, weights copied across."""

import numpy as np
import pytest
from support import assert_close

from keras_cosattn import DeltaRuleAttention, Mamba2Attention

pytestmark = pytest.mark.peers
STEPS, WIDTH, HEADS, KEY, VALUE, TAPS = 70, 12, 4, 5, 6, 4  # a chunk of 64 steps, and more


def array(tensor):
    return tensor.detach().numpy()


def fill(module, seed):
    """Random weights, also where the module begins with ones or a ramp."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        weight.data.normal_(std=0.5, generator=generator)
    return module.eval()


def heads(rows, count):
    """The kernel `(m, h, d)` of rows `(h d, m)` of a PyTorch weight."""
    return array(rows).T.reshape(rows.shape[1], count, -1)


def outputs(theirs, x):
    import torch

    with torch.no_grad():
        return theirs(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2_is_that_of_transformers(groups, rng):
    import torch
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        hidden_size=WIDTH, num_heads=HEADS, head_dim=VALUE, state_size=KEY, n_groups=groups,
        expand=HEADS * VALUE // WIDTH, conv_kernel=TAPS, chunk_size=16, num_hidden_layers=1,
        layer_norm_epsilon=1e-5,
    )  # fmt: skip
    theirs = fill(Mamba2Mixer(config, 0), 0)
    layer = Mamba2Attention(
        HEADS, KEY, value_dim=VALUE, num_groups=groups, conv_size=TAPS, use_bias=False
    )
    layer.build((None, None, WIDTH), (None, None, WIDTH))
    inner, state = HEADS * VALUE, groups * KEY
    z, x, b, c, dt = torch.split(theirs.in_proj.weight, [inner, inner, state, state, HEADS])
    convolved = {"v": (x, HEADS, inner), "k": (b, groups, state), "q": (c, groups, state)}
    dense = {"v": layer.value_dense, "k": layer.key_dense, "q": layer.query_dense}
    start = 0
    for name, (rows, count, size) in convolved.items():
        dense[name].kernel.assign(heads(rows, count))
        part = slice(start, start := start + size)
        taps = array(theirs.conv1d.weight)[part, 0].T.reshape(TAPS, count, -1)
        layer.convolutions.kernels[name].assign(taps)
        layer.convolutions.biases[name].assign(array(theirs.conv1d.bias)[part].reshape(count, -1))
    layer.output_gate_dense.kernel.assign(heads(z, HEADS))
    layer.step_dense.kernel.assign(array(dt).T)
    layer.log_rate.assign(array(theirs.A_log))
    layer.step_bias.assign(array(theirs.dt_bias))
    layer.skip.assign(array(theirs.D)[:, None])
    layer.norm_scale.assign(array(theirs.norm.weight).reshape(HEADS, VALUE))
    layer.output_dense.kernel.assign(array(theirs.out_proj.weight).T.reshape(HEADS, VALUE, WIDTH))
    x = rng.standard_normal((2, STEPS, WIDTH)).astype("float32")
    assert_close(layer(x, x, use_causal_mask=True), outputs(theirs, x), 1e-5)


@pytest.mark.parametrize("groups", [HEADS, HEADS // 2])
def test_the_gated_delta_rule_is_that_of_transformers(groups, rng):
    import torch
    from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    config = Qwen3NextConfig(
        hidden_size=WIDTH, linear_num_key_heads=groups, linear_num_value_heads=HEADS,
        linear_key_head_dim=KEY, linear_value_head_dim=VALUE, linear_conv_kernel_dim=TAPS,
        num_hidden_layers=1, rms_norm_eps=1e-6,
    )  # fmt: skip
    theirs = fill(Qwen3NextGatedDeltaNet(config, 0), 1)
    layer = DeltaRuleAttention(
        HEADS, KEY, value_dim=VALUE, gated=True, conv_size=TAPS, use_bias=False, norm_epsilon=1e-6,
        num_groups=groups,
    )  # fmt: skip
    layer.build((None, None, WIDTH), (None, None, WIDTH))
    values = HEADS // groups * VALUE
    rows = theirs.in_proj_qkvz.weight.reshape(groups, -1, WIDTH)
    q, k, v, z = (
        x.reshape(-1, WIDTH) for x in torch.split(rows, [KEY, KEY, values, values], dim=1)
    )
    for dense, part, count in [
        (layer.query_dense, q, groups), (layer.key_dense, k, groups), (layer.value_dense, v, HEADS),
        (layer.output_gate_dense, z, HEADS),
    ]:  # fmt: skip
        dense.kernel.assign(heads(part, count))
    beta, decay = theirs.in_proj_ba.weight.reshape(groups, 2, -1, WIDTH).unbind(1)
    layer.beta_dense.kernel.assign(array(beta.reshape(-1, WIDTH)).T)
    layer.decay_dense.kernel.assign(array(decay.reshape(-1, WIDTH)).T)
    taps = array(theirs.conv1d.weight)[:, 0].T
    parts = np.split(taps, [groups * KEY, 2 * groups * KEY], axis=1)
    for name, part, count in zip("qkv", parts, (groups, groups, HEADS), strict=True):
        layer.convolutions.kernels[name].assign(part.reshape(TAPS, count, -1))
    layer.log_rate.assign(array(theirs.A_log)[:, None])
    layer.step_bias.assign(array(theirs.dt_bias)[:, None])
    layer.norm_scale.assign(array(theirs.norm.weight))
    layer.output_dense.kernel.assign(array(theirs.out_proj.weight).T.reshape(HEADS, VALUE, WIDTH))
    x = rng.standard_normal((2, STEPS, WIDTH)).astype("float32")
    assert_close(layer(x, x, use_causal_mask=True), outputs(theirs, x), 1e-5)
