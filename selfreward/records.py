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


def json_line(row: Any) -> bytes:
    """A JSON value as a line of a file."""
    return f"{json.dumps(row, ensure_ascii=False, separators=(',', ':'))}\n".encode()


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
    license: str | None = None

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
class Task(Record):
    """An instruction with what belongs to it: what prompt sources make, and a row of an instruction data set.

    ``context`` are the messages before the instruction, such as a system message or earlier turns. ``output`` is None
    where there is no answer; ``reference`` is one that is known to be right. The id is that of the prompt that the
    task is, so that a task that was made from another names it as its ``parent_id``.
    """

    id: str
    instruction: str
    source: str
    input: str = ""
    output: str | None = None
    context: list[Message] = field(default_factory=list)
    parent_id: str | None = None
    reference: str | None = None
    license: str | None = None
    is_classification: bool | None = None
    figures: dict[str, float] = field(default_factory=dict)

    @classmethod
    def make(cls, instruction: str, source: str, input: str = "", **other: Any) -> Self:
        messages = [*other.get("context", []), {"role": "user", "content": _joined(instruction, input)}]
        return cls(content_id("prompt", messages), instruction, source, input, **other)

    @classmethod
    def of(cls, prompt: Prompt) -> Self:
        """The task that a prompt is, its input being part of the instruction."""
        *context, last = prompt.messages
        other = {"parent_id": prompt.parent_id, "reference": prompt.reference, "license": prompt.license}
        return cls(prompt.id, last["content"], prompt.source, context=context, **other)  # type: ignore[arg-type]

    @property
    def messages(self) -> list[Message]:
        """What the model is asked: the input stands below the instruction, an empty line between them."""
        return [*self.context, {"role": "user", "content": _joined(self.instruction, self.input)}]

    @property
    def instruction_id(self) -> str:
        """The id of the instruction by itself, whatever its input."""
        return content_id("prompt", [{"role": "user", "content": self.instruction}])

    @property
    def prompt(self) -> Prompt:
        """The task as it is asked."""
        return Prompt(self.id, self.messages, self.source, self.parent_id, self.reference, self.license)


def _joined(instruction: str, input: str) -> str:
    return f"{instruction}\n\n{input}" if input else instruction


@dataclass(frozen=True)
class Removal(Record):
    """A task that a filter took out: which one, why, and the neighbour that it is too near to, if that is why.

    ``neighbour_id`` is that of the neighbour's instruction by itself, and ``similarity`` in the filter's own measure,
    such as the F measure of ROUGE-L. A task that is ``known`` had passed the filters, and later ones are compared with
    it all the same.
    """

    id: str
    instruction: str
    input: str
    output: str | None
    source: str
    filter: str
    detail: str
    neighbour_id: str | None = None
    neighbour: str | None = None
    similarity: float | None = None
    known: bool = False


@dataclass(frozen=True)
class Difficulty(Record):
    """How an iteration's model did on a prompt: mean and standard deviation of its responses' scores.

    ``solved`` is the share of scored responses that solve it. None where no response was scored.
    """

    prompt_id: str
    iteration: int
    num_scored: int
    mean: float | None
    spread: float | None
    solved: float | None


@dataclass(frozen=True)
class TemplateTrial(Record):
    """A prompt that asks for tasks, as it was measured in an iteration, and whether it was used from then on.

    ``origin`` is the id of the recipe's prompt that it descends from. ``accepted`` is its yield, ``worth`` the product
    of the three measures, each from 0 to 1; None where there was nothing to measure.
    """

    text: str
    origin: str
    accepted: float
    novelty: float | None
    quality: float | None
    worth: float | None
    used: bool = False


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


@dataclass(frozen=True)
class Graded:
    """A row of judging data: a response with its judgement, whose score is the label."""

    prompt: str
    response: str
    judgement: str
    reference: str | None = None
