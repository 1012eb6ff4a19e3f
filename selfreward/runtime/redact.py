"""Secrets come from the environment alone, and nothing that is printed shows one. No torch.

What counts as a secret: the value of an environment variable whose name is that of a credential, a text in the
shape of a well-known token, and what stands behind the name of a credential.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, TextIO, cast

MASK = "***"
MIN_LENGTH = 8  # a shorter value of a variable is too likely to be a part of other words

# What a token looks like, by the variable that it is usually read from.
SHAPES = {
    "HF_TOKEN": r"(?:hf_|api_org_)[A-Za-z0-9]{20,}",
    "ANTHROPIC_API_KEY": r"sk-ant-[\w-]{16,}",
    "OPENAI_API_KEY": r"sk-(?:(?:proj|svcacct|admin|or|None)-[\w-]{16,}|[A-Za-z0-9]{20,})",
    "GITHUB_TOKEN": r"gh[opusr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}",
    "GITLAB_TOKEN": r"glpat-[\w.-]{16,}",
    "AWS_ACCESS_KEY_ID": r"(?:AKIA|ASIA)[A-Z0-9]{16}",
    "SLACK_TOKEN": r"xox[a-z]-[\w-]{10,}",
    "GOOGLE_API_KEY": r"AIza[\w-]{30,}",
    "GROQ_API_KEY": r"gsk_[A-Za-z0-9]{20,}",
    "NVIDIA_API_KEY": r"nvapi-[\w-]{20,}",
    "REPLICATE_API_TOKEN": r"r8_[A-Za-z0-9]{20,}",
    "WANDB_API_KEY": r"wandb_v1_\w{20,}",
    "ACCESS_TOKEN": r"(?<![_-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}(?:\.[\w-]*)?",
    "PRIVATE_KEY": r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
}
_SHAPES = {name: re.compile(rf"(?<![A-Za-z0-9])(?:{shape})") for name, shape in SHAPES.items()}
_ANY_SHAPE = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(SHAPES.values())})")
_LOGIN = re.compile(r"(?P<user>://[^\s/:@]*+:)[^\s/@]++(?=@)")
_QUERY = re.compile(r"://[^\s?#]{0,300}+\?([^\s#]{1,2000}+)")
_NAME = re.compile(r"(?<![\w.-])(?P<name>[A-Za-z_-][\w.-]*+)[\"']?\s*(?P<sign>[=:])\s*(?:(?:Bearer|Basic)\s+)?")
_VALUE = re.compile(r"\"[^\"\n]*\"|'[^'\n]*'|[^\s\"',;&)\]}]+")

# Names of credentials, in the form that _snake makes.
_CREDENTIAL = re.compile(
    r"password|passwd|passphrase|secret|credential|api_?key|jwt|bearer"
    r"|(?<![a-z])auth(?:orization|entication)?(?![a-z])"
    r"|(?:access|private|account|ssh|encryption|signing|auth|session|license)_?key"
    r"|(?:access|auth|api|hf|hub|bearer|refresh|session|bot)_?tokens?(?![a-z])"
)
# A token that stands for itself, and none of those that a text is made of.
_TOKEN = re.compile(
    r"(?<![a-z])(?<!eos_)(?<!bos_)(?<!pad_)(?<!unk_)(?<!sep_)(?<!cls_)(?<!mask_)(?<!image_)(?<!audio_)(?<!video_)"
    r"(?<!start_)(?<!end_)(?<!stop_)(?<!special_)(?<!per_)(?<!num_)(?<!max_)(?<!min_)(?<!new_)(?<!first_)(?<!last_)"
    r"token$"
)
# What is said about a credential, rather than the credential.
_ABOUT = re.compile(r"_(?:env|file|files|path|dir|sock|type|method|mode|url|host|user|name|enabled|timeout)$")
_KEY_VARIABLE = re.compile(r"_(?:key|pwd|pat)$")


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", name).lower()


@lru_cache(maxsize=1024)
def is_credential(name: str) -> bool:
    """Whether a name is that of a credential: ``api_key`` and ``hub_token``, but not ``api_key_env``, ``eos_token``."""
    words = _snake(name)
    return not _ABOUT.search(words) and bool(_CREDENTIAL.search(words) or _TOKEN.search(words))


@lru_cache(maxsize=1024)
def _is_credential_variable(name: str) -> bool:
    return is_credential(name) or bool(_KEY_VARIABLE.search(_snake(name)))


def _environment() -> dict[str, str]:
    """The variables that hold secrets."""
    found = {name: value.strip() for name, value in os.environ.items() if _is_credential_variable(name)}
    return {name: value for name, value in found.items() if len(value) >= MIN_LENGTH}


def is_token(text: str) -> bool:
    """Whether a text holds a secret in a form that can be known: a well-known token, or a variable's value."""
    return bool(_ANY_SHAPE.search(text)) or any(value in text for value in _environment().values())


