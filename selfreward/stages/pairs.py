"""Preference pairs from judged responses; every prompt ends as a pair or as a named rejection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from selfreward.judges import panel_of
from selfreward.recipe import registry
from selfreward.records import (
    ImplicitReward,
    Judgement,
    Message,
    PreferencePair,
    Prompt,
    Rejection,
    Response,
    by_prompt,
)
from selfreward.runs.plan import names
from selfreward.runs.run import Run
from selfreward.runs.stages import STAGES, Step, Summary
from selfreward.selection.pair_filters import (
    agreeing,
    anchored,
    capped,
    compare,
    consistency,
    kept,
    margin,
    upgraded,
    wide,
)
from selfreward.selection.pair_selectors import Outcome, Rules, Selector, tied, usable
from selfreward.serving.engines import Engines
from selfreward.stages.implicit import rewards_of
from selfreward.text.chat import ChatEncoder, fits, load_tokenizer


def stage(run: Run, step: Step, engines: Engines) -> Summary:
    """Writes pairs and rejections; those of a draft come before the look-ahead.

    Raises:
        ValueError: no prompt made a pair, so that there is nothing to train on.
    """
    selection, rules = Selection(run, step), run.recipe.selection
    made = [selection.outcome(prompt) for prompt in selection.prompts]
    sources = {prompt.id: prompt.source for prompt in selection.prompts}
    outcomes = capped(made, sources, rules.max_per_prompt, rules.max_per_source)
    pairs = [pair for outcome in outcomes if isinstance(outcome, list) for pair in outcome]
    rejections = [outcome for outcome in outcomes if isinstance(outcome, Rejection)]
    reasons = Counter(rejection.reason for rejection in rejections)
    paired = sum(isinstance(outcome, list) for outcome in outcomes)
    assert paired + len(rejections) == len(selection.prompts), "every prompt is a pair or a rejection"

    folder = run.folder(step)
    folder.write("records.jsonl", pairs)
    folder.write("rejections.jsonl", rejections)
    if not pairs:
        judgements = run.records("judgements", step.iteration, Judgement)
        raise ValueError(_no_pairs(step.iteration, len(outcomes), reasons, judgements))
    return {
        "pairs": len(pairs),
        "prompts_paired": paired,
        "prompts_rejected": len(rejections),
        **{f"rejected_{reason}": count for reason, count in sorted(reasons.items())},
        **{f"dropped_{rule}": count for rule, count in sorted(selection.dropped.items())},
        "mean_margin": sum(map(margin, pairs)) / len(pairs),
        **selection.figures(pairs),
    }


class Selection:
    """How the pairs of one iteration come about, from all that was sampled and judged for it."""

    def __init__(self, run: Run, step: Step) -> None:
        recipe, iteration, [model] = run.recipe, step.iteration, run.models(step)
        has = {*names(recipe, iteration)} & {*STAGES[step.stage].reads}
        self._rules, self._filters = Rules.of(recipe.selection, iteration), recipe.responses
        self._select: Selector = registry.load(recipe.selection.name, registry.SELECTORS, "selector")
        self._chat = ChatEncoder(load_tokenizer(model, recipe.model))
        self._options = recipe.training.dpo_options(iteration)

        self.prompts = run.records("prompts", iteration, Prompt)
        self._responses = by_prompt(run.records("responses", iteration, Response))
        self._anchors = by_prompt(run.records("anchors", iteration, Response)) if "anchors" in has else None
        self._lookahead = by_prompt(run.records("lookahead", iteration, Response)) if "lookahead" in has else None
        self._scores = scores_of(run, iteration, "lookahead" in has)
        self._consistency = consistencies(run, iteration) if "previous_judgements" in has else None
        self._rewards = rewards_of(run.records("implicit", iteration, ImplicitReward)) if "implicit" in has else None
        self.dropped: Counter[str] = Counter()

    def outcome(self, prompt: Prompt) -> Outcome:
        """The pairs of a prompt, before they are counted against those of others."""
        responses = self._responses[prompt.id]
        whole, by_rule = usable(responses, self._filters)
        self.dropped.update(by_rule)
        if len(whole) < 2:
            impossible = by_rule["prompt_too_long"] == len(responses)
            return Rejection(prompt.id, "prompt_too_long" if impossible else "too_few_responses")
        outcome = self._select(prompt, whole, self._scores, self._rules)
        if isinstance(outcome, list) and not outcome:
            raise ValueError("the selector gave an empty list. For a prompt without a pair it gives a Rejection")
        return trainable(self._refined(prompt, outcome, whole), self._chat, self._options)

    def _refined(self, prompt: Prompt, outcome: Outcome, responses: Sequence[Response]) -> Outcome:
        """With the other models' responses, and without the pairs that the recipe does not want."""
        if self._anchors is not None:
            anchors, _ = usable(self._anchors[prompt.id], self._filters)
            outcome = anchored(prompt, outcome, responses, anchors, self._scores)
        if self._lookahead is not None:
            lookahead, _ = usable(self._lookahead[prompt.id], self._filters)
            outcome = upgraded(prompt, outcome, responses, lookahead, self._scores)
        outcome = wide(outcome, self._rules.min_margin)
        if self._rewards is not None:
            outcome = agreeing(outcome, self._rewards)
        if self._consistency is None or isinstance(outcome, Rejection):
            return outcome
        return [replace(pair, consistency=self._consistency[prompt.id]) for pair in outcome]

    def figures(self, pairs: Sequence[PreferencePair]) -> Summary:
        """What there is to say of an iteration's pairs, each figure where it is asked for."""
        groups = [self._responses, self._anchors or {}, self._lookahead or {}]
        tokens = {r.id: r.num_tokens for group in groups for these in group.values() for r in these}
        ties = [tie for these in self._responses.values() if (tie := tied(these, self._scores)) is not None]
        alike = [pair.consistency for pair in pairs if pair.consistency is not None]
        figures: Summary = {
            "tied": sum(ties) / len(ties) if ties else None,
            "mean_chosen_tokens": sum(tokens[pair.chosen_id] for pair in pairs) / len(pairs),
            "mean_rejected_tokens": sum(tokens[pair.rejected_id] for pair in pairs) / len(pairs),
        }
        if self._anchors is not None:
            figures["anchored"] = sum(pair.rejected_id in _ids(self._anchors) for pair in pairs)
        if self._lookahead is not None:
            figures["upgraded"] = sum(pair.chosen_id in _ids(self._lookahead) for pair in pairs)
        if self._rewards is not None:
            figures["reward_unknown"] = sum(compare(pair, self._rewards) is None for pair in pairs)
        if self._consistency is not None:
            figures["consistency"] = sum(alike) / len(alike) if alike else None
        return figures


