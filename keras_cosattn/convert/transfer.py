"""The attention of a converted model, taught by that of the model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import keras
from keras import ops
from keras.layers import Layer

from keras_cosattn import probe
from keras_cosattn.attention import Attention
from keras_cosattn.convert.attention_layers import attention_layers, paths_of
from keras_cosattn.convert.replace import equal_model
from keras_cosattn.convert.weights import PROJECTIONS, by_name

Tensor = Any


def transfer(
    model: keras.Model,
    converted: keras.Model,
    data: Any,
    *,
    train: Literal["new", "attention"] = "new",
    optimizer: Any = None,
    backup_dir: str | os.PathLike[str] | None = None,
    **fit_options: Any,
) -> keras.callbacks.History:
    """Teach the attention layers that `replace_attention` put in to compute what the old ones did.

    Each new layer reads what the old layer reads inside `model`, and learns its output, by the loss
    `sum (y' - y)^2 / sum y^2`, summed over the layers. So an error does not pass from one layer to
    the next, and no labels are needed. All else in `converted` stays as it is. Afterwards train
    `converted` on labels, as a whole or with LoRA.

    A step takes the time of one forward pass of `model`, and of forward and backward passes of the
    new layers. `model` is copied, with its weights.

    Args:
        model: The model that was converted.
        converted: What `replace_attention` returned for it. Its new layers are trained.
        data: Inputs as for `model.fit`: arrays, a `tf.data.Dataset` or another. Labels are not
            used.
        train: `"new"` trains what only the new layers have (feature maps, decays, gates), and
            `"attention"` their projections too. Defaults to `"new"`.
        optimizer: As for `keras.Model.compile`. Defaults to `None`, Adam with a rate of 1e-3.
        backup_dir: A folder. A call that was interrupted goes on from it. Defaults to `None`.
        **fit_options: As for `keras.Model.fit`, such as `epochs`, `batch_size` and `callbacks`.

    Returns:
        What `fit` returns. Its `history` has the mean loss of each layer as `error_` and the rank
        of the layer.

    Raises:
        ValueError: If `converted` is no conversion of `model`, or its new layers have no such
            weights that are trainable.

    Reference:

    - [Zhang et al., 2024 (LoLCATs)](https://arxiv.org/abs/2410.10254), section 3.2

    Example:
    >>> from keras_cosattn.convert import replace_attention, transfer
    >>> x = keras.Input((None, 8))
    >>> y = keras.layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)
    >>> model = keras.Model(x, y)
    >>> linear = replace_attention(model, keras_cosattn.WindowedLinearAttention(1, 1, window=4))
    >>> history = transfer(model, linear, np.ones((4, 10, 8), "float32"), epochs=2, verbose=0)
    >>> sorted(history.history)
    ['error_0', 'loss']
    """
    teaching = _teaching(model, converted)
    callbacks = keras.tree.flatten(fit_options.pop("callbacks", None) or [])
    if backup_dir is not None:
        callbacks.append(keras.callbacks.BackupAndRestore(os.fspath(backup_dir)))
    with _only_trainable(converted, teaching.students, train):
        teaching.compile(optimizer or keras.optimizers.Adam(1e-3))
        return teaching.fit(data, callbacks=callbacks, **fit_options)


def attention_errors(model: keras.Model, converted: keras.Model, x: Any) -> dict[str, float]:
    """Return how far each new layer is from the layer that it replaces.

    Args:
        model, converted: As in `transfer`.
        x: Inputs of the models.

    Returns:
        dict of the path of a layer to `sqrt(sum (y' - y)^2 / sum y^2)`, on what the old layer reads
        inside `model`. If several layers have the same path, the rank among them follows the path.
        For a layer that is called several times the error is that of the last call.
    """
    teaching, paths = _teaching(model, converted), paths_of(converted)
    found = ((rank, ops.convert_to_numpy(error)) for rank, error in teaching.errors(x))
    return {paths[id(teaching.students[rank])]: float(error) ** 0.5 for rank, error in found}


class _Teaching(keras.Model):
    """The model as the teacher, and the new attention layers as students, as one Keras model."""

    def __init__(
        self, teacher: keras.Model, teachers: Sequence[Layer], students: Sequence[Layer]
    ) -> None:
        super().__init__(name="transfer", autocast=False)
        teacher.trainable = False
        self.teacher = teacher
        self.teachers, self.students = list(teachers), list(students)
        self.means = [keras.metrics.Mean(name=f"error_{rank}") for rank in range(len(students))]
        self.built = True

    def errors(self, inputs: Any) -> list[tuple[int, Tensor]]:
        """Return the relative squared error of each call of a new layer, with its rank."""
        with probe.recorded(self.teachers) as calls:
            self.teacher(inputs, training=False)
        ranks = {id(layer): rank for rank, layer in enumerate(self.teachers)}
        found = []
        for call in calls:
            rank = ranks[id(call.layer)]
            outputs = self.students[rank](*call.args, **call.kwargs)
            found.append((rank, _relative_error(call.outputs, outputs)))
        return found

    def call(self, inputs: Any) -> Tensor:
        """Return the errors of the layers, which `add_loss` sums."""
        errors: list[Any] = [0.0] * len(self.students)
        for rank, error in self.errors(inputs):
            errors[rank] = errors[rank] + error
        self.add_loss(sum(errors))
        return ops.stack(errors)

    def compute_metrics(self, x: Any, y: Any, y_pred: Tensor, sample_weight: Any = None) -> Any:
        for rank, mean in enumerate(self.means):
            mean.update_state(y_pred[rank])
        return self.get_metrics_result()


def _teaching(model: keras.Model, converted: keras.Model) -> _Teaching:
    """Pair the layers that differ. Raises ValueError unless one model is a copy of the other."""
    teacher = equal_model(model)
    old, new = attention_layers(teacher), attention_layers(converted)
    if [layer.name for layer in old] != [layer.name for layer in new]:
        raise ValueError(
            f"`converted` must be what `replace_attention` returned for '{model.name}'. Its "
            f"attention layers are {[layer.name for layer in new]}, those of the model "
            f"{[layer.name for layer in old]}"
        )
    pairs = [(a, b) for a, b in zip(old, new, strict=True) if _differ(a, b)]
    if not pairs:
        raise ValueError(
            f"All attention layers of `converted` are those of '{model.name}': there is nothing to "
            "learn. Convert the model with `replace_attention` first."
        )
    return _Teaching(teacher, *zip(*pairs, strict=True))


def _differ(old: Attention, new: Attention) -> bool:
    return type(old) is not type(new) or _settings(old.get_config()) != _settings(new.get_config())


def _settings(config: Any) -> Any:
    """A config without what changes no output: names, what is frozen, and how weights began."""
    if isinstance(config, (list, tuple)):
        return [_settings(x) for x in config]
    if not isinstance(config, dict):
        return config
    own = ("name", "trainable") if "trainable" in config else ()  # else no config of a layer
    return {
        key: _settings(x)
        for key, x in config.items()
        if key not in own and not key.endswith("_initializer")
    }


def _relative_error(expected: Tensor, found: Tensor) -> Tensor:
    expected, found = (ops.cast(y, "float32") for y in (expected, found))
    return ops.sum(ops.square(found - expected)) / (ops.sum(ops.square(expected)) + 1e-12)


@contextlib.contextmanager
def _only_trainable(
    model: keras.Model, layers: Sequence[Layer], train: Literal["new", "attention"]
) -> Iterator[None]:
    """Within it only the chosen weights of `layers` are trainable."""
    if train not in ("new", "attention"):
        raise ValueError(f"`train` must be 'new' or 'attention'. Received: train={train!r}")
    before = [(variable, variable.trainable) for variable in model.variables]
    chosen = {
        id(variable)
        for layer in layers
        for name, variable in by_name(layer).items()
        if variable.trainable and (train == "attention" or name.split("/")[0] not in PROJECTIONS)
    }
    if not chosen:
        raise ValueError(
            f"The new attention layers of '{model.name}' have no trainable weights for "
            f"train='{train}'. Give train='attention' for their projections, or layers with "
            "learned parts, such as `WindowedLinearAttention`, and set `trainable = True` where "
            "they are frozen."
        )
    try:
        for variable, trainable in before:
            variable.trainable = trainable and id(variable) in chosen
        yield
    finally:
        for variable, trainable in before:
            variable.trainable = trainable
