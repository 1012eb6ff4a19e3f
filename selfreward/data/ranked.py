"""Reading several answers to one prompt that people have ranked.

Rows of three shapes are told by their keys: a tree of OpenAssistant (arXiv 2304.07327), its messages nested in one
another; a single message of such trees; and an answer of a plain table, with ``prompt``, ``response``, and ``rank`` (0
is the best) or ``score`` (higher is better). Of trees the first turn is read.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfreward.prompts.row_files import BadRow, Row
from selfreward.prompts.rows import Rows, brief, mapped, optional_text, text_of
from selfreward.recipe.prompt_settings import RowSettings
from selfreward.records import content_id

ROLES = ("prompter", "assistant")
MAX_RANK = 1e15  # of ranks and scores; beyond it neighbours can't be told apart


@dataclass(frozen=True)
class RankedPrompt:
    """A prompt with different answers, each with its rank, the best (0) first."""

    prompt: str
    answers: Sequence[tuple[str, int]]
    license: str | None = None

    @property
    def best(self) -> str | None:
        """The first answer of rank 0; None where that one is missing."""
        return next((text for text, rank in self.answers if rank == 0), None)


def prompt_key(prompt: str) -> str:
    """The same for prompts that are nearly the same: their words, in whatever case and with whatever punctuation."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", prompt).casefold())
    return " ".join(words) or prompt.strip()


def read_ranked(settings: RowSettings, lang: str | None) -> tuple[list[RankedPrompt], dict[str, int]]:
    """The prompts that have at least one ranked answer, in their order.

    Args:
        settings: the rows.
        lang: the language of prompt and answers, by the rows' own ``lang``; None for all.

    Returns:
        The prompts; and by reason how many rows were bad, how many prompts were left out, and how many answers
        (``answers_...``).

    Raises:
        ValueError: bad rows with ``on_bad_line: error``, each named, or no ranked answer at all.
    """
    rows, reader = Rows(settings), _Reader(lang, settings)

    def take(row: Row) -> list[Row]:
        reader.add(mapped(row, settings.columns))
        return [row]

    rows.finish(sum(1 for _ in rows.made(take)))
    ranked = reader.ranked()
    skipped = dict(Counter(rows.skipped) + reader.left_out)
    if not ranked:
        wanted = f"a ranked answer in {lang}" if lang else "a ranked answer"
        raise ValueError(f"{rows.name} has no prompt with {wanted}. Left out: {skipped or 'nothing'}")
    return ranked, skipped


@dataclass(frozen=True)
class _Message:
    """A message of a tree; ``flaw`` is why it is not to be used, if there is a reason."""

    text: str
    role: str
    rank: int | None
    flaw: str | None

    @classmethod
    def of(cls, row: Any, lang: str | None) -> _Message:
        if not isinstance(row, dict) or row.get("role") not in ROLES or not isinstance(row.get("text"), str):
            raise BadRow("malformed", f"{brief(row)} is no message with `text` and a `role`, {' or '.join(ROLES)}")
        flaws = {
            "deleted": row.get("deleted"),
            "failed_review": row.get("review_result") is False,
            "synthetic": row.get("synthetic"),
            "language": lang is not None and row.get("lang") != lang,
            "empty": not row["text"].strip(),
        }
        return cls(row["text"], row["role"], _rank(row), next((name for name, has in flaws.items() if has), None))


@dataclass(frozen=True)
class _Turn:
    """The root of a tree and the replies to it."""

    root: _Message
    replies: list[_Message]


