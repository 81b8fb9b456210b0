"""The loop of `block_scan` on PyTorch, a Python loop over checkpoints."""

from __future__ import annotations

from typing import Any

import keras


def scan(body: Any, state: Any, xs: Any, constants: Any, size: int) -> tuple[Any, Any]:
    """See `block_scan`."""
    import torch
    from torch.utils.checkpoint import checkpoint

    outputs = []
    for start in range(0, keras.tree.flatten(xs)[0].shape[1], size):
        block = keras.tree.map_structure(lambda x, a=start: x[:, a : a + size], xs)
        if torch.is_grad_enabled():
            state, y = checkpoint(body, state, block, constants, use_reentrant=False)
        else:
            state, y = body(state, block, constants)
        outputs.append(y)
    return state, keras.tree.map_structure(lambda *y: torch.cat(y, dim=1), *outputs)
