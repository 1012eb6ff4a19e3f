"""Preference pairs from judged responses; every prompt ends as a pair or as a named rejection."""

from __future__ import annotations

from collections import Counter
from typing import Any

from selfreward import registry
from selfreward.chat import ChatEncoder, fits, load_tokenizer
from selfreward.judges import mean_scores
from selfreward.records import Judgement, Message, PreferencePair, Prompt, Rejection, Response, by_prompt
from selfreward.rundir import Run
from selfreward.selection import usable
from selfreward.serving import Engines
from selfreward.stages import Summary

Outcome = list[PreferencePair] | Rejection


def stage(run: Run, iteration: int, engines: Engines) -> Summary:
    """Writes pairs and rejections.

    Raises:
        ValueError: no prompt made a pair, so that there is nothing to train on.
    """
    prompts = run.records("prompts", iteration, Prompt)
    responses = by_prompt(run.records("responses", iteration, Response))
    judgements = run.records("judgements", iteration, Judgement)
    scores = mean_scores(judgements)
    select = registry.load(run.recipe.selection.name, registry.SELECTORS, "selector")
    chat = ChatEncoder(load_tokenizer(run.model_path(iteration), run.recipe.model))

    options = run.recipe.training.dpo
    dropped: Counter[str] = Counter()

    def outcome(prompt: Prompt) -> Outcome:
        whole, by_rule = usable(responses[prompt.id], run.recipe.responses)
        dropped.update(by_rule)
        if len(whole) < 2:
            impossible = by_rule["prompt_too_long"] == len(responses[prompt.id])
            return Rejection(prompt.id, "prompt_too_long" if impossible else "too_few_responses")
        return _trainable(select(prompt, whole, scores), chat, options)

    outcomes = [outcome(prompt) for prompt in prompts]
    pairs = [pair for outcome in outcomes if isinstance(outcome, list) for pair in outcome]
    rejections = [outcome for outcome in outcomes if isinstance(outcome, Rejection)]
    reasons = Counter(rejection.reason for rejection in rejections)
    paired = sum(isinstance(outcome, list) for outcome in outcomes)
    assert paired + len(rejections) == len(prompts), "every prompt is a pair or a rejection"

    folder = run.stage("pairs", iteration)
    folder.write("records.jsonl", pairs)
    folder.write("rejections.jsonl", rejections)
    if not pairs:
        raise ValueError(_no_pairs(iteration, len(prompts), reasons, judgements))
    return {
        "pairs": len(pairs),
        "prompts_paired": paired,
        "prompts_rejected": len(rejections),
        **{f"rejected_{reason}": count for reason, count in sorted(reasons.items())},
        **{f"dropped_{rule}": count for rule, count in sorted(dropped.items())},
        "mean_margin": sum(pair.score_chosen - pair.score_rejected for pair in pairs) / len(pairs),
    }


def _trainable(outcome: Outcome, chat: ChatEncoder, options: dict[str, Any]) -> Outcome:
    """Rejects pairs that TRL would train differently from what they are.

    Its tokenizer takes the text of a control token for a real one, and it cuts what is longer than ``max_length``.
    """
    if isinstance(outcome, Rejection):
        return outcome
    if not outcome:
        raise ValueError("the selector gave an empty list. For a prompt without a pair it gives a Rejection")
    clean = [pair for pair in outcome if not any(chat.has_control_text(m["content"]) for m in _messages(pair))]
    if not clean:
        return Rejection(outcome[0].prompt_id, "control_tokens")
    whole = [
        pair
        for pair in clean
        if all(fits(chat.tokenizer, [*pair.prompt, *side], options) for side in (pair.chosen, pair.rejected))
    ]
    return whole or Rejection(outcome[0].prompt_id, "too_long_to_train")


def _messages(pair: PreferencePair) -> list[Message]:
    return [*pair.prompt, *pair.chosen, *pair.rejected]


def _no_pairs(iteration: int, prompts: int, reasons: Counter[str], judgements: list[Judgement]) -> str:
    counted = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    ways = {
        "tie": "Ties: raise responses.n or responses.temperature so that responses differ, or judge.votes.",
        "unscored": "Unscored: the judge's text has no readable score. Train it with seed_data.eft, or change "
        "judge.template, or judge with another engine (judge.engine).",
        "too_few_responses": "Too few whole responses: raise responses.max_tokens.",
        "too_long_to_train": "Too long to train: raise training.dpo.max_length.",
        "prompt_too_long": "Prompts too long: raise engine.vllm.max_model_len or shorten the prompts.",
    }
    advice = [text for reason, text in ways.items() if reason in reasons]
    unread = [repr(j.raw_text[-200:]) for j in judgements if j.error][:3] if "unscored" in reasons else []
    examples = [f"What the judge wrote, for example: {text}" for text in unread]
    message = f"iteration {iteration} made no pair of {prompts} prompts ({counted}), so there is nothing to train on."
    return "\n".join([message, *advice, *examples])
