"""From chat messages to token ids by the model's own template. No torch.

The text of a message is data. A chat template is rendered to one string, and tokenizing that string
would turn the characters ``<|im_end|>`` inside a response into the control token that ends a turn.
Here such text always stays text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfreward.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfreward.config import ModelSettings


def load_tokenizer(path: str, settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub model, with the recipe's chat template if it names one.

    Raises:
        ValueError: there is no chat template, or no EOS token to end a response with.
    """
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    revision = None if Path(path).is_dir() else settings.revision
    with model_errors(path):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=settings.trust_remote_code
        )
    if settings.chat_template is not None:
        tokenizer.chat_template = settings.chat_template.read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {path} has no chat template. Set model.chat_template to a Jinja file: "
            "the template that the model was tuned with"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {path} has no EOS token, so no response could end. Set eos_token in it")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    except TemplateError as error:
        raise ValueError(f"the chat template of {path} can't be rendered: {error}. Mend model.chat_template") from error
    return tokenizer


@contextmanager
def model_errors(path: str) -> Iterator[None]:
    """Turns a model that can't be found or read into a ValueError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"model.path: {path} is no folder here, nor a hub model that can be loaded: {reason} "
            "Give a folder, or sign in for a gated model"
        ) from error


def fits(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], options: dict[str, Any]) -> bool:
    """Whether a conversation fits into the ``max_length`` of trainer options, TRL's default being 1024 tokens.

    TRL would cut a longer one, and the model would learn to stop in the middle of a sentence.
    """
    limit = options.get("max_length", 1024)
    ids: Any = tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=False)
    return limit is None or len(ids) <= limit


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The added tokens that steer a model: those marked special, and those that the chat template writes.

    Other added tokens, such as the HTML tags of some vocabularies, are plain text that is one token.
    """
    template = str(tokenizer.chat_template)
    added = tokenizer.added_tokens_decoder.values()
    return {t.content for t in added if t.content.strip() and (t.special or t.content in template)}


class ChatEncoder:
    """Encodes conversations for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        tokens = sorted(control_tokens(tokenizer), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, tokens)) or r"(?!)", re.IGNORECASE)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids up to the point where the assistant speaks.

        Without control tokens in the messages, these are exactly the ids of ``apply_chat_template``. With
        them, the messages are encoded in pieces, none of which holds a whole control token.
        """
        if any(self.has_control_text(message["content"]) for message in messages):
            return self._encode_apart(messages)
        ids: Any = self.tokenizer.apply_chat_template(
            list(messages), tokenize=True, add_generation_prompt=True, return_dict=False
        )
        return list(ids)

    def has_control_text(self, text: str) -> bool:
        """Whether a text holds the characters of one of the tokenizer's control tokens."""
        return self._control.search(text) is not None

    def _encode_apart(self, messages: Sequence[Message]) -> list[int]:
        stand_ins = [
            {**message, "content": _surround(message["content"], f"\ue000{place}\ue001")}
            for place, message in enumerate(messages)
        ]
        rendered = str(self.tokenizer.apply_chat_template(stand_ins, tokenize=False, add_generation_prompt=True))
        ids: list[int] = []
        for place, part in enumerate(re.split("\ue000(\\d+)\ue001", rendered)):
            pieces = self._cut(messages[int(part)]["content"].strip()) if place % 2 else [part]
            for piece in pieces:
                ids += self._continue(piece) if ids else self._ids(piece)
        return ids

    def _ids(self, text: str) -> list[int]:
        ids: Any = self.tokenizer.encode(text, add_special_tokens=False)
        return list(ids)

    def _continue(self, text: str) -> list[int]:
        """Ids of a text that goes on after another: some tokenizers, as Llama 2's, start every text with a space."""
        before, both = self._ids("\n"), self._ids("\n" + text)
        # A merge of the two would take an id away from the text.
        return both[len(before) :] if both[: len(before)] == before else self._ids(text)

    def _cut(self, text: str) -> list[str]:
        """Cuts a text behind the first character of each control token, as one may hold another."""
        pieces, start = [], 0
        while match := self._control.search(text, start):
            pieces.append(text[start : match.start() + 1])
            start = match.start() + 1
        return [*pieces, text[start:]]


def _surround(content: str, stand_in: str) -> str:
    """The stand-in between the content's own leading and trailing white space, which templates may trim."""
    body = content.strip()
    start = content.find(body)
    return content[:start] + stand_in + content[start + len(body) :]
