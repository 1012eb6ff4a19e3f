"""From chat messages to token ids by the model's own template. No torch.

The text of a message is data. A chat template is rendered to one string, and tokenizing that string
would turn the characters ``<|im_end|>`` inside a response into the control token that ends a turn.
Here such text always stays text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfreward.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfreward.recipe.engine_settings import ModelSettings


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


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The added tokens that steer a model, by id: those marked special, and those that the chat template writes.

    Other added tokens, such as the HTML tags of some vocabularies, are plain text that is one token.
    """
    template, written = str(tokenizer.chat_template), _written(tokenizer)
    return {
        token: added.content
        for token, added in tokenizer.added_tokens_decoder.items()
        if added.content.strip() and (added.special or added.content in template or token in written)
    }


class NotAToken(ValueError):
    """A text that a model writes in several tokens, or in none."""


class ChatEncoder:
    """Encodes conversations for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        tokens = control_tokens(tokenizer)
        self._control = _any_of(tokens.values())
        # What a vocabulary has no token for is plain text, unless the unknown token ends or begins texts as well.
        unknown = {tokenizer.unk_token_id} - {tokenizer.bos_token_id, tokenizer.eos_token_id}
        self._control_ids = tokens.keys() - unknown
        self._line_break = self._ids("\n")
        self._skeletons: dict[tuple[tuple[str, str], ...], list[int]] = {}

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids up to the point where the assistant speaks.

        These are the ids of ``apply_chat_template``, if they hold no control token but the template's own. Else the
        messages are encoded in pieces, so small that none becomes a control token. A character that is one by itself
        is left out, and half a surrogate pair, which no tokenizer takes, is U+FFFD.
        """
        messages = [{**message, "content": _encodable(message["content"])} for message in messages]
        if not any(self._control.search(message["content"]) for message in messages):
            ids: Any = self.tokenizer.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=False
            )
            # Normalizers make control tokens of characters that only look like theirs.
            if self._control_of(ids) == self._skeleton(messages):
                return list(ids)
        return self._encode_apart(messages)

    def has_control_text(self, text: str) -> bool:
        """Whether a text holds the characters of one of the tokenizer's control tokens, or would become one."""
        return self._control.search(text) is not None or bool(self._control_of(self._ids(_encodable(text))))

    def _control_of(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token in self._control_ids]

    def _skeleton(self, messages: Sequence[Message]) -> list[int]:
        """The control tokens that the template writes around such messages."""
        key = tuple((message["role"], "a" if message["content"].strip() else "") for message in messages)
        if key not in self._skeletons:
            parts = _around_texts(self.tokenizer, [{"role": role, "content": content} for role, content in key])
            self._skeletons[key] = [token for part in parts[::2] for token in self._control_of(self._ids(part))]
        return self._skeletons[key]

    def _encode_apart(self, messages: Sequence[Message]) -> list[int]:
        ids: list[int] = []
        for place, part in enumerate(_around_texts(self.tokenizer, messages)):
            ids += self._text_ids(part, bool(ids)) if place % 2 else self._piece_ids(part, bool(ids))
        return ids

    def _text_ids(self, text: str, goes_on: bool = True) -> list[int]:
        """Ids of a text of which nothing becomes a control token."""
        ids: list[int] = []
        for piece in self._cut(text):
            ids += self._plain_ids(piece, goes_on or bool(ids))
        return ids

    def _plain_ids(self, piece: str, goes_on: bool) -> list[int]:
        """Ids of a piece, which is halved as long as there is a control token among them."""
        ids = self._piece_ids(piece, goes_on)
        if not self._control_of(ids):
            return ids
        if len(piece) == 1:
            return []
        middle = len(piece) // 2
        ids = self._plain_ids(piece[:middle], goes_on)
        return ids + self._plain_ids(piece[middle:], goes_on or bool(ids))

    def _cut(self, text: str) -> list[str]:
        """Cuts a text behind the first character of each control token, as one may hold another."""
        pieces, start = [], 0
        while match := self._control.search(text, start):
            pieces.append(text[start : match.start() + 1])
            start = match.start() + 1
        return [*pieces, text[start:]]

    def _piece_ids(self, text: str, goes_on: bool) -> list[int]:
        """Ids of a text that may go on after another: some tokenizers, as Llama 2's, start every text with a space."""
        if not goes_on:
            return self._ids(text)
        before, both = self._line_break, self._ids("\n" + text)
        # A merge of the two would take an id away from the text.
        return both[len(before) :] if both[: len(before)] == before else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        ids: Any = self.tokenizer.encode(text, add_special_tokens=False)
        return list(ids)

    def begin(self, messages: Sequence[Message], prefix: str) -> list[int]:
        """Token ids up to the end of a beginning of the assistant's answer, which is data as the messages are."""
        return self.encode(messages) + self._text_ids(_encodable(prefix))

    def option_ids(self, option: str) -> list[int]:
        """All tokens whose text is the option, with or without white space in front; no two options share one.

        Raises:
            NotAToken: there is none.
        """
        if option not in self._tokens:
            tokens = self.tokenizer.convert_ids_to_tokens(self._piece_ids(option, True))
            raise NotAToken(
                f"{option!r} is no token of this model, which writes it as {tokens}, and only of a single token can "
                "the probability be told. Choose scores and labels that are one token each, such as 0 to 5 or A and B"
            )
        return self._tokens[option]

    @cached_property
    def _tokens(self) -> dict[str, list[int]]:
        """The ids of all tokens but control tokens, by their text without the white space in front.

        The ways to encode a text are fewer: a vocabulary may hold ``4`` behind a space, a tab, or as a byte.
        """
        texts = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))], skip_special_tokens=True)
        ids: dict[str, list[int]] = {}
        for token, text in enumerate(texts):
            if token not in self._control_ids:
                ids.setdefault(text.lstrip(), []).append(token)
        ids.pop("", None)
        return ids


