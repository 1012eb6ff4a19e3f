"""Log-probabilities of a few texts under the models of a training (:mod:`selfreward.serving.weight_check`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from selfreward.records import Message
from selfreward.serving.weight_check import LogProbs
from selfreward.training.finite import LOWER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_TEXTS = 4
NUM_IDS = 256


def probe_ids(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]], options: dict[str, Any]
) -> list[list[int]]:
    """The first conversations as token ids; of a long one the end, where the completion stands that was trained.

    Args:
        tokenizer: of the model before the training.
        conversations: prompts with their completions.
        options: vLLM's, whose ``max_model_len`` must hold a text and one more token.
    """
    limit = options.get("max_model_len")
    longest = min(NUM_IDS, limit - 1) if isinstance(limit, int) and limit > 0 else NUM_IDS
    texts: list[list[int]] = []
    for messages in conversations[:NUM_TEXTS]:
        ids: Any = tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=False)
        # Models that start every text with a BOS token are out of their depth without it.
        texts.append(ids if len(ids) <= longest else [ids[0], *ids[1 - longest :]])
    return texts


@torch.no_grad()
def log_probs(model: torch.nn.Module, texts: Sequence[Sequence[int]]) -> LogProbs:
    """The log-probability of each token but the first of each text, in nats.

    All texts go through the model at once, as each pass may read its weights from the disk.

    Raises:
        ValueError: one of them is not a number.
    """
    tokens = pad_sequence([torch.tensor(ids) for ids in texts], batch_first=True)
    # What stands behind a text is seen by none of its tokens.
    mask = pad_sequence([torch.ones(len(ids), dtype=torch.long) for ids in texts], batch_first=True)
    logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    figures: list[list[float]] = []
    for text, ids, given in zip(texts, tokens, logits, strict=True):
        end = len(text)
        chosen = given[: end - 1].float().log_softmax(-1).gather(-1, ids[1:end, None]).squeeze(-1)
        if not bool(chosen.isfinite().all()):
            raise ValueError(f"the trained model gives log-probabilities that are not numbers. {LOWER}")
        figures.append(chosen.tolist())
    return figures
