"""From judged responses to preference pairs: pure functions.

A selector sees one prompt with its responses and their scores, and gives pairs or a named rejection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from selfreward.records import Message, PreferencePair, Prompt, Rejection, Response, content_id


def best_worst(
    prompt: Prompt, responses: Sequence[Response], scores: Mapping[str, float]
) -> list[PreferencePair] | Rejection:
    """The highest score against the lowest; equal scores make no pair (arXiv 2401.10020, section 2.4).

    Truncated and empty responses take no part: the one would teach to stop mid-sentence, the other to be
    silent. Of equally scored responses the one sampled first is taken.

    Args:
        prompt: the prompt.
        responses: its responses in the order k = 0, 1, ...
        scores: the mean score by response id; an unscored response is missing, not zero.

    Returns:
        One pair, or a rejection: ``prompt_too_long``, ``too_few_responses`` (fewer than two whole
        ones), ``unscored`` (fewer than two of them scored), ``tie``, or ``identical`` (same text).
    """
    if all(response.finish_reason == "prompt_too_long" for response in responses):
        return Rejection(prompt.id, "prompt_too_long")
    whole = [r for r in responses if r.finish_reason == "stop" and r.text.strip()]
    if len(whole) < 2:
        return Rejection(prompt.id, "too_few_responses")
    scored = [response for response in whole if response.id in scores]
    if len(scored) < 2:
        return Rejection(prompt.id, "unscored")
    best = max(scored, key=lambda response: scores[response.id])
    worst = min(scored, key=lambda response: scores[response.id])
    if scores[best.id] == scores[worst.id]:
        return Rejection(prompt.id, "tie")
    if best.text.split() == worst.text.split():
        return Rejection(prompt.id, "identical")
    return [make_pair(prompt, best, worst, scores)]


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
