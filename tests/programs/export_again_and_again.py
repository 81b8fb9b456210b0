"""Replace two files without end, until the process is killed. Print a line for each."""

import keras

from keras_cosattn import export

x = keras.Input((None, 3))
model = keras.Model(x, keras.layers.Dense(2)(x))
while True:
    export.to_tflite(model, "m.tflite", signatures=["serve"])
    print("exported", flush=True)
    export.to_saved_model(model, "m", signatures=["serve"])
    print("exported", flush=True)
