"""A model that writes tasks as real ones do: with talk, Markdown, slips and refusals around them."""

from __future__ import annotations

import random
import re

from selfreward.engines import Completion

VERBS = "Explain Describe Summarize Compare Translate Rewrite List Rank Classify Suggest Plan Draft Recommend".split()
ADJECTIVES = "old noisy quiet tiny broken famous cheap bright frozen forgotten local rural modern hidden".split()
THINGS = (
    "harbour violin volcano recipe contract garden battery pyramid vaccine glacier novel orchestra bridge "
    "sandwich telescope passport compost lighthouse tournament dialect"
).split()
SHAPES = (
    "{verb} the {adjective} {one} for a curious child who owns a {two}.",
    "{verb} three reasons why some {one} is more {adjective} than any {two}, {three} or {four}.",
    "In the style of a {three}: {verb} your {adjective} {two}.",
    "{verb} it, given that one {one} costs as much as two {adjective} {three}s.",
    "How would a {one} look at this {adjective} {two}? {verb} {three} and {four} too.",
    "{verb} {adjective} words that rhyme with {four}, then with {two}.",
)
STYLES = (
    lambda n, text: f"{n}. {text}",
    lambda n, text: f"{n}) {text}",
    lambda n, text: f"**{n}.** {text}",
    lambda n, text: f"**Task {n}:** {text}",
    lambda n, text: f'{n}. "{text}"',
    lambda n, text: f"- {text}",
    lambda n, text: f"### Task {n}\n{text}\n",
)


def instruction(rng: random.Random) -> str:
    things = dict(zip(("one", "two", "three", "four"), rng.sample(THINGS, 4), strict=True))
    return rng.choice(SHAPES).format(verb=rng.choice(VERBS), adjective=rng.choice(ADJECTIVES), **things)


def tasks(text: str, seed: int) -> str | Completion:
    """More tasks, in one of many shapes."""
    rng = random.Random(seed)
    if rng.random() < 0.05:
        return "I'm sorry, but I can't help with that."
    if rng.random() < 0.05:
        return rng.choice(["", "Tasks are fun.", Completion("", "prompt_too_long", 0)])
    num, first = (int(n) for n in re.search(r"Write (\d+) more tasks, numbered from (\d+) on", text).groups())
    if "Instruction, Input and Output" in text:
        return _whole(rng, num, first)
    style = rng.choice(STYLES)
    items = [instruction(rng) for _ in range(num)]
    if rng.random() < 0.2:
        items[0] = re.search(r"<tasks>\n1\. (.*)", text)[1]
    if rng.random() < 0.2:
        items.insert(2, "")
    written = "\n".join(style(n, item) for n, item in enumerate(items, start=first))
    if rng.random() < 0.3:
        return Completion(written[:-20], "length", 100)
    talk = rng.choice(["", "Sure, here are more tasks:\n\n", "Here are some tasks:\n```\n"])
    return talk + written + ("\n```" if "```" in talk else "") + rng.choice(["", "\n\nLet me know if you want more!"])


def _whole(rng: random.Random, num: int, first: int) -> str | Completion:
    parts = []
    for n in range(first, first + num):
        input = rng.choice(["<noinput>", f"The {rng.choice(THINGS)}."])
        parts.append(f"###\n{n}. Instruction: {instruction(rng)}\n{n}. Input:\n{input}\n{n}. Output:\nIt is {n}.")
    written = "\n".join(parts)
    return Completion(written[:-5], "length", 100) if rng.random() < 0.3 else written + "\n###"


def _task(text: str) -> str:
    """The task that a request is about."""
    return re.findall(r"<task(?:-\d+)?>\n(.*?)\n</task", text, re.DOTALL)[-1]


def instances(text: str) -> str | Completion:
    """Instances of the task in the request, good ones and others, as its letters have it."""
    task = _task(text)
    kind = len(task) % 7
    if kind == 0:
        return "I don't know what to write."
    if kind == 1:
        return Completion(f"Example 1\nInput: {task[:5]}\nOutput: a good ans", "length", 9)
    if "Label: one of" in text:
        return (
            f"**Example 1**\n**Label:** yes\n**Input:** I like the {task[-9:]}\n\nExample 2\nLabel: no\nInput: Never."
        )
    return f"Sure!\n\nExample 1\nInput: {task[:9]}\nOutput: An answer of {len(task)} letters."


BETTER = """Go on with the list, with care.
<tasks>
{examples}
</tasks>
Write {num} more tasks, numbered from {number} on."""


def template(seed: int) -> str:
    """A variant of the prompt; some lack a place."""
    return [f"<prompt>\n{BETTER}\n</prompt>", f"Sure!\n<prompt>{BETTER}</prompt>", "<prompt>{examples}</prompt>"][
        seed % 3
    ]


def reply(model: str, text: str, seed: int) -> str | Completion | None:
    """What the model says to each of the requests of self-instruct; None to others."""
    if "Write a better version of it" in text:
        return template(seed)
    if text.startswith("How good is the task"):
        return "Score: 4" if "harbour" in text else "I like it.\nScore: 3"
    if "Go on with the list" in text:
        return tasks(text, seed)
    if "Is it a classification?" in text:
        return "Yes." if "Classify" in _task(text) else "**No**, it is not."
    return instances(text) if "Write each example in this form" in text else None
