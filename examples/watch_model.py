"""The model of the watch examples, and how it is trained: on some people, tested on others."""

import keras
import numpy as np
from watch_data import log_softmax

from keras_cosattn import CausalConv1D, CosFormerAttention, SoftmaxAttention, TransformerDecoder

SEED, WINDOW, BATCH, STEPS = 1, 256, 16, 60
ATTENTION = {
    "cosFormer": lambda length: CosFormerAttention(2, 16, horizon=WINDOW),
    "softmax": lambda length: SoftmaxAttention(2, 16, max_length=length),
}


def build(attention):
    x = inputs = keras.Input((None, 6))
    x = CausalConv1D(32, 9, activation="relu")(x)
    x = CausalConv1D(32, 5, dilation_rate=4, activation="relu")(x)
    x = TransformerDecoder(64, attention=attention, normalize_first=True, dropout=0.2)(x)
    return keras.Model(inputs, keras.layers.Dense(7)(keras.layers.LayerNormalization()(x)))


def cross_validate(model, watch, folds, epochs):
    """Train once per fold. Yields the fold's recordings and the model's outputs on them."""
    rate = keras.optimizers.schedules.CosineDecay(
        3e-4, STEPS * epochs, warmup_target=3e-3, warmup_steps=10
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, weighted_metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)
    start = model.get_state_tree(value_format="numpy_array")  # so that it compiles only once
    for fold in folds:
        print(f"Training without persons {fold}", flush=True)
        rng, judge, test = np.random.default_rng(SEED), fold[-1] % 10 + 1, watch.of(*fold)
        model.set_state_tree(start)
        model.fit(
            watch.without(*fold, judge).batches(BATCH, WINDOW, rng),
            steps_per_epoch=STEPS,
            epochs=epochs,
            validation_data=watch.of(judge).windows(8 * BATCH, WINDOW, rng),
            validation_batch_size=BATCH,
            callbacks=[keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True)],
        )
        yield test, [whole(model, x) for x in test.series]


def whole(model, x):
    return log_softmax(np.asarray(model(x[None], training=False))[0])