def scores_of(run: Run, iteration: int, lookahead: bool) -> dict[str, float]:
    """M_t's scores by response id; with those of the look-ahead model's responses, on one scale.

    Raises:
        ValueError: the recipe's judge can't be made.
    """
    panel, judgements = panel_of(run.recipe), run.records("judgements", iteration, Judgement)
    if lookahead:
        beside = run.records("lookahead_judgements", iteration, Judgement)
        # A judge that compares has seen all responses again among those of the look-ahead model.
        judgements = [*judgements, *beside] if panel.pointwise else beside
    return panel.scores(judgements)


def consistencies(run: Run, iteration: int) -> dict[str, float | None]:
    """How far M_t and M_{t-1} rank M_t's responses alike, by prompt id; None where that can't be told."""
    panel = panel_of(run.recipe)
    now = panel.scores(run.records("judgements", iteration, Judgement))
    before = panel.scores(run.records("previous_judgements", iteration, Judgement))
    groups = by_prompt(run.records("responses", iteration, Response))
    return {
        prompt: consistency({r.id: now[r.id] for r in these if r.id in now}, before) for prompt, these in groups.items()
    }


def trainable(outcome: Outcome, chat: ChatEncoder, options: dict[str, Any]) -> Outcome:
    """Rejects pairs that TRL would train differently from what they are.

    Its tokenizer takes the text of a control token for a real one, and it cuts what is longer than ``max_length``.

    Args:
        outcome: the pairs of a prompt, or why it has none.
        chat: the tokenizer that they are trained with.
        options: DPOConfig's.
    """

    def plain(pair: PreferencePair) -> bool:
        return not any(chat.has_control_text(message["content"]) for message in _messages(pair))

    def whole(pair: PreferencePair) -> bool:
        return all(fits(chat.tokenizer, [*pair.prompt, *side], options) for side in (pair.chosen, pair.rejected))

    return kept(kept(outcome, plain, "control_tokens"), whole, "too_long_to_train")


def _messages(pair: PreferencePair) -> list[Message]:
    return [*pair.prompt, *pair.chosen, *pair.rejected]


def _ids(groups: Mapping[str, Sequence[Response]]) -> set[str]:
    return {response.id for these in groups.values() for response in these}


def _no_pairs(iteration: int, prompts: int, reasons: Counter[str], judgements: list[Judgement]) -> str:
    counted = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    ways = {
        "tie": "Ties: raise responses.n or responses.temperature so that responses differ, or judge.votes.",
        "unscored": "Unscored: the judge's text has no readable score. Train it with seed_data.eft, or change "
        "judge.template, or judge with another engine (judge.engine).",
        "too_few_responses": "Too few whole responses: raise responses.max_tokens.",
        "too_long_to_train": "Too long to train: raise training.dpo.max_length.",
        "margin": "Margin: lower selection.min_margin.",
        "no_correct": "None correct: lower selection.pass_score, raise responses.n, or give easier prompts.",
        "no_incorrect": "None incorrect: raise selection.pass_score or responses.n, or give harder prompts.",
        "no_revision": "No revision: see the critiques and revisions in the records of the stage responses.",
        "disagreement": "Disagreement: judge and implicit reward order every pair differently. Turn "
        "selection.implicit_agreement off, or train the judge with seed_data.eft.",
        "prompt_too_long": "Prompts too long: raise engine.vllm.max_model_len or shorten the prompts.",
    }
    advice = [text for reason, text in ways.items() if reason in reasons]
    unread = [repr(j.raw_text[-200:]) for j in judgements if j.error][:3] if "unscored" in reasons else []
    examples = [f"What the judge wrote, for example: {text}" for text in unread]
    message = f"iteration {iteration} made no pair of {prompts} prompts ({counted}), so there is nothing to train on."
    return "\n".join([message, *advice, *examples])
