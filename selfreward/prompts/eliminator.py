"""Which evolutions failed: the four rules of Evol-Instruct (arXiv 2304.12244, section 3.2)."""

from __future__ import annotations

import re
from typing import NamedTuple

from selfreward.engines import Completion, Sampler
from selfreward.prompts.replies import failure, greedy, template
from selfreward.recipe.prompt_settings import SourceSettings
from selfreward.records import Task

# A shorter answer that says sorry is none.
SORRY_WORDS = 80
# Of contractions, what stands before the apostrophe: "don" of "don't".
STOP_WORDS = frozenset(
    """
    a about above after again against ain all am an and any are aren as at be because been before being below between
    both but by can couldn did didn do does doesn doing don down during each few for from further had hadn has hasn
    have haven having he her here hers herself him himself his how i if in into is isn it its itself just let me mightn
    more most must mustn my myself needn no nor not now of off on once only or other our ours ourselves out over own
    same shan she should shouldn so some such than that the their theirs them themselves then there these they this
    those through to too under until up very was wasn we were weren what when where which while who whom why will with
    won would wouldn you your yours yourself yourselves
    """.split()
)
_LEAK = re.compile(r"\b(?:given|rewritten|created|evolved)[\s_#*-]*prompts?\b", re.IGNORECASE)
_LABEL = r"(?:(?:my|the|your) )?(?:judge?ment|answer|verdict|decision)\W+(?:is\W+)?"
_VERDICT = re.compile(
    rf"(?:^[\W_]*(?:{_LABEL})?|\bare |\bthey['’]re )(?P<not>not[\s-]+|un)?equal\b",  # noqa: RUF001
    re.IGNORECASE | re.MULTILINE,
)


class Failed(NamedTuple):
    """The rule that an evolution breaks, and how."""

    rule: str
    detail: str


class Eliminator:
    """Finds failed evolutions. The model is asked only for what can't be seen without it."""

    def __init__(self, settings: SourceSettings) -> None:
        self._params = greedy(settings)
        self._template = template("evol_equal", "first", "second")

    async def look_at_prompt(self, engine: Sampler, parent: Task, child: Task, seed: int) -> Failed | None:
        """Whether the evolving prompt leaks into what it made, or that says no more than its parent did."""
        before, after = parent.messages[-1]["content"], child.messages[-1]["content"]
        if (words := leaked(after, before)) is not None:
            return Failed("leak", f"it says {words!r}, which are words of the evolving prompt")
        if before.casefold().split() == after.casefold().split():
            return Failed("no_gain", "it is what it was made from")
        [completion] = await engine.generate(self._template.fill(first=before, second=after), self._params, [seed])
        equal = is_equal(completion)
        if equal is None:
            said = failure(completion) or repr(completion.text[:80])
            return Failed("no_verdict", f"whether it gains anything was not said: {said}")
        return Failed("no_gain", "the model finds the two equal") if equal else None


def leaked(text: str, parent: str) -> str | None:
    """Words of the evolving prompt that a text has and its parent has not."""
    known = {_plain(found) for found in _LEAK.findall(parent)}
    return next((found for found in _LEAK.findall(text) if _plain(found) not in known), None)


def is_equal(completion: Completion) -> bool | None:
    """What the model says of two prompts; None where it says neither, or both."""
    verdicts = {match["not"] is None for match in _VERDICT.finditer(completion.text)}
    return verdicts.pop() if failure(completion) is None and len(verdicts) == 1 else None


def look_at_answer(text: str) -> Failed | None:
    """Whether an answer shows that the model can't answer the prompt."""
    num_words = len(text.split())
    if re.search(r"\bsorry\b", text, re.IGNORECASE) and num_words < SORRY_WORDS:
        return Failed("sorry", f"the answer says sorry in {num_words} words")
    if all(word in STOP_WORDS for word in re.findall(r"([^\W_]+)(?:['’][^\W_]+)*", text.lower())):  # noqa: RUF001
        return Failed("stop_words", f"the answer has nothing but punctuation and stop words: {text[:80]!r}")
    return None


def _plain(words: str) -> str:
    return " ".join(re.findall(r"[a-z]+", words.lower()))
