"""From judged responses to preference pairs: pure functions.

A selector sees one prompt with its responses and their scores, and gives pairs or a named rejection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from selfreward.config import ResponseSettings
from selfreward.records import Message, PreferencePair, Prompt, Rejection, Response, content_id


def best_worst(
    prompt: Prompt, responses: Sequence[Response], scores: Mapping[str, float]
) -> list[PreferencePair] | Rejection:
    """The highest score against the lowest; equal scores make no pair (arXiv 2401.10020, section 2.4).

    Of equally scored responses the one sampled first is taken.

    Args:
        prompt: the prompt.
        responses: at least two of its responses, in the order k = 0, 1, ...
        scores: the mean score by response id; an unscored response is missing, not zero.

    Returns:
        One pair, or a rejection: ``unscored`` (fewer than two of them scored), ``tie``, or ``identical`` (same text).
    """
    scored = [response for response in responses if response.id in scores]
    if len(scored) < 2:
        return Rejection(prompt.id, "unscored")
    best = max(scored, key=lambda response: scores[response.id])
    worst = min(scored, key=lambda response: scores[response.id])
    if scores[best.id] == scores[worst.id]:
        return Rejection(prompt.id, "tie")
    if best.text.split() == worst.text.split():
        return Rejection(prompt.id, "identical")
    return [make_pair(prompt, best, worst, scores)]


def usable(responses: Sequence[Response], rules: ResponseSettings) -> tuple[list[Response], Counter[str]]:
    """The responses that a selector may see, and how many were dropped by which rule of the recipe.

    By default neither truncated nor empty ones: the one would teach to stop mid-sentence, the other to be silent.
    """
    kept: list[Response] = []
    dropped: Counter[str] = Counter()
    texts: set[str] = set()
    for response in responses:
        rule = _broken_rule(response, rules, texts)
        if rule is None:
            kept.append(response)
        else:
            dropped[rule] += 1
        texts.add(response.text)
    return kept, dropped


def _broken_rule(response: Response, rules: ResponseSettings, texts: set[str]) -> str | None:
    if response.finish_reason == "prompt_too_long":
        return "prompt_too_long"
    if rules.on_truncated == "drop" and response.finish_reason == "length":
        return "truncated"
    if rules.on_empty == "drop" and not response.text.strip():
        return "empty"
    if rules.on_duplicate == "drop" and response.text in texts:
        return "duplicate"
    return None


def make_pair(prompt: Prompt, chosen: Response, rejected: Response, scores: Mapping[str, float]) -> PreferencePair:
    """A pair in TRL's conversational columns."""
    assert chosen.id != rejected.id
    return PreferencePair(
        id=content_id("pair", chosen.id, rejected.id),
        prompt_id=prompt.id,
        prompt=prompt.messages,
        chosen=_assistant(chosen.text),
        rejected=_assistant(rejected.text),
        chosen_id=chosen.id,
        rejected_id=rejected.id,
        score_chosen=scores[chosen.id],
        score_rejected=scores[rejected.id],
    )


def _assistant(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]
