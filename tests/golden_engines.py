"""What the golden runs name in their recipes: engines that follow a script, and functions that score.

What an engine says depends on the whole text of a request, on its seed and on which model of the run is asked, and on
nothing else. So a prompt of the package that changes by a letter changes what is recorded.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any

WORDS = "fox owl elk cat hen bee yak ant".split()
VERBS = "Explain Describe Summarize Compare Translate Rewrite List Rank Classify Suggest Plan Draft".split()
ADJECTIVES = "old noisy quiet tiny broken famous cheap bright frozen forgotten".split()
THINGS = "harbour violin volcano recipe contract garden battery pyramid vaccine glacier novel orchestra".split()
PLACES = "museum forest kitchen library desert office village tunnel market stadium attic prison".split()

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Reply:
    """A completion, as engines give it."""

    text: str
    finish_reason: str
    num_tokens: int


@dataclass
class Kept:
    """Where journals and the marks of what was begun are kept once their stage is done, and for which run."""

    run: Path | None = None
    folder: Path | None = None

    def keep(self) -> None:
        """Gives a second name to each journal under way, and to the mark beside it: a stage removes the first."""
        if self.run is None or self.folder is None:
            return
        for path in [*self.run.glob("*/*/journal.jsonl"), *self.run.glob("*/*/begun.json")]:
            kept = self.folder / path.relative_to(self.run)
            kept.parent.mkdir(parents=True, exist_ok=True)
            if not kept.exists():
                os.link(path, kept)


kept = Kept()


def noise(*parts: object) -> int:
    """A number that any change of its parts changes."""
    return int.from_bytes(sha256(repr(parts).encode()).digest()[:6])


def fenced(text: str, name: str) -> str:
    """What stands between the last tags of a name, which may have a number."""
    found = re.findall(rf"<{name}(?:-\d+)?>\n(.*?)\n</{name}", text, re.DOTALL)
    return str(found[-1]) if found else ""


def words_of(text: str) -> int:
    """How many words the response in a judge's prompt has, 5 at most."""
    response = text.rpartition("Answer: ")[2] if "Answer: " in text else fenced(text, "response")
    return min(5, len(response.split()))


def drawn(number: int, *lists: Sequence[str]) -> list[str]:
    """An item of each list."""
    return [words[(number >> 5 * place) % len(words)] for place, words in enumerate(lists)]


def instruction(number: int) -> str:
    """A task; some are none that a filter lets pass."""
    verb, adjective, thing, place = drawn(number, VERBS, ADJECTIVES, THINGS, PLACES)
    other, where = drawn(number >> 23, THINGS, PLACES)
    shapes = (
        f"{verb} the {adjective} {thing} that stands in every {place} near some {other}.",
        f"How would people of a {where} {verb.lower()} their {adjective} {other}?",
        f"{verb} {thing}, {other} and {where} for a child from the {place}.",
        f"Draw a picture of the {adjective} {thing}.",
        f"{verb} it.",
        f"{verb} three reasons why some {thing} costs more than the {other} of this {place}.",
    )
    return shapes[(number >> 13) % len(shapes)]


def answer(text: str, number: int, skill: int) -> str | Reply:
    """A response of one word or more; better models write more of them."""
    words = [WORDS[(number >> 3 * place) % len(WORDS)] for place in range(number % 4 + 1 + skill)]
    said = " ".join(words)
    if number % 23 == 0:
        return ""
    if number % 19 == 0:
        return Reply(said, "length", 32)
    if "JSON" in text:
        return f'{{"animal": {("3", chr(34) + words[0] + chr(34))[number % 2]}}}'
    if "How many" in text:
        return f"{said}. The answer is {number % 3 + 4}"
    return said


def review(text: str, number: int, skill: int) -> str | Reply:
    """A judgement by the words of the response, give or take one; some have no score."""
    if number % 17 == 0:
        return "I can't tell."
    if number % 19 == 0:
        return Reply("It has many words and\nScore: 3", "length", 9)
    words, doubt = words_of(text), number % 3 - 1
    score = min(5, max(0, words + doubt))
    return f"I count {words} words, and doubt {doubt} of them at {number % 97}.\nScore: {score}"