def _written(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """All ids that the template writes around messages."""
    from jinja2 import TemplateError

    written: set[int] = set()
    for roles in (("user", "assistant", "user"), ("system", "user")):
        try:
            parts = _around_texts(tokenizer, [{"role": role, "content": "a"} for role in roles])
        except TemplateError:  # Some templates refuse system messages.
            continue
        for part in parts[::2]:
            written.update(tokenizer.encode(part, add_special_tokens=False))
    return written


def _around_texts(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[str]:
    """A rendered conversation, cut where the texts of messages begin and end: these are at odd places.

    A template may trim a text, so its white space stands around the stand-in. It may leave out an empty message, so
    that has no stand-in.
    """
    texts = [_divide(message["content"]) for message in messages]
    stand_ins = [
        {**message, "content": f"{before}\ue000{place}\ue001{after}" if body else ""}
        for place, (message, (before, body, after)) in enumerate(zip(messages, texts, strict=True))
    ]
    rendered = str(tokenizer.apply_chat_template(stand_ins, tokenize=False, add_generation_prompt=True))
    parts = re.split("\ue000([0-9]+)\ue001", rendered)
    for place in range(1, len(parts), 2):
        before, parts[place], after = texts[int(parts[place])]
        if parts[place - 1].endswith(before):
            parts[place - 1] = parts[place - 1].removesuffix(before)
            parts[place] = before + parts[place]
        if parts[place + 1].startswith(after):
            parts[place + 1] = parts[place + 1].removeprefix(after)
            parts[place] += after
    return parts


def _divide(text: str) -> tuple[str, str, str]:
    """The white space before a text, the text, and the white space behind it."""
    body = text.strip()
    start = text.find(body)
    return text[:start], body, text[start + len(body) :]


def _encodable(text: str) -> str:
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern for any of the tokens, the longest first, and grouped by first character for speed."""
    groups: dict[str, list[str]] = {}
    for token in sorted(tokens, key=len, reverse=True):
        groups.setdefault(token[0], []).append(re.escape(token[1:]))
    alternatives = (f"{re.escape(first)}(?:{'|'.join(rest)})" for first, rest in groups.items())
    return re.compile("|".join(alternatives) or r"(?!)", re.IGNORECASE)
