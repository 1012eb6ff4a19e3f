"""The records of a run: frozen, typed, with ids derived from their content. No torch.

A stage reads records and writes records, one JSON object a line. ``PreferencePair`` has TRL's
conversational columns (``prompt``, ``chosen``, ``rejected``), so a file of pairs loads straight into
``DPOTrainer``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

Message = dict[str, str]
Preference = Literal["first", "second", "tie"]
FinishReason = Literal["stop", "length", "prompt_too_long"]


def content_id(*parts: Any) -> str:
    """16 hexadecimal digits that depend on nothing but the content."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def derive_seed(*parts: Any) -> int:
    """A 32-bit seed from, for example, (run seed, iteration, prompt id, k).

    It depends on nothing else, so a request has the same seed whatever shares its batch.
    """
    return int(content_id("seed", *parts)[:8], 16)


@dataclass(frozen=True)
class Record:
    """One line of a records file."""

    def to_json(self) -> str:
        """The record as one line, without the line break."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """The record that :meth:`to_json` wrote.

        Raises:
            ValueError: the line is not such a record.
        """
        data = json.loads(line)
        names = {f.name for f in fields(cls)}
        # A run of an older version lacks the fields that came later, all of which have defaults.
        needed = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
        if not isinstance(data, dict) or not needed <= set(data) <= names:
            raise ValueError(f"not a {cls.__name__}: {line[:200]}")
        return cls(**data)


R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Prompt(Record):
    """What the model is asked. ``parent_id`` names the prompt that it was made from, if any."""

    id: str
    messages: list[Message]
    source: str
    parent_id: str | None = None
    reference: str | None = None

    @classmethod
    def make(cls, messages: list[Message], source: str, reference: str | None = None) -> Self:
        return cls(content_id("prompt", messages), messages, source, None, reference)

    @property
    def text(self) -> str:
        """The conversation as plain text: the one user message, or all of them with their roles."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n\n".join(f"{m['role']}: {m['content']}" for m in self.messages)


@dataclass(frozen=True)
class Response(Record):
    """One of the N responses to a prompt; ``seed`` is its request's own.

    A revision names the response that it ``revises``, and the principle and critique that led to it.
    """

    id: str
    prompt_id: str
    k: int
    text: str
    finish_reason: FinishReason
    num_tokens: int
    seed: int
    model: str
    revises: str | None = None
    principle: str | None = None
    critique: str | None = None


@dataclass(frozen=True)
class Judgement(Record):
    """One judge call: a score, a preference or an error, and never two of them. Unscored is a value, not a number.

    ``subject_ids`` names the response that was scored, or the two that were compared in the order in which the judge
    saw them; the meta-judge compares judgements. ``preference`` is one of the two places, or a tie. ``aspect`` is the
    criterion, where there are several. ``figures`` are what else was measured, such as the probability that was not
    on any score. ``reference`` is the answer that the judge was shown beside, if any.
    """

    id: str
    prompt_id: str
    subject_ids: list[str]
    judge: str
    vote: int
    raw_text: str
    score: float | None
    error: str | None
    num_tokens: int
    seed: int
    model: str
    preference: Preference | None = None
    aspect: str | None = None
    figures: dict[str, float] = field(default_factory=dict)
    reference: str | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.score, self.error, self.preference) if value is not None]
        assert len(given) == 1, "a judgement is a score, a preference or an error"


@dataclass(frozen=True)
class PreferencePair(Record):
    """A pair in TRL's conversational format, with where it came from.

    ``consistency`` is how far M_t and M_{t-1} rank the prompt's responses alike, from 0 to 1, where that is asked.
    A judge pair's two ids are those of judgements, and its scores the meta-judge's.
    """

    id: str
    prompt_id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    chosen_id: str
    rejected_id: str
    score_chosen: float
    score_rejected: float
    consistency: float | None = None


@dataclass(frozen=True)
class Rejection(Record):
    """A prompt without a pair, and the name of the reason."""

    prompt_id: str
    reason: str


@dataclass(frozen=True)
class ImplicitReward(Record):
    """The log-probabilities, in nats, of a response under M_t and M_{t-1}; their difference is its implicit reward.

    Both are None for a response that does not fit, or where the engine can't tell.
    """

    response_id: str
    logprob: float | None
    previous_logprob: float | None


@dataclass(frozen=True)
class Measurement(Record):
    """One response to a held-out prompt. ``k`` is None for the greedy one; ``gold`` is the scorer's."""

    prompt_id: str
    k: int | None
    text: str
    finish_reason: FinishReason
    num_tokens: int
    gold: float | None


@dataclass(frozen=True)
class Agreement(Record):
    """The judge's score of a held-out graded response beside its label."""

    prompt: str
    response: str
    label: float
    score: float | None
    errors: list[str] = field(default_factory=list)


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Writes one record a line and returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(record.to_json() + "\n")
            count += 1
    return count


def read_records(path: Path, kind: type[R]) -> Iterator[R]:
    """The records of a file in their order."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield kind.from_json(line)


def by_prompt(responses: Iterable[Response]) -> dict[str, list[Response]]:
    """Responses grouped by prompt id, each group in its order."""
    groups: dict[str, list[Response]] = {}
    for response in responses:
        groups.setdefault(response.prompt_id, []).append(response)
    return groups
