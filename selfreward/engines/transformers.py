"""Plain ``model.generate`` of transformers: slower than vLLM, and at home on any machine."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from selfreward.engines.base import TOO_LONG, Completion, SamplingParams
from selfreward.engines.batching import Batcher
from selfreward.text.chat import ChatEncoder, load_tokenizer

if TYPE_CHECKING:
    from selfreward.recipe.engine_settings import EngineSettings, ModelSettings
    from selfreward.records import Message


@dataclass(frozen=True)
class _Request:
    ids: list[int]
    params: SamplingParams
    seed: int


class SeededGumbel(LogitsProcessor):
    """Makes the argmax of the scores a sample: the Gumbel-max trick, with one generator a row.

    ``generate`` samples a whole batch from one generator, so that a row's tokens depend on its neighbours.
    Here the noise of a row depends only on its seed and the step.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        """Adds noise to scores of shape (rows, vocabulary)."""
        noise = torch.empty_like(scores)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        # The clamp keeps a draw of 0 from making a token certain, above all one that top-p has ruled out.
        return scores - noise.clamp_min(torch.finfo(noise.dtype).tiny).log()


class PresencePenalty(LogitsProcessor):
    """Takes the penalty from the score of each token that a row's output has already, as vLLM does."""

    def __init__(self, penalty: float, prompt_length: int) -> None:
        self._penalty, self._start = penalty, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        """Changes scores of shape (rows, vocabulary) after ids of shape (rows, prompt and output)."""
        present = torch.zeros_like(scores).scatter_(1, input_ids[:, self._start :], 1.0)
        return scores - self._penalty * present


class TransformersEngine:
    """Implements :class:`selfreward.engines.base.Engine` with padded batches of ``model.generate``."""

    own_model = False

    def __init__(self, model_path: str, model: ModelSettings, settings: EngineSettings) -> None:
        self._settings = model
        self._chat = ChatEncoder(load_tokenizer(model_path, model))
        self._device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        # In half precision padding tips a token in about one sequence of ten; without it, results on a CPU are exact.
        self._unpadded = self._device.type == "cpu" and model.dtype != "float32"
        self._batcher = Batcher(
            self._generate, settings.transformers.batch_size, lambda request: len(request.ids), self._group
        )
        self._model: Any = None
        self._load(model_path)

    async def generate(
        self, messages: Sequence[Message], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Completion]:
        ids = self._chat.encode(messages)
        if not self._fits(len(ids) + params.max_tokens):
            return [TOO_LONG] * len(seeds)
        return await asyncio.gather(*(self._batcher.submit(_Request(ids, params, seed)) for seed in seeds))

    async def logprobs(self, ids: Sequence[int], last: int | None = None) -> list[float]:
        tokens = torch.tensor([list(ids)], device=self._device)
        with torch.inference_mode():
            logits = self._model(input_ids=tokens).logits[0, :-1].float()
        chosen = logits.log_softmax(-1).gather(-1, tokens[0, 1:, None]).squeeze(-1)
        figures: list[float] = chosen.tolist()
        return figures if last is None else figures[-last:]

    async def option_probs(
        self, messages: Sequence[Message], prefix: str, options: Sequence[str]
    ) -> list[float] | None:
        groups = [self._chat.option_ids(option) for option in options]
        ids = self._chat.begin(messages, prefix)
        if not self._fits(len(ids) + 1):
            return None
        tokens = torch.tensor([ids], device=self._device)
        with torch.inference_mode():
            # Of the last place alone: the logits of a whole prompt may need more memory than the model.
            output = self._model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=1,
                output_logits=True,
                return_dict_in_generate=True,
            )
        probabilities = output.logits[0][0].float().softmax(-1)
        return [float(probabilities[group].sum()) for group in groups]

    def reload(self, model_path: str) -> None:
        assert self._batcher.idle, "weights must not change under a request"
        self.close()
        self._load(model_path)

    def sleep(self) -> None:
        self.close()

    def close(self) -> None:
        self._model = None
        # Modules and their hooks form cycles, which hold the weights until they are collected.
        gc.collect()
        if self._device.type != "cpu":
            torch.accelerator.empty_cache()

    def _load(self, model_path: str) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(
            model_path,
            revision=self._settings.revision or "main",
            dtype=getattr(torch, self._settings.dtype),
            trust_remote_code=self._settings.trust_remote_code,
            use_safetensors=True,
        )
        self._model.to(self._device).eval()
        self._eos = _eos_ids(self._model.generation_config, self._chat.tokenizer.eos_token_id)
        # `generate` takes what it isn't told from the model's own defaults, such as a repetition penalty.
        self._model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=self._eos, pad_token_id=self._chat.tokenizer.pad_token_id
        )
        self._max_model_len: int | None = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self.model = model_path

    def _fits(self, num_tokens: int) -> bool:
        return self._max_model_len is None or num_tokens <= self._max_model_len

    def _group(self, request: _Request) -> tuple[SamplingParams, int | None]:
        """A batch has the same params and, where padding would change results, the same length."""
        return request.params, len(request.ids) if self._unpadded else None

    def _generate(self, batch: list[_Request]) -> list[Completion]:
        params, longest = batch[0].params, len(batch[0].ids)
        pad = self._chat.tokenizer.pad_token_id
        inputs = [[pad] * (longest - len(request.ids)) + request.ids for request in batch]
        mask = [[0] * (longest - len(request.ids)) + [1] * len(request.ids) for request in batch]
        with torch.inference_mode():
            outputs = self._model.generate(
                input_ids=torch.tensor(inputs, device=self._device),
                attention_mask=torch.tensor(mask, device=self._device),
                max_new_tokens=params.max_tokens,
                logits_processor=self._processors(params, [request.seed for request in batch], longest),
            )
        return [self._completion(row) for row in outputs[:, longest:].tolist()]

    def _processors(self, params: SamplingParams, seeds: Sequence[int], prompt_length: int) -> LogitsProcessorList:
        processors = LogitsProcessorList()
        if params.presence_penalty:
            processors.append(PresencePenalty(params.presence_penalty, prompt_length))
        if params.temperature:
            processors.append(TemperatureLogitsWarper(float(params.temperature)))
            if params.top_p < 1.0:
                processors.append(TopPLogitsWarper(params.top_p))
            processors.append(SeededGumbel(seeds, self._device))
        return processors

    def _completion(self, tokens: list[int]) -> Completion:
        """A row of new tokens up to its EOS; what follows is padding."""
        end = next((place for place, token in enumerate(tokens) if token in self._eos), None)
        kept = tokens if end is None else tokens[: end + 1]
        text = self._chat.tokenizer.decode(kept, skip_special_tokens=True)
        return Completion(str(text), "length" if end is None else "stop", len(kept))


def _eos_ids(config: GenerationConfig, tokenizer_eos: int) -> list[int]:
    """All ids that end a response, as vLLM has them: the tokenizer's, and those of the generation config."""
    ids = config.eos_token_id
    listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
    return sorted({tokenizer_eos, *listed})