def redact(text: str) -> str:
    """The text with ``***`` in place of every secret in it."""
    for value in sorted(_environment().values(), key=len, reverse=True):
        text = _written(value).sub(MASK, text)
    return _mask_named(_LOGIN.sub(rf"\g<user>{MASK}", _ANY_SHAPE.sub(MASK, text)))


@lru_cache(maxsize=64)
def _written(value: str) -> re.Pattern[str]:
    """A value as it is, as Python and JSON escape it however often, as URLs have it, and each long line of it."""
    lines = [line.strip() for line in value.splitlines()]
    texts = [value, *(line for line in lines if len(line) >= MIN_LENGTH)]
    return re.compile("|".join("".join(map(_written_character, text)) for text in texts))


def _written_character(character: str) -> str:
    plain = re.escape(character)
    if character.isascii() and character.isalnum():
        return plain
    return rf"(?:{plain}|\\+(?:{plain}|n|r|t|[xuU][0-9a-fA-F]{{2,8}})|\\+|(?:%[0-9a-fA-F]{{2}})+)"


def _mask_named(text: str) -> str:
    """Masks what stands behind the name of a credential."""
    kept, end = [], 0
    for found in _NAME.finditer(text):
        if found.start() < end or not is_credential(found["name"]):
            continue
        value = _VALUE.match(text, found.end())
        # `token: the last one` is a sentence.
        if value is None or (found["sign"] == ":" and value[0].strip(".:!?").isalpha()):
            continue
        kept += [text[end : found.end()], MASK]
        end = value.end()
    return "".join([*kept, text[end:]])


def complaints(settings: dict[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """The secrets in parsed settings: the key of each, with what is wrong and the variable to use instead.

    No message holds a value; a key may, and is to be redacted.
    """
    known = _environment()
    for key, value in _leaves(settings):
        if message := _complaint(key, value, known):
            yield key, message


def refuse(arguments: Iterable[str]) -> None:
    """Raises ValueError if a secret stands on the command line, which every user of the machine can read."""
    known = _environment()
    for number, text in enumerate(arguments, start=1):
        if message := _complaint((), text, known):
            raise ValueError(f"argument {number}: {message}")


def _leaves(value: Any, key: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, dict | list) and value:
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, (*key, name))
    else:
        yield key, value


def _complaint(key: tuple[str | int, ...], value: Any, known: dict[str, str]) -> str | None:
    names = [str(name) for name in key]
    for text in (*names, *([value] if isinstance(value, str) else [])):
        for variable, secret in known.items():
            if secret in text:
                return f"the value of the environment variable {variable} stands here. Take it out: {_READ}"
        for variable, shape in _SHAPES.items():
            if shape.search(text):
                return f"what looks like a key stands here ({MASK}). Export {variable} and take it out: {_READ}"
        if any(is_credential(part.partition("=")[0]) for query in _QUERY.findall(text) for part in query.split("&")):
            return f"a URL with a key stands here ({MASK}). Export OPENAI_API_KEY and take it out: {_READ}"
        if _LOGIN.search(text):
            return f"a URL with a password stands here ({MASK}). Export OPENAI_API_KEY and take it out: {_READ}"
    if value in (None, "", [], {}) or isinstance(value, bool) or not any(map(is_credential, names)):
        return None
    return f"a key stands here ({MASK}). {_way_out(names)}: {_READ}"


_READ = "keys come from the environment alone"


def _way_out(names: list[str]) -> str:
    if names[-2:] == ["openai", "api_key"]:
        return "Export OPENAI_API_KEY, or name another variable in openai.api_key_env"
    own = next(name for name in reversed(names) if is_credential(name))
    variable = "HF_TOKEN" if re.fullmatch(r"(hf|hub)_?token|token", own) else _snake(own).upper()
    return f"Export {variable} and take it out"


class _Redacted:
    """A text stream whose lines pass through :func:`redact`; all but writing is the stream's own.

    A line is held back until it ends or is flushed, so that a secret written in parts is whole when it is looked
    for. Each thread has a line of its own: no lock that a fork could leave taken, no mixture of two lines.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._line = threading.local()

    def write(self, text: str) -> int:
        held = getattr(self._line, "text", "") + text
        end = held.rfind("\n") + 1
        self._line.text = held[end:]
        if end:
            self._stream.write(redact(held[:end]))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        held, self._line.text = getattr(self._line, "text", ""), ""
        if held:
            self._stream.write(redact(held))
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def install() -> None:
    """From now on what Python writes to standard output and error holds no secret, whichever library writes it.

    What other programs and C code write to the same files does not pass through here.
    """
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), _Redacted):
            stream = cast(TextIO, _Redacted(getattr(sys, name)))
            setattr(sys, name, stream)
            # While Python ends, it takes these again, and what is deleted last may still write: here, or not at all.
            setattr(sys, f"__{name}__", stream)
