"""A reward model: transformers' sequence classification with one label, whose logit is the reward."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from selfreward.engines.batching import Batcher
from selfreward.text.chat import ChatEncoder, load_tokenizer, model_errors

if TYPE_CHECKING:
    from selfreward.recipe.engine_settings import EngineSettings, ModelSettings
    from selfreward.records import Message

_NO_NEXT_TURN = "{%- set add_generation_prompt = false -%}"


class ClassifierEngine:
    """Implements :class:`selfreward.engines.base.RewardModel`: it gives rewards, and generates nothing."""

    own_model = False

    def __init__(self, model_path: str, model: ModelSettings, settings: EngineSettings) -> None:
        """Raises ValueError for a model that has another number of labels than one, or no weights for it."""
        self.model = model_path
        tokenizer = load_tokenizer(model_path, model)
        # The encoder asks the template to let the assistant speak, and here it has spoken.
        tokenizer.chat_template = f"{_NO_NEXT_TURN}{tokenizer.get_chat_template()}"
        self._chat = ChatEncoder(tokenizer)
        self._device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        self._served = _load(model_path, model).to(self._device).eval()
        config = self._served.config.get_text_config()
        self._max_model_len: int | None = getattr(config, "max_position_embeddings", None)
        # transformers finds the end of a row, where the reward stands, by this token, and without it takes single rows.
        self._pad: int = -1 if config.pad_token_id is None else config.pad_token_id
        # On a CPU the figures of a row depend on the number of rows, in the last digit; one at a time, they are exact.
        alone = self._device.type == "cpu" or config.pad_token_id is None
        self._batcher = Batcher(self._rewards, 1 if alone else settings.transformers.batch_size, len)

    async def reward(self, messages: Sequence[Message]) -> float | None:
        ids = self._chat.encode(messages)
        if self._max_model_len is not None and len(ids) > self._max_model_len:
            return None
        return await self._batcher.submit(ids)

    def close(self) -> None:
        self._served = None
        # Modules and their hooks form cycles, which hold the weights until they are collected.
        gc.collect()
        if self._device.type != "cpu":
            torch.accelerator.empty_cache()

    def _rewards(self, texts: Sequence[list[int]]) -> list[float]:
        """One reward a text; padding stands on the right, where a causal model does not look."""
        longest = max(map(len, texts))
        inputs = [ids + [self._pad] * (longest - len(ids)) for ids in texts]
        mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in texts]
        with torch.inference_mode():
            logits = self._served(
                input_ids=torch.tensor(inputs, device=self._device),
                attention_mask=torch.tensor(mask, device=self._device),
            ).logits
        rewards: list[float] = logits[:, 0].float().tolist()
        return rewards


def _load(path: str, model: ModelSettings) -> Any:
    source = {"revision": model.revision or "main", "trust_remote_code": model.trust_remote_code}
    with model_errors(path):
        config = AutoConfig.from_pretrained(path, **source)
        if config.num_labels != 1:
            raise ValueError(
                f"{path} has {config.num_labels} labels, and a reward model has one. Name in judge.model a sequence "
                "classifier that was trained with num_labels 1"
            )
        served, report = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=config,
            dtype=getattr(torch, model.dtype),
            use_safetensors=True,
            output_loading_info=True,
            **source,
        )
    if report["missing_keys"]:
        # transformers would fill them in with random numbers.
        raise ValueError(
            f"{path} has no weights for {', '.join(sorted(report['missing_keys'])[:3])}, so it is no reward model. "
            "Name in judge.model a sequence classifier that was trained with num_labels 1"
        )
    return served
