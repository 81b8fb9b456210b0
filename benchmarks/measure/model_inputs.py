"""What the models read: tokens or numbers."""

import dataclasses

import keras


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Integers from 0 to `vocabulary - 1`; with `padded`, 0 is a step that does not exist."""

    vocabulary: int
    padded: bool = False

    def layers(self, width):
        """An input, and its embedding `(b, t, width)`."""
        x = keras.Input((None,), dtype="int32", name="tokens")
        embedding = keras.layers.Embedding(
            self.vocabulary, width, mask_zero=self.padded, name="embedding"
        )
        return x, embedding(x)


@dataclasses.dataclass(frozen=True)
class Signal:
    """Numbers in some channels."""

    channels: int

    def layers(self, width):
        """An input, and a linear map of each step `(b, t, width)`."""
        x = keras.Input((None, self.channels), name="signal")
        return x, keras.layers.Dense(width, name="embedding")(x)