def rubric(text: str, number: int, skill: int) -> str | Reply:
    """A score for each criterion that the prompt lists."""
    names = re.findall(r"^\d+\. ([^:\n]+):", fenced(text, "criteria"), re.MULTILINE)
    return "\n".join(["I look at each.", *(f"{name}: {(number >> 4 * n) % 6}" for n, name in enumerate(names))])


def compare(text: str, number: int, skill: int) -> str | Reply:
    """The longer response wins, mostly."""
    labels = re.findall(r"^Response (\w+):$", text, re.MULTILINE)
    first, second = (len(each.split()) for each in re.findall(r"<response(?:-\d+)?>\n(.*?)\n</resp", text, re.DOTALL))
    if number % 13 == 0:
        return "I can't tell."
    better = labels[0] if first > second or number % 5 == 0 else labels[1] if second > first else "tie"
    return f"It has {max(first, second)} words.\nVerdict: {better}"


def meta(text: str, number: int, skill: int) -> str | Reply:
    """A verdict on two judgements, at random."""
    return ("Verdict: A", "Verdict: B", "So it is.\nVerdict: B", "Verdict: tie", "Both are good.")[number % 5]


def evolve(text: str, number: int, skill: int) -> str | Reply:
    """The prompt with more words; some leak words of the request, or add nothing."""
    given = fenced(text, "given-prompt")
    thing, place = drawn(number, THINGS, PLACES)
    added = {0: "", 1: " This is the rewritten prompt.", 2: " Sorry!"}
    return given + added.get(number % 9, f" Name the {thing} of each {place} too, and say why that matters.")


def tasks(text: str, number: int, skill: int) -> str | Reply:
    """A list of tasks that goes on from the number that is asked for."""
    num, first = (int(n) for n in re.search(r"Write (\d+) more tasks, numbered from (\d+) on", text).groups())
    if number % 11 == 0:
        return "I'm sorry, but I can't help with that."
    items = [instruction(noise(number, n)) for n in range(num)]
    if text.startswith("Below are tasks"):
        written = [_whole_task(n, item) for n, item in enumerate(items, start=first)]
    else:
        written = [f"{n}. {item}" for n, item in enumerate(items, start=first)]
    return Reply("\n".join(written)[:-9], "length", 99) if number % 7 == 0 else "\n".join(written)


def _whole_task(n: int, item: str) -> str:
    given = ("<noinput>", f"The {item[:9]}")[n % 2]
    return f"###\n{n}. Instruction: {item}\n{n}. Input:\n{given}\n{n}. Output:\nIt is {n}."


def instances(text: str, number: int, skill: int) -> str | Reply:
    """Two examples of a task, one with its label first where it is a classification."""
    task = fenced(text, "task")
    if "Label: one of" in text:
        return (
            f"Example 1\nLabel: yes\nInput: I like the {task[-9:]}\n\nExample 2\nLabel: no\nInput: Never {number % 10}."
        )
    output = f"{number % 90} letters" if number % 6 else f"{task[:9]}"
    return f"Sure!\n\nExample 1\nInput: {task[:9]}\nOutput: {output}\n\nExample 2\nInput: <noinput>\nOutput: Fine."


def variant(text: str, number: int, skill: int) -> str | Reply:
    """Another prompt that asks for tasks; some lack a place."""
    place = "{number}" if number % 3 else "1"
    return (
        f"<prompt>\nBelow is a list of tasks, {number % 7} of them good.\n\n<tasks>\n{{examples}}\n</tasks>\n\n"
        f"Write {{num}} more tasks, numbered from {place} on.\n</prompt>"
    )


