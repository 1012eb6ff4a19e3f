"""Verifiers: what can be told of a response without a model, as a share from 0 to 1, or None to abstain."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from selfreward.recipe.base import PositiveInt, Settings
from selfreward.records import Prompt

# No exponent and no endless digits: a model writes these, and "1e999999999" would fill the memory.
_NUMBER = re.compile(
    r"(?<![\w.,])(?P<sign>[-+]?)\$?"
    r"(?P<digits>([0-9]{1,3}(,[0-9]{3})+|[0-9]{1,100})(\.[0-9]{1,100})?)(?!\w|[.,][0-9])"
)
_ANNOUNCED = re.compile(r"(?:\banswer(?: is\b|[*_ ]*:)|####)[ \t]*:?([^\n]*\S)", re.IGNORECASE)
_FENCED = re.compile(r"^```[\w-]*[ \t]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def exact_match(prompt: Prompt, response: str, extract: re.Pattern[str] | None = None) -> bool | None:
    r"""Whether the final answer is the prompt's reference.

    The final answer is what stands in the last ``\boxed{}``, else behind the last ``####``, "answer is" or "answer:",
    else on the last line; of the reference, likewise. Case, white space, Markdown around it and a full stop don't
    count. Where the reference is a number, the answer must hold that number and no other: 1,000 = $1000 = 1000.0
    apples, and of ``3 + 4 = 7`` what stands behind the sign.

    Args:
        prompt: without a reference, there is nothing to tell.
        response: what was answered.
        extract: what finds the final answer in a response instead: its last match, or the first group of that.
    """
    if prompt.reference is None:
        return None
    answer = final_answer(response) if extract is None else _last_match(extract, response)
    wanted = _plain(final_answer(prompt.reference))
    number = _NUMBER.fullmatch(wanted)
    return _plain(answer) == wanted if number is None else _only_number(answer) == _value(number)


def regex(prompt: Prompt, response: str, pattern: re.Pattern[str], full: bool = False) -> bool:
    """Whether a pattern is found in a response, or, with ``full``, is all of it but white space around.

    Flags stand within the pattern, such as ``(?i)``. Nested repeats such as ``(a+)+`` can take longer than anyone can
    wait, on a text that a model is free to write.
    """
    found = pattern.fullmatch(response.strip()) if full else pattern.search(response)
    return found is not None


def _schema(schema: dict[str, Any]) -> Any:
    try:
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import validator_for
        from referencing import Registry
    except ModuleNotFoundError as error:
        raise ValueError(f"json_schema needs the package {error.name}: pip install jsonschema") from None
    kind = validator_for(schema)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"no JSON schema: at {error.json_path}, {error.message}. Mend it") from None
    # Its own registry would fetch a $ref from the network.
    return kind(schema, registry=Registry())


def json_schema(prompt: Prompt, response: str, schema: Annotated[Any, AfterValidator(_schema)]) -> bool:
    """Whether a response is JSON that fits a schema; where it has fenced blocks, whether the last of them does."""
    value = _read_json(response)
    try:
        return value is not None and bool(schema.is_valid(value[0]))
    except RecursionError:  # nested deeper than Python can follow
        return False


Text = Annotated[str, Field(min_length=1)]


class Checks(Settings):
    """Instructions of which a program can tell whether they are kept (as in IFEval, arXiv 2311.07911)."""

    min_words: PositiveInt | None = None
    max_words: PositiveInt | None = None
    min_sentences: PositiveInt | None = None
    max_sentences: PositiveInt | None = None
    bullets: Annotated[int, Field(ge=0)] | None = None
    starts_with: Text | None = None
    ends_with: Text | None = None
    no_commas: Literal[True] | None = None
    case: Literal["lower", "upper"] | None = None
    json_only: Literal[True] | None = None
    must_include: list[Text] = Field(default_factory=list)
    must_not_include: list[Text] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.kept(""):
            raise ValueError(f"nothing is checked. Name at least one of {', '.join(type(self).model_fields)}")
        return self

    def kept(self, response: str) -> list[bool]:
        """Whether each check is kept; each text to include or to leave out, in any case, is a check of its own."""
        text = response.strip()
        lower, num_words = text.lower(), len(text.split())
        num_sentences = len(re.findall(r"[.!?]+(?=\s|$)", text))
        kept = {
            "min_words": num_words >= (self.min_words or 0),
            "max_words": num_words <= (self.max_words or 0),
            "min_sentences": num_sentences >= (self.min_sentences or 0),
            "max_sentences": num_sentences <= (self.max_sentences or 0),
            "bullets": len(re.findall(r"^[ \t]*[-*•][ \t]+\S", text, re.MULTILINE)) == self.bullets,
            "starts_with": text.startswith(self.starts_with or ""),
            "ends_with": text.endswith(self.ends_with or ""),
            "no_commas": "," not in text,
            "case": text == (text.upper() if self.case == "upper" else lower),
            "json_only": _read_json(text) is not None,
        }
        asked = [is_kept for name, is_kept in kept.items() if getattr(self, name) is not None]
        asked += [part.lower() in lower for part in self.must_include]
        return asked + [part.lower() not in lower for part in self.must_not_include]


def instructions(prompt: Prompt, response: str, checks: Checks) -> float:
    """The share of the checks that a response keeps; one without text keeps none."""
    kept = checks.kept(response)
    return sum(kept) / len(kept) if response.strip() else 0.0


def final_answer(text: str) -> str:
    """The part of a text that answers, as :func:`exact_match` finds it."""
    if boxed := _boxed(text):
        return boxed
    announced: list[str] = _ANNOUNCED.findall(text)
    lines = text.strip().splitlines()
    return announced[-1] if announced else lines[-1] if lines else ""


def _boxed(text: str) -> str | None:
    r"""What stands between the braces of the last ``\boxed{}``, which may hold braces itself."""
    _, found, rest = text.rpartition("\\boxed{")
    depth = 1
    for place, character in enumerate(rest if found else ""):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[:place]
    return None


def _last_match(pattern: re.Pattern[str], text: str) -> str:
    matches = list(pattern.finditer(text))
    return (matches[-1][min(1, pattern.groups)] or "") if matches else ""


def _plain(text: str) -> str:
    """A text without what doesn't count in an answer."""
    return " ".join(text.split()).strip(" .:*_`$%\\").casefold()


def _only_number(text: str) -> Decimal | None:
    """The one number of a text, behind the last equals sign if it has one."""
    found = list(_NUMBER.finditer(text.rpartition("=")[2]))
    return _value(found[0]) if len(found) == 1 else None


def _value(number: re.Match[str]) -> Decimal:
    return Decimal(number["sign"] + number["digits"].replace(",", ""))


def _read_json(text: str) -> tuple[Any] | None:
    """The JSON of a text or of its last fenced block, as the one item of a tuple, for null is JSON too."""
    blocks = _FENCED.findall(text)
    try:
        return (json.loads(blocks[-1] if blocks else text, parse_constant=_no_constant),)
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> None:
    raise ValueError(f"Python reads {name}, and it is no JSON")
