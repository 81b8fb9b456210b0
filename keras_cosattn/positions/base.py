"""What the position objects share."""

import keras


class Position(keras.layers.Layer):
    """How far apart two steps are, as the `position=` of an attention layer.

    Positions are int32 `(b or 1, t)` and count the real steps. There are three kinds:

    - "rotation": `encode` turns each query and key by an angle of its position, so it also fits
      layers that never compare one query with one key.
    - "encoding": `encode` puts the position into queries and keys, and may change their lengths.
    - "bias": `bias` adds a number to each score, so it fits layers that form scores.

    Weights are float32 and stay so under a half-precision policy. A layer builds its position with
    `(b, t, h, d)`, the shape of its queries; one object belongs to one layer.
    """

    kind = None

    def encode(self, q, k, q_positions, k_positions):
        """`(b, t, h, d)` and `(b, s, hk, d)` with their positions in them."""
        return q, k

    def bias(self, q, q_positions, k_positions):
        """What is added to the scaled scores, `(b or 1, h or 1, t, s)`; None is nothing."""
        return None

    def add_weight(self, **options):
        return super().add_weight(**options, dtype="float32", autocast=False)


def distances(q_positions, k_positions):
    """`t - s` for each pair, `(b or 1, t, s)`."""
    return keras.ops.expand_dims(q_positions, 2) - keras.ops.expand_dims(k_positions, 1)