class _Reader:
    """Takes rows of any shape, and knows what they amount to once all are there."""

    def __init__(self, lang: str | None, settings: RowSettings) -> None:
        self._lang, self._settings = lang, settings
        self._turns: dict[str, _Turn] = {}
        self._messages: set[str] = set()
        self._replies: list[tuple[str, _Message]] = []
        self._table: dict[str, dict[str, tuple[str, float]]] = {}
        self._licenses: dict[str, str | None] = {}  # by prompt
        self.left_out: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        """Raises BadRow for one that is none of the shapes, or was there before."""
        if isinstance(row.get("prompt"), dict):
            self._add_tree(row["prompt"])
            self._note(row["prompt"]["text"], row)
        elif "message_id" in row:
            self._add_message(row)
        else:
            self._add_answer(row)

    def ranked(self) -> list[RankedPrompt]:
        """All prompts with ranked answers; what is left out is counted."""
        for parent, message in self._replies:
            if parent in self._turns:
                self._turns[parent].replies.append(message)
            elif parent not in self._messages:
                self.left_out["answers_orphaned"] += 1
        turns = [self._of_turn(turn) for turn in self._turns.values()]
        every = [each for each in turns if each] + [_of_table(*item) for item in self._table.items()]
        return [replace(each, license=self._licenses.get(each.prompt)) for each in every]

    def _add_tree(self, root: Row) -> None:
        message, replies = _Message.of(root, self._lang), root.get("replies") or []
        if not isinstance(replies, list):
            raise BadRow("malformed", f"`replies` is {brief(replies)}, and a list of messages is wanted")
        turn = _Turn(message, [_Message.of(reply, self._lang) for reply in replies])
        self._add_turn(str(root.get("message_id") or content_id(message.text, *(m.text for m in turn.replies))), turn)

    def _add_message(self, row: Row) -> None:
        message, parent = _Message.of(row, self._lang), row.get("parent_id")
        name = str(row["message_id"])
        if name in self._messages:
            raise BadRow("duplicate", f"message_id {name} was there before")
        if parent is None:
            self._add_turn(name, _Turn(message, []))
            self._note(message.text, row)
        elif message.role == "assistant":
            self._replies.append((str(parent), message))
        self._messages.add(name)

    def _add_turn(self, name: str, turn: _Turn) -> None:
        if turn.root.role != "prompter":
            raise BadRow("malformed", f"a tree begins with the prompter, and this one with the {turn.root.role}")
        if turn.root.flaw is None:
            self._check_length(turn.root.text)
        if name in self._turns:
            raise BadRow("duplicate", f"the tree {name} was there before")
        self._turns[name] = turn

    def _add_answer(self, row: Row) -> None:
        prompt, response = text_of(row, "prompt"), text_of(row, "response")
        self._check_length(prompt)
        kinds = [kind for kind in ("rank", "score") if row.get(kind) is not None]
        if len(kinds) != 1:
            raise BadRow(
                "malformed", f"one of `rank` and `score` is wanted, and there is {' and '.join(kinds) or 'none'}"
            )
        if self._lang is not None and "lang" not in row:
            raise BadRow("malformed", f"there is no `lang`, and rows in {self._lang} are wanted")
        [kind] = kinds
        value = _number(row, kind) if kind == "score" else _rank(row)
        if value is None:
            raise BadRow("malformed", "`rank` is no number")
        if self._lang not in (None, row.get("lang")):
            self.left_out["answers_language"] += 1
            return
        answers = self._table.setdefault(prompt, {})
        if response in answers:
            raise BadRow("duplicate", "the same answer to the same prompt was there before")
        if any(other != kind for other, _ in answers.values()):
            raise BadRow("malformed", f"there is a {kind}, and other answers to the same prompt have the other measure")
        answers[response] = kind, value
        self._note(prompt, row)

    def _note(self, prompt: str, row: Row) -> None:
        self._licenses.setdefault(prompt, optional_text(row, "license") or self._settings.license)

    def _check_length(self, prompt: str) -> None:
        if len(prompt) > self._settings.max_characters:
            raise BadRow("over_long", f"{len(prompt)} characters, more than {self._settings.max_characters}")

    def _of_turn(self, turn: _Turn) -> RankedPrompt | None:
        if turn.root.flaw is not None:
            self.left_out[turn.root.flaw] += 1
            return None
        answers: dict[str, int] = {}
        for reply in sorted(turn.replies, key=lambda m: (m.rank is None, m.rank)):
            flaw = reply.flaw or ("unranked" if reply.rank is None else "duplicate" if reply.text in answers else None)
            if reply.role != "assistant" or flaw is not None:
                self.left_out[f"answers_{flaw or 'role'}"] += 1
            elif reply.rank is not None:
                answers[reply.text] = reply.rank
        if not answers:
            self.left_out["unranked"] += 1
            return None
        return RankedPrompt(turn.root.text, tuple(answers.items()))


def _of_table(prompt: str, answers: dict[str, tuple[str, float]]) -> RankedPrompt:
    """Scores become ranks: an answer's is the number of different scores above its own."""
    scores = sorted({value for kind, value in answers.values() if kind == "score"}, reverse=True)
    place = {score: place for place, score in enumerate(scores)}
    ranks = {text: place[v] if kind == "score" else int(v) for text, (kind, v) in answers.items()}
    return RankedPrompt(prompt, tuple(sorted(ranks.items(), key=lambda item: item[1])))


def _rank(row: Row) -> int | None:
    """A rank, which Parquet gives as a fraction where others have none."""
    if row.get("rank") is None or row["rank"] != row["rank"]:
        return None
    rank = _number(row, "rank")
    if rank < 0 or not rank.is_integer():
        raise BadRow("malformed", f"`rank` is {brief(row['rank'])}, and 0, 1, 2 and so on are wanted")
    return int(rank)


def _number(row: Row, name: str) -> float:
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not -MAX_RANK < value < MAX_RANK:
        raise BadRow("malformed", f"`{name}` is {brief(value)}, and a number is wanted")
    return float(value)
