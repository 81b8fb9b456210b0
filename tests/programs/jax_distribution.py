"""Train on two devices of JAX, which are two parts of one CPU: `data` or `model` is divided."""

import os
import sys

os.environ["KERAS_BACKEND"] = "jax"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import keras
import numpy as np
from keras import distribution
from programs import small

HEADS = {
    r".*/(query|key|value)/kernel": (None, "model", None),  # (m, h, d)
    r".*/attention_output/kernel": ("model", None, None),  # (h, e, m)
}


def divided(what):
    if what == "data":
        return distribution.DataParallel()
    mesh = distribution.DeviceMesh((1, 2), ["batch", "model"])
    layout = distribution.LayoutMap(mesh)
    layout.update(HEADS)
    return distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")


assert len(distribution.list_devices()) == 2
expected = small.fit(small.build())
distribution.set_distribution(divided(sys.argv[1]))
model = small.build()
np.testing.assert_allclose(small.fit(model), expected, rtol=1e-5)
shardings = {variable.path: variable.value.sharding for variable in model.variables}
assert all(len(sharding.device_set) == 2 for sharding in shardings.values())
split = [path for path, sharding in shardings.items() if not sharding.is_fully_replicated]
assert len(split) == (4 if sys.argv[1] == "model" else 0), split
assert keras.backend.backend() == "jax"
