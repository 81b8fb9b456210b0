"""Checks of a stream's state: its tensors, its batch size and its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_cosattn import limits
from keras_cosattn.ops import arrays
from keras_cosattn.scope import Stream

Tensor = Any
Spec = dict[str, tuple[tuple[int, ...], str]]  # name -> (shape without the batch axis, dtype)


def spec_of(state: Mapping[str, Tensor]) -> Spec:
    """Return the shapes without the batch axis and the dtypes of a state's tensors."""
    return {
        name: (tuple(x.shape[1:]), keras.backend.standardize_dtype(x.dtype))
        for name, x in state.items()
    }


def check_state(
    state: Mapping[str, Tensor], expected: Spec, model_name: str, batch_size: int | None = None
) -> None:
    """Raise ValueError if `state` is of another model or batch size.

    Args:
        state: the state.
        expected: the model's.
        model_name: for the message.
        batch_size: int, that of the inputs. `None` is any.
    """
    found = spec_of(state)
    if found != expected:
        odd = [
            name
            for name in sorted(found.keys() | expected.keys())
            if found.get(name) != expected.get(name)
        ]
        raise ValueError(
            f"This is not a state of '{model_name}'. It differs in {odd}: expected "
            f"{[expected.get(name) for name in odd]}, received {[found.get(name) for name in odd]}"
        )
    sizes = {x.shape[0] for x in state.values()} - {None}
    if batch_size is not None and sizes - {batch_size}:
        raise ValueError(
            f"The state is for {sorted(sizes)} examples. Received: inputs with {batch_size}. "
            "Use `initial_state` with the size of the batch."
        )


def with_batch_of(state: Mapping[str, Tensor], inputs: Any) -> Any:
    """Return inputs after a check that they have as many examples as a state."""
    tensor = next(iter(state.values()), None)
    if tensor is None:
        return inputs
    size = ops.shape(tensor)[0] if tensor.shape[0] is None else tensor.shape[0]
    what = "The inputs must have as many examples as the state"
    return limits.check_batch(inputs, size, what, "Use `initial_state` with the size of the batch.")


def checked_mask(mask: Tensor, batch: int | None, steps: int | None) -> Tensor:
    """Return a mask as a boolean tensor. Raises ValueError unless it fits `(b, t)`."""
    mask = ops.cast(mask, "bool")
    if (
        len(mask.shape) != 2
        or mask.shape[0] not in (batch, None)
        or mask.shape[1] not in (steps, None)
    ):
        raise ValueError(
            f"`mask` must have shape (batch, steps) = ({batch}, {steps}). "
            f"Received: mask.shape={tuple(mask.shape)}"
        )
    return mask


def checked_examples(examples: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Return `examples` as booleans. Raises ValueError unless there is one for each of a state."""
    examples = ops.cast(examples, "bool")
    batch = next((x.shape[0] for x in state.values()), None)
    fits = batch is None or tuple(examples.shape) in ((batch,), (None,))
    if len(examples.shape) != 1 or not fits:
        raise ValueError(
            f"`examples` must have a boolean for each of {batch} examples. "
            f"Received: examples.shape={tuple(examples.shape)}"
        )
    return examples


def zero_masked(inputs: Any, mask: Tensor) -> Any:
    """Return inputs with zeros where `mask (b, t)` is `False`; what is not numeric as it is."""

    def of_tensor(x):
        x = ops.convert_to_tensor(x)
        if keras.backend.standardize_dtype(x.dtype) == "string" or len(x.shape) < 2:
            return x
        return arrays.zero_masked(x, mask)

    return keras.tree.map_structure(of_tensor, inputs)


def check_model(saved: Mapping[str, str], model: Mapping[str, str], name: str, path: Any) -> None:
    """Raise ValueError if a state was saved with another model, by their fingerprints."""
    words = {"architecture": "another architecture", "weights": "other weights"}
    differ = [words[part] for part in words if saved.get(part) != model[part]]
    if differ:
        raise ValueError(
            f"{path} is not a state of '{name}': it was computed by a model with "
            f"{' and '.join(differ)}. Load it with that model, or use `initial_state`."
        )


def constant_part(stream: Stream) -> dict[str, Tensor]:
    """Return the tensors of a stream's new state that are the same at every step."""
    prefixes = tuple(f"{slot}_" for slot in stream.constant_slots)
    return {name: x for name, x in stream.next_state.items() if name.startswith(prefixes)}
