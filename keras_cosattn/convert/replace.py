"""A model with another attention."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any, NoReturn

import keras
from keras.layers import Layer

from keras_cosattn.attention import Attention
from keras_cosattn.convert.attention_layers import attending_part, paths_of
from keras_cosattn.convert.clones import (
    GRAPHS,
    clone,
    compile_like,
    made_again,
    refuse_adapted,
    sharing_models,
)
from keras_cosattn.convert.equivalents import DECODERS, EMBEDDINGS, class_of, equivalent_of
from keras_cosattn.convert.exchange import Replacement, exchange
from keras_cosattn.convert.keras_hub_decoders import CannotConvertError
from keras_cosattn.convert.rewired import Rewired, attribute, attributes, is_place, why_fixed
from keras_cosattn.convert.weights import assign_in_order, keep_frozen
from keras_cosattn.transformer import TransformerDecoder

Where = Callable[[Any], bool] | Collection[str] | None


def replace_attention(
    model: keras.Model, attention: Replacement, where: Where = None
) -> keras.Model:
    """Return a copy of a model in which other layers attend.

    The copy has the weights of the model. Each replaced layer keeps its projections of queries,
    keys and values, the norms of queries and keys, and the projection of the output; each path of a
    `RoutedAttention` has them. Of a `RoutedAttention` that is replaced, those of its first path
    stay. What only the new layer has (feature maps, decays, gates, the projections of levels) has
    initial values. The model itself is not changed. Attention layers are:

    - `keras.layers.MultiHeadAttention` and `GroupQueryAttention`;
    - the attention layers, `TransformerEncoder` and `TransformerDecoder` of this package;
    - KerasHub's `TransformerEncoder` and `TransformerDecoder` (as in BERT, RoBERTa, DistilBERT and
      GPT-2), its `ViTEncoder`, and the decoders of Llama, Mistral, Qwen 2 and 3, and Gemma 1 to 3
      (text). They become blocks of this package.

    A layer of your own class, or a subclassed model, is copied by its config. Attention layers that
    its constructor puts into attributes, lists or dicts, also as parts of functional models, are
    replaced there; the copy is inside a `Rewired` layer, which saves them. The class must be
    registered with Keras to be loaded.

    The copy of a KerasHub backbone or task is a plain functional model. In it all decoders and
    position embeddings are those of this package, so that it can stream. Import `keras_hub` before
    it is loaded.

    With `SoftmaxAttention` the outputs are those of the model, up to rounding. With another
    attention they are not: train the copy, on the outputs of the model or on data.

    Args:
        model: A built Keras model. Models inside it are converted too.
        attention: An attention layer of this package. Each place gets a copy with the name, sizes,
            dtype and `trainable` of the layer that was there. Its dropout, regularizers, position,
            window and cap of the scores are those of that layer unless you give others. Or a
            function from the old layer, as one of this package, to the new one.
        where: The name or names of layers or blocks of the model, paths that `attention_errors`
            returned for it, or a function of a layer that tells whether to replace it. Defaults to
            `None`, all.

    Returns:
        A Keras model. A functional or sequential one is compiled as `model` is, with an optimizer
        and metrics of its own. A language model of KerasHub keeps its sampler.

    Raises:
        ValueError: If the model is not built, has LoRA weights, is quantised or has a `train_step`
            or the like of its own, if no layer was selected, or if a selected one cannot be
            replaced. The message names the layer and the reason.

    Example:
    >>> from keras_cosattn.convert import replace_attention
    >>> x = keras.Input((None, 8))
    >>> y = keras.layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)
    >>> model = keras.Model(x, keras.layers.Dense(3)(y))
    >>> linear = replace_attention(model, keras_cosattn.LinearAttention(1, 1))
    >>> [type(layer).__name__ for layer in linear.layers]
    ['InputLayer', 'LinearAttention', 'Dense']
    """
    if not isinstance(attention, Attention) and (
        isinstance(attention, (type, Layer)) or not callable(attention)
    ):
        raise ValueError(
            "`attention` must be an attention layer of keras_cosattn, or a function that returns "
            f"one for each old layer. Received: {attention!r}"
        )
    if not (isinstance(model, keras.Model) and model.built):
        raise ValueError(f"`model` must be a built Keras model. Received: {model!r}")
    refuse_adapted(model)
    if not generates(model):
        copy = _Conversion(model, attention, where).run()
        if isinstance(model, GRAPHS):
            compile_like(copy, model)
        return copy
    from keras_cosattn.convert.causal_lm import StreamingCausalLM

    # The copy of a task is a backbone that ends in logits; a copy of that has no head of its own.
    ends = model.backbone if isinstance(model, StreamingCausalLM) else model
    copy = _Conversion(ends, attention, where).run()
    sampler = getattr(model, "sampler", "top_k")  # a model that was never compiled has none
    task = StreamingCausalLM(copy, model.preprocessor, sampler, name=model.name, compile=False)
    compile_like(task, model)
    return task


def equal_model(model: keras.Model) -> keras.Model:
    """Return a copy of a model whose attention layers are the equal ones of this package."""
    return _Conversion(model, None, None).run()


class _Conversion:
    """One copy of a model: which layer became which.

    Args:
        model, attention, where: As in `replace_attention`. Without `attention` the copy is equal.
    """

    def __init__(self, model: keras.Model, attention: Replacement | None, where: Where) -> None:
        self._model, self._attention = model, attention
        self._where = [where] if isinstance(where, str) else where
        self._new: dict[int, Layer] = {}
        self._copied: list[tuple[Layer, Layer]] = []
        self._rewired_layers: list[tuple[Layer, Rewired, dict[str, Layer]]] = []
        self._attending: list[Any] = []
        self._replaced: list[str] = []
        self._shared, self._paths = sharing_models(model), paths_of(model)
        self._decodes = any(class_of(layer) in DECODERS for layer in model._flatten_layers())

    def run(self) -> keras.Model:
        copy: Any = self._layer(self._model)
        self._check()
        if not isinstance(self._model, GRAPHS) and self._replaced:
            source, *_ = self._rewired_layers[-1]
            copy.layer.build_from_config(source.get_build_config())
        for old, new in self._copied:
            assign_in_order(new, old)
            keep_frozen(new, old)
        for old, new, replaced in self._rewired_layers:
            pairs = {path: (layer, attribute(old, path)) for path, layer in new.replaced.items()}
            assign_in_order(new.layer, old, pairs.values())
            for path, (layer, before) in pairs.items():
                if not isinstance(layer, GRAPHS):
                    assign_in_order(layer, replaced.get(path, before))
            keep_frozen(new, old)
        return copy

    def _check(self) -> None:
        """Raise ValueError if a selected layer does not exist, or none was replaced."""
        name, attending = self._model.name, [x.name for x in dict.fromkeys(self._attending)]
        if isinstance(self._where, Collection):
            unknown = set(self._where).difference(*map(self._names, self._attending))
            if unknown:
                raise ValueError(
                    f"`where` names layers of '{name}' that do not attend, or that it does not "
                    f"have: {sorted(unknown)}. Those that attend: {attending}"
                )
        if not self._replaced and self._attention is not None:
            raise ValueError(f"No layer of '{name}' was replaced. Those that attend: {attending}")

    def _layer(self, old: Layer) -> Any:
        """Return the copy of a layer, the same at every call; operations as they are."""
        if not isinstance(old, Layer):
            return old
        if id(old) not in self._new:
            if not isinstance(old, GRAPHS):
                self._new[id(old)] = self._copy(old)
            elif old in self._shared:
                return functools.partial(self._inline, old)
            else:
                self._new[id(old)] = clone(old, self._layer, _call)
        return self._new[id(old)]

    def _inline(self, old: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        """Return what the copies of the layers of a model inside the model make of `inputs`.

        Keras saves a layer of an inner model and the same layer outside as two. So an inner model
        that shares layers with the outer one, as the backbone of a language model its embedding,
        becomes a part of it. Layers get their `training` and `mask` from Keras.
        """
        return old._run_through_graph(inputs, operation_fn=self._layer, call_fn=_call)

    def _copy(self, old: Layer) -> Layer:
        equivalent = equivalent_of(old)
        if equivalent is None:
            if self._decodes and class_of(old) in EMBEDDINGS:
                return EMBEDDINGS[class_of(old)](old)
            return self._rewired(old) or self._same(old)
        self._attending.append(old)
        selected = self._selected(old)
        if not selected and class_of(old) not in DECODERS:
            return self._same(old)
        try:
            equal = equivalent(old)
        except CannotConvertError as error:
            self._refuse(old, str(error))
        keep_frozen(equal, old)
        return self._exchange(equal) if selected else equal

    def _exchange(self, equal: Layer) -> Layer:
        self._replaced.append(equal.name)
        return equal if self._attention is None else exchange(equal, self._attention)

    def _same(self, old: Layer) -> Layer:
        """Return a copy that gets its weights once the graph has built it."""
        new = self._made_again(old)
        self._copied.append((old, new))
        return new

    def _made_again(self, old: Layer) -> Layer:
        """Return a layer of the same config, not built."""
        return made_again(old, f"'{self._model.name}' cannot be copied")

    def _selected(self, layer: Layer) -> bool:
        if self._where is None:
            return True
        if callable(self._where):
            return self._where(layer)
        return not self._names(layer).isdisjoint(self._where)

    def _names(self, layer: Layer) -> set[str]:
        """What `where` may call a layer or block: its name, or the path of what attends in it."""
        part = attending_part(layer)
        return {layer.name, part.path, self._paths[id(part)]}

    def _rewired(self, old: Layer) -> Layer | None:
        """Return the copy of a layer with attention layers inside; `None` if none is selected."""
        inside = [x for x in old._flatten_layers(include_self=False) if equivalent_of(x)]
        self._attending += inside
        selected = {id(layer) for layer in inside if self._selected(layer)}
        if not selected:
            return None
        source, layers = (old.layer, old.replaced) if isinstance(old, Rewired) else (old, {})
        copy, exchanged = self._made_again(source), {}
        found = list(attributes(source, lambda layer: is_place(layer, selected)))
        reached = {id(x) for _, layer in found for x in layer._flatten_layers()}
        for inner in inside:
            if id(inner) in selected - reached:
                self._refuse(inner, f"no attribute of a {type(source).__name__} leads to it")
        made: dict[int, Layer] = {}  # an old layer may be in several attributes
        for path, inner in found:
            if why := why_fixed(source, copy, path):
                self._refuse(inner, why)
            if id(inner) not in made:
                made[id(inner)] = self._exchanged(inner)
            exchanged[path] = made[id(inner)]
        both = {**layers, **exchanged}
        unbuilt = {id(x): self._unbuilt(x) for x in both.values()}
        new = Rewired(copy, {path: unbuilt[id(x)] for path, x in both.items()}, name=old.name)
        self._rewired_layers.append((source, new, exchanged))
        return new

    def _exchanged(self, inner: Layer) -> Layer:
        """Return what takes the place of an attention layer; a model as it is."""
        equivalent = equivalent_of(inner)
        if equivalent is None:
            return inner
        new = self._exchange(equivalent(inner))
        keep_frozen(new, inner)
        return new

    def _unbuilt(self, layer: Layer) -> Layer:
        """Return a layer of the same config, not built; of a model the copy, with its weights."""
        if isinstance(layer, GRAPHS):
            return clone(layer, self._layer, _call)
        return type(layer).from_config(layer.get_config())

    def _refuse(self, layer: Layer, why: str) -> NoReturn:
        raise ValueError(
            f"The layer '{layer.name}' of '{self._model.name}' cannot be replaced: {why}. Leave it "
            "out with `where`, or build the model with layers of this package."
        )


def _call(layer: Layer, *args: Any, **kwargs: Any) -> Any:
    """Call the copy of a layer with the arguments of the layer. Gemma names its mask otherwise."""
    if isinstance(layer, TransformerDecoder):
        names = {"padding_mask": "decoder_padding_mask"}
        kwargs = {names.get(name, name): x for name, x in kwargs.items() if x is not None}
    return layer(*args, **kwargs)


def generates(model: keras.Model) -> bool:
    """Whether a model is a `keras_hub.models.CausalLM`."""
    classes = [(c.__module__.split(".")[0], c.__name__) for c in type(model).__mro__]
    return ("keras_hub", "CausalLM") in classes
