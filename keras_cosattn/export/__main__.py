"""The command line: `python -m keras_cosattn.export {tflite,saved-model,show,compare,run}`."""

from keras_cosattn.export.cli import main

if __name__ == "__main__":
    main()
