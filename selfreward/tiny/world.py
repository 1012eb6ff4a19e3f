"""A small world of list-writing tasks in which quality is measured by a program.

An instruction asks for a list under five constraints::

    Name five animals in alphabetical order, without repeats, starting with bear.

and a response earns one point for each constraint it keeps (0 to 5), as in the additive judge of
arXiv 2401.10020. The checker in this module makes the seed data and measures held-out prompts; the
self-rewarding loop itself never calls it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selfreward.records import Prompt

KINDS: dict[str, tuple[str, ...]] = {
    "animals": (
        *("ant", "bear", "camel", "deer", "elk", "fox", "goat", "horse"),
        *("jackal", "koala", "lion", "mouse", "otter", "pig", "rabbit", "seal"),
    ),
    "fruits": (
        *("apple", "banana", "cherry", "date", "fig", "grape", "guava", "kiwi"),
        *("lemon", "mango", "melon", "orange", "papaya", "peach", "pear", "plum"),
    ),
    "colours": (
        *("amber", "beige", "black", "blue", "brown", "crimson", "gold", "green"),
        *("grey", "indigo", "pink", "purple", "red", "teal", "white", "yellow"),
    ),
    "tools": (
        *("anvil", "axe", "chisel", "clamp", "drill", "file", "hammer", "ladder"),
        *("lathe", "mallet", "pliers", "rake", "saw", "shovel", "vise", "wrench"),
    ),
    "trees": (
        *("alder", "ash", "beech", "birch", "cedar", "elm", "fir", "hazel"),
        *("juniper", "larch", "maple", "oak", "palm", "pine", "spruce", "willow"),
    ),
    "birds": (
        *("crow", "dove", "duck", "eagle", "finch", "hawk", "heron", "ibis"),
        *("kite", "lark", "owl", "quail", "raven", "stork", "swan", "wren"),
    ),
}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COUNTS = range(3, 8)
ORDERS = ("alphabetical", "reverse alphabetical")
RULES = ("starting with", "ending with", "including", "leaving out")
CHECKS = ("count", "kind", "order", "unique", "rule")
NUM_HELD_OUT = 1000
PHRASINGS = (
    "Name {count} {kind} in {order} order, without repeats, {rule} {word}.",
    "List {count} {kind}, {rule} {word}, without repeats and in {order} order.",
    "Write down {count} {kind}: {order} order, without repeats, {rule} {word}.",
)


@dataclass(frozen=True)
class Task:
    """One instruction: ``count`` words of a ``kind`` in an ``order``, under a ``rule`` about ``word``."""

    kind: str
    count: int
    order: str
    rule: str
    word: str
    phrasing: int = 0

    @property
    def text(self) -> str:
        """The instruction as a person would write it."""
        fields = {"kind": self.kind, "order": self.order, "rule": self.rule, "word": self.word}
        return PHRASINGS[self.phrasing].format(count=NUMBERS[self.count], **fields)

    def checks(self, response: str) -> tuple[bool, ...]:
        """Which of ``CHECKS`` the response keeps, in their order. An empty response keeps none."""
        words = response.split()
        if not words:
            return (False,) * len(CHECKS)
        rule = {
            "starting with": words[0] == self.word,
            "ending with": words[-1] == self.word,
            "including": self.word in words,
            "leaving out": self.word not in words,
        }[self.rule]
        return (
            len(words) == self.count,
            all(word in KINDS[self.kind] for word in words),
            words == self.in_order(words),
            len(set(words)) == len(words),
            rule,
        )

    def score(self, response: str) -> int:
        """Points from 0 to 5, one for each constraint kept."""
        return sum(self.checks(response))

    def verdict(self, response: str) -> str:
        """The right judgement: for each check what was found and whether it holds, then the score.

        Naming the evidence (the word that is no animal, the word out of order, or ``none``) before each
        yes or no is what lets so small a model learn to judge.
        """
        words = response.split()
        evidence = (
            NUMBERS[min(len(words), len(NUMBERS) - 1)],
            _first(word for word in words if word not in KINDS[self.kind]),
            _first(b for a, b in pairwise(words) if [a, b] != self.in_order([a, b])),
            _first(word for place, word in enumerate(words) if word in words[:place]),
            self._rule_evidence(words),
        )
        names = ("count", "stranger", "disorder", "repeat", self.rule.split()[0])
        points = [
            f"{name} {found} {'yes' if kept else 'no'}"
            for name, found, kept in zip(names, evidence, self.checks(response), strict=True)
        ]
        return f"{', '.join(points)}\nScore: {self.score(response)}"

    def _rule_evidence(self, words: list[str]) -> str:
        if self.rule in ("including", "leaving out") or not words:
            return _first(word for word in words if word == self.word)
        return words[0] if self.rule == "starting with" else words[-1]

    def in_order(self, words: list[str]) -> list[str]:
        """The words in the order that the task asks for."""
        return sorted(words, reverse=self.order != ORDERS[0])


def _first(words: Iterable[str]) -> str:
    return next(iter(words), "none")


def all_tasks() -> list[Task]:
    """Every task that can be fulfilled, in one fixed random order."""
    tasks = [
        Task(kind, count, order, rule, word, phrasing)
        for kind, words in KINDS.items()
        for count in COUNTS
        for order in ORDERS
        for rule in RULES
        for place, word in enumerate(words)
        if _room(len(words), place, order, rule) >= count - 1
        for phrasing in range(len(PHRASINGS))
    ]
    random.Random(0).shuffle(tasks)
    return tasks


def split() -> tuple[list[Task], list[Task]]:
    """All tasks as (training, held out); the base model never sees a held-out task either."""
    tasks = all_tasks()
    return tasks[NUM_HELD_OUT:], tasks[:NUM_HELD_OUT]


def _room(size: int, place: int, order: str, rule: str) -> int:
    """How many words of the kind may stand beside the one at ``place``."""
    after = size - place - 1
    if rule in ("including", "leaving out"):
        return size - 1
    return after if (rule == "starting with") == (order == "alphabetical") else place


def parse(text: str) -> Task:
    """The task that an instruction states.

    Raises:
        ValueError: the text is not an instruction of this world.
    """
    for phrasing, pattern in enumerate(_PATTERNS):
        if match := pattern.fullmatch(text.strip()):
            count = NUMBERS.index(match["count"])
            return Task(match["kind"], count, match["order"], match["rule"], match["word"], phrasing)
    raise ValueError(f"not an instruction of the tiny world: {text!r}")


def _pattern(phrasing: str) -> re.Pattern[str]:
    groups = {
        "count": "|".join(NUMBERS),
        "kind": "|".join(KINDS),
        "order": "|".join(reversed(ORDERS)),
        "rule": "|".join(RULES),
        "word": r"\w+",
    }
    named = {name: f"(?P<{name}>{choices})" for name, choices in groups.items()}
    return re.compile(phrasing.replace(".", r"\.").format(**named))


_PATTERNS = tuple(_pattern(phrasing) for phrasing in PHRASINGS)


def gold(prompt: str, response: str) -> float:
    """The checker as an evaluation scorer: points from 0 to 5 of a response to an instruction."""
    return float(parse(prompt).score(response))


def verify(prompt: Prompt, response: str) -> float:
    """The checker as a judge, such as no real task has one: how far a loop could come with perfect scores."""
    return gold(prompt.text, response)


def demonstrate(task: Task, rng: random.Random, flaw: float) -> str:
    """A response as a careless person would write it: each constraint is broken with probability ``flaw``."""
    flaws = {name for name in CHECKS if rng.random() < flaw}
    count = task.count
    if "count" in flaws:
        count = max(1, count + rng.choice((-2, -1, 1, 2)))
    words = task.in_order(_choose(task, count, "rule" in flaws, rng))
    if "order" in flaws:
        rng.shuffle(words)
    if "unique" in flaws and len(words) > 1:
        place = rng.randrange(1, len(words))
        words[place] = words[place - 1]
    if "kind" in flaws:
        place = rng.randrange(len(words))
        words[place] = _stranger(task.kind, words, place, rng)
    return " ".join(words)


def _choose(task: Task, count: int, break_rule: bool, rng: random.Random) -> list[str]:
    """``count`` different words of the kind that keep (or break) the rule once they are put in order."""
    words = KINDS[task.kind]
    place = words.index(task.word)
    others = [word for word in words if word != task.word]
    if task.rule in ("including", "leaving out"):
        included = (task.rule == "including") != break_rule
    else:
        included = not break_rule
        if included:
            lowest = (task.rule == "starting with") == (task.order == ORDERS[0])
            others = list(words[place + 1 :] if lowest else words[:place])
    chosen = [task.word] if included else []
    return chosen + rng.sample(others, min(count - len(chosen), len(others)))


def _stranger(kind: str, words: Sequence[str], place: int, rng: random.Random) -> str:
    """A word of another kind, half of the time one that fits alphabetically where it is put."""
    strangers = [word for other in KINDS if other != kind for word in KINDS[other]]
    neighbours = sorted({*words[max(0, place - 1) : place], *words[place + 1 : place + 2]})
    fitting = [word for word in strangers if neighbours and neighbours[0] <= word <= neighbours[-1]]
    return rng.choice(fitting if fitting and rng.random() < 0.5 else strangers)
