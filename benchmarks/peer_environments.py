"""Make the environments of the packages that the benchmarks measure beside this one.

    python benchmarks/peer_environments.py [torch] [tf_models] [keras_hub] [--fresh]

Each is a virtual environment in `.peers/`, made with the Python that runs this program, with the
releases that are pinned below. A small call proves that it works. One that is there with the same
pins is kept. The pins were chosen for Python 3.11. On Linux, PyPI's PyTorch comes with CUDA, which
is large; set `PIP_EXTRA_INDEX_URL` to PyTorch's index of CPU builds to avoid this.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys

FOLDER = pathlib.Path(__file__).parent.parent / ".peers"

TORCH_CALL = """
import torch
q = torch.ones(1, 2, 8, 4)
y = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
assert torch.allclose(y, q), y
print("PyTorch", torch.__version__)
"""

TF_MODELS_CALL = """
import tensorflow as tf
import tf_keras
from official.nlp.modeling.layers import KernelAttention
layer = KernelAttention(
    num_heads=2, key_dim=4, feature_transform="relu", num_random_features=0
)
x = tf.random.stateless_normal((2, 8, 16), (0, 0))
y = layer(x, x)
assert y.shape == x.shape and bool(tf.reduce_all(tf.math.is_finite(y))), y
print("TensorFlow", tf.__version__, "tf_keras", tf_keras.__version__)
"""

KERAS_HUB_CALL = """
import keras
import keras_hub
from keras_hub.src.models.qwen3_5.qwen3_5_gated_delta_net import Qwen3_5GatedDeltaNet
layer = Qwen3_5GatedDeltaNet(
    hidden_size=16, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
    linear_value_head_dim=8,
)
x = keras.random.normal((2, 64, 16), seed=0)
y = layer(x)
y = y[0] if isinstance(y, tuple) else y
assert tuple(y.shape) == tuple(x.shape), y.shape
print("Keras", keras.__version__, "KerasHub", keras_hub.__version__)
"""

ENVIRONMENTS = {
    "torch": (["torch==2.13.0", "numpy==2.4.6"], TORCH_CALL),
    "tf_models": (
        [
            "tf-models-official==2.20.0",
            "tensorflow==2.20.0",
            "tensorflow-text==2.20.1",
            "tf-keras==2.20.1",
        ],
        TF_MODELS_CALL,
    ),
    "keras_hub": (
        [
            "keras-hub==0.32.0",
            "keras==3.15.1",
            "tensorflow==2.21.0",
            "tensorflow-text==2.21.1",
        ],
        KERAS_HUB_CALL,
    ),
}
"""Name -> the pinned packages, and a program that proves that they work together."""


def python_of(name):
    """The Python of an environment that was made, or None."""
    python = FOLDER / name / "bin" / "python"
    return python if (FOLDER / name / "pins.txt").exists() else None


def make(name, fresh=False):
    """Make an environment, unless it is there with these pins, and prove that it works."""
    pins, call = ENVIRONMENTS[name]
    place, wanted = FOLDER / name, "\n".join(pins) + "\n"
    said = place / "pins.txt"
    if fresh or not said.exists() or said.read_text() != wanted:
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        pip = [place / "bin" / "python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *pins], check=True)
        subprocess.run([place / "bin" / "python", "-c", call], check=True)
        said.write_text(wanted)
    else:
        subprocess.run([place / "bin" / "python", "-c", call], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(ENVIRONMENTS))
    parser.add_argument("--fresh", action="store_true", help="make them again")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(ENVIRONMENTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(ENVIRONMENTS)}")
    failed = []
    for name in arguments.names or ENVIRONMENTS:
        try:
            make(name, arguments.fresh)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr)
    sys.exit(f"not made: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