SCRIPTS: dict[str, Callable[[str, int, int], str | Reply]] = {
    "Review ": review,
    "Grade the response below by one": review,
    "Grade the response below by each": rubric,
    "Compare the two": compare,
    "A judge was asked": meta,
    "Read the question and": lambda text, number, skill: f"It has {words_of(text)} words, says {number % 50}.",
    "Below are a question, a": lambda text, number, skill: " ".join(["bee", *fenced(text, "response").split()[:6]]),
    "You rewrite prompts": evolve,
    "You invent prompts": lambda text, number, skill: instruction(number),
    "Below are two prompts": lambda text, number, skill: "Not equal" if number % 6 else "Equal",
    "A person asked": lambda text, number, skill: f"Tell me what {fenced(text, 'answer')[:40]} is about, please.",
    "Below are what a user": lambda text, number, skill: f"Score: {number % 4 + 2}" if number % 7 else "Good.",
    "Below is a list of tasks": tasks,
    "Below are tasks": tasks,
    "Is the task below": lambda text, number, skill: ("Yes.", "No", "No.", "Maybe.")[number % 4],
    "Write ": instances,
    "How good is the task": lambda text, number, skill: f"Score: {number % 5 + 1}" if number % 9 else "Good.",
    "The prompt between": variant,
}


def skill_of(model: str) -> int:
    """How often a model of a run was trained, told by the folder that it is in."""
    folder, name = PurePath(model).parts[-2:]
    return int(re.sub(r"\D", "", folder) or 0) + ("draft" in name) if folder.startswith("iter_") else 0


class Actor:
    """An engine that follows the script."""

    pause = 0.0  # seconds before each answer

    def __init__(self, model_path: str, model: Any, settings: Any) -> None:
        self.model = model_path

    async def sample(self, messages: Messages, params: Any, seeds: Sequence[int]) -> list[Reply]:
        """A completion for each seed."""
        await self._wait()
        return [self._reply(messages, params, seed) for seed in seeds]

    async def chances(self, messages: Messages, begun: str, options: Sequence[str]) -> list[float]:
        """Shares of the options, which leave a part to other words."""
        await self._wait()
        weights = [noise(messages, begun, option) % 1000 for option in options]
        return [weight / (sum(weights) + 50) for weight in weights]

    async def rate(self, messages: Messages) -> float:
        """A reward."""
        await self._wait()
        return noise(messages) % 1000 / 100

    # The names that later versions have for these.
    generate, option_probs, reward = sample, chances, rate

    async def logprobs(self, ids: Sequence[int], last: int | None = None) -> None:
        """This engine can't tell."""
        await self._wait()

    def reload(self, model_path: str) -> None:
        """Serves another model."""
        self.model = model_path

    def sleep(self) -> None:
        """There is nothing to give back."""

    def close(self) -> None:
        """There is nothing to give back."""

    async def _wait(self) -> None:
        kept.keep()
        if self.pause:
            await asyncio.sleep(self.pause)

    def _reply(self, messages: Messages, params: Any, seed: int) -> Reply:
        text, skill = messages[-1]["content"], skill_of(self.model)
        asked = [[message["role"], message["content"]] for message in messages]
        sampling = [params.temperature, params.top_p, params.max_tokens, params.presence_penalty]
        number = noise(asked, sampling, seed, skill)
        script = next((script for beginning, script in SCRIPTS.items() if text.startswith(beginning)), answer)
        said = script(text, number, skill)
        return said if isinstance(said, Reply) else Reply(said, "stop", len(said.split()) + 1)


class Slow(Actor):
    """The same, each answer after a while, so that a stage can be cut in its middle."""

    pause = 0.02


def gold(prompt: str, response: str) -> float:
    """Scores a response for evaluation."""
    return float(len(response.split()) % 6)


def short(prompt: Any, response: str, most: int = 3) -> float | None:
    """A verifier of its own: whether a response has few words; none of an empty one."""
    words = len(response.split())
    return float(words <= most) if words else None


def rude(text: str) -> float:
    """How toxic a text is."""
    return 0.9 if "rude" in text else 0.1
