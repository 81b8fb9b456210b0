"""Call the kernel attention of tf-models, on Keras 2."""

import tensorflow as tf
import tf_keras
from official.nlp.modeling.layers import KernelAttention

layer = KernelAttention(num_heads=2, key_dim=4, feature_transform="relu", num_random_features=0)
x = tf.random.stateless_normal((2, 8, 16), (0, 0))
y = layer(x, x)
assert y.shape == x.shape, y
assert bool(tf.reduce_all(tf.math.is_finite(y))), y
print("TensorFlow", tf.__version__, "tf_keras", tf_keras.__version__)
