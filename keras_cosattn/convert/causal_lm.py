"""Language models of KerasHub that generate with a state in place of a cache."""

from __future__ import annotations

from typing import Any

import keras
import keras_hub
from keras import ops

from keras_cosattn.streaming import Streaming

Tensor = Any
GEMMA_3 = keras_hub.models.Gemma3CausalLMPreprocessor


@keras.saving.register_keras_serializable("keras_cosattn")
class StreamingCausalLM(keras_hub.models.CausalLM):
    """A task of KerasHub whose `generate` reads each token once, with a state of constant size.

    `replace_attention` makes it of a `keras_hub.models.CausalLM`. All of that class can be used:
    `generate` with KerasHub's samplers, the preprocessor, `fit`. A model saved with `save` is
    loaded after `import keras_cosattn.convert.causal_lm`.

    Args:
        backbone: A causal model from `{"token_ids": ..., "padding_mask": ...}` to logits
            `(b, t, V)`, which can stream.
        preprocessor: A `keras_hub.models.CausalLMPreprocessor`, or `None`. Defaults to `None`.
        sampler: Name or `keras_hub.samplers.Sampler`, of `generate` if `compile` gets none. It is
            saved with the model. Defaults to `"top_k"`.
        **kwargs: As for `keras_hub.models.CausalLM`.
    """

    def __init__(
        self,
        backbone: keras.Model,
        preprocessor: Any = None,
        sampler: Any = "top_k",
        **kwargs: Any,
    ) -> None:
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.sampler = keras_hub.samplers.get(sampler)
        super().__init__(inputs=backbone.input, outputs=backbone(backbone.input), **kwargs)
        self._stream: Any = None  # made by the first `generate`

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sampler": keras_hub.samplers.serialize(self.sampler)}

    def compile(self, *args: Any, sampler: Any = None, **kwargs: Any) -> None:
        super().compile(*args, sampler=self.sampler if sampler is None else sampler, **kwargs)

    def make_generate_function(self) -> Any:
        """Return the compiled `generate_step`. The first call checks that the model can stream."""
        if self._stream is None:
            self._stream = Streaming(self.backbone)
        return super().make_generate_function()

    def generate(
        self,
        inputs: Any,
        max_length: int | None = None,
        stop_token_ids: Any = "auto",
        strip_prompt: bool = False,
    ) -> Any:
        """As `keras_hub.models.CausalLM.generate`; Gemma 3 stops at the end of its turn, too."""
        processor = self.preprocessor
        if stop_token_ids == "auto" and isinstance(processor, GEMMA_3):
            tokenizer = processor.tokenizer
            stop_token_ids = [tokenizer.end_token_id, tokenizer.token_to_id("<end_of_turn>")]
        return super().generate(inputs, max_length, stop_token_ids, strip_prompt)

    def generate_step(self, inputs: dict[str, Tensor], stop_token_ids: Any = None) -> Any:
        """Continue one batch of prompts, as KerasHub's samplers ask for it.

        Args:
            inputs: `token_ids` and `padding_mask`, both `(b, t)`, with room for the new tokens.
            stop_token_ids: Integers that end an example, or `None`.
        """
        tokens, given = inputs["token_ids"], ops.cast(inputs["padding_mask"], "bool")
        shape = ops.shape(tokens)
        first = ops.min(ops.sum(ops.cast(given, "int32"), axis=-1))
        # The sampler asks for the step before each new token, so the last of a prompt is not read.
        seen = ops.broadcast_to(ops.arange(shape[1])[None] < first - 1, shape)
        _, state = self._read(tokens, self._stream.initial_state(shape[0]), seen)

        def next_logits(tokens, state, index):
            last = ops.slice(tokens, [0, index - 1], [ops.shape(tokens)[0], 1])
            logits, state = self._read(last, state)
            return logits[:, 0], None, state

        tokens = self.sampler(
            next=next_logits,
            prompt=tokens,
            cache=state,
            index=first,
            mask=given,
            stop_token_ids=stop_token_ids,
            model=self,
        )
        return {"token_ids": tokens, "padding_mask": _written(tokens, given, stop_token_ids)}

    def _read(self, tokens, state, mask=None):
        inputs = {"token_ids": tokens, "padding_mask": ops.ones_like(tokens)}
        return self._stream(inputs, state, mask)


def _written(tokens, given, stop_token_ids):
    """`True` up to the first new stop token of each example, and there."""
    if stop_token_ids is None:
        return ops.ones_like(tokens, dtype="bool")
    stops = ops.zeros_like(given)
    for token in stop_token_ids:
        stops = ops.logical_or(stops, ops.equal(tokens, token))
    stops = ops.cast(ops.logical_and(stops, ops.logical_not(given)), "int32")
    return ops.cumsum(stops, axis=-1) - stops == 0
