"""Train on two replicas of `tf.distribute.MirroredStrategy`, which are two parts of one CPU."""

import keras
import numpy as np
import tensorflow as tf
from programs import small

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
expected = small.fit(small.build(), jit_compile=False)
with strategy.scope():
    model = small.build()
    np.testing.assert_allclose(small.fit(model, jit_compile=False), expected, rtol=1e-5)

# One example more: it goes to the first replica, and the second has a batch of no examples.
before = model.get_weights()
losses = small.fit(model, count=small.BATCH + 1)
assert np.all(np.isfinite(losses)), losses
after = model.get_weights()
assert all(np.all(np.isfinite(weight)) for weight in after)
assert any(np.any(a != b) for a, b in zip(after, before, strict=True))
assert keras.backend.backend() == "tensorflow"
