"""Judging data from ranked human answers (arXiv 2401.10020).

A model judges the answers to a prompt, and what it wrote is kept where its scores put them in the order that people
put them in. The more rounds there are, the more prompts have one that agrees, some of them by chance.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

from selfreward.data.ranked import RankedPrompt, prompt_key
from selfreward.engines.base import Sampler
from selfreward.judges import Judge
from selfreward.recipe.eft_settings import EFTSettings
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.records import Graded, Judgement, Prompt, Record, Response, content_id, derive_seed
from selfreward.runs.stored import ID_OF_RANKED, SEED_OF_EFT, SEED_OF_EFT_PROMPTS, SEED_OF_HELD_OUT, SEED_OF_THINNING
from selfreward.text.scores import read_score

# Prompts that are judged before it is looked whether the judge can be read at all.
FIRST_PROMPTS = 50


@dataclass(frozen=True)
class Judged(Record):
    """A judgement of an answer of some rank (0 is the best), and the reason why it is left out, if it is.

    Reasons are the judge's own errors, such as ``empty``, ``no_score``, ``cut_off`` or ``prompt_too_long``; those of
    its round, ``disagrees``, ``tie``, or ``too_few`` where no two answers of different ranks have a score; and
    ``thinned``.
    """

    prompt: str
    response: str
    rank: int
    round: int
    judgement: str
    score: float | None
    reason: str | None
    reference: str | None = None


@dataclass(frozen=True)
class EFT:
    """Judging data to train with and held out, the judgements that are neither, and figures."""

    train: list[Graded]
    held_out: list[Graded]
    dropped: list[Judged]
    figures: dict[str, Any]


Work = Callable[[RankedPrompt], Coroutine[Any, Any, list[Judged]]]
Gather = Callable[[str, Sequence[RankedPrompt], Work], list[list[Judged]]]


def make_eft(
    ranked: Sequence[RankedPrompt], settings: EFTSettings, engine: Sampler, run_concurrently: Gather, seed: int
) -> EFT:
    """Has ranked answers judged, and keeps what agrees with their order.

    Prompts that are nearly the same are on one side of the split. The training part is thinned; what is held out keeps
    every answer, as its measures compare those to one prompt.

    Args:
        ranked: prompts with their answers. Those without answers of different ranks are left out.
        settings: how.
        engine: serves the judging model.
        run_concurrently: ``SourceContext.run_concurrently``, which runs a coroutine for each prompt.
        seed: every choice derives from it.

    Raises:
        ValueError: too few judgements can be read, or no prompt would be left to train with.
    """
    rounds = _Rounds(settings, engine, seed)
    ordered = [each for each in ranked if len({rank for _, rank in each.answers}) > 1]
    chosen = _choose(ordered, settings.max_prompts, seed)
    judged: list[Judged] = []
    for part in (chosen[:FIRST_PROMPTS], chosen[FIRST_PROMPTS:]):
        judged += [
            each
            for of_prompt in run_concurrently("judgements of ranked answers", part, rounds.of)
            for each in of_prompt
        ]
        _require_parse_rate(judged, settings.judge)
    kept = [each for each in judged if each.reason is None]
    set_apart = held_out_keys((each.prompt for each in kept), settings.held_out, seed)
    held_out = [each for each in kept if prompt_key(each.prompt) in set_apart]
    train = thin([each for each in kept if prompt_key(each.prompt) not in set_apart], settings.max_modal_share, seed)
    dropped = [each for each in [*judged, *train] if each.reason is not None]
    train = [each for each in train if each.reason is None]
    figures = {
        "prompts": len(chosen),
        "prompts_without_order": len(ranked) - len(ordered),
        "prompts_not_drawn": len(ordered) - len(chosen),
        "prompts_agreeing": len({prompt_key(each.prompt) for each in kept}),
        "judgements": len(judged),
        "train": len(train),
        "held_out": len(held_out),
        **{f"dropped_{name}": count for name, count in sorted(Counter(str(d.reason) for d in dropped).items())},
        "train_modal_share": _modal_share(train),
        "held_out_modal_share": _modal_share(held_out),
    }
    return EFT(_graded(train), _graded(held_out), dropped, figures)


class _Rounds:
    """Rounds of judgements, in each of which every answer to a prompt is judged once."""

    def __init__(self, settings: EFTSettings, engine: Sampler, seed: int) -> None:
        once = settings.judge.model_copy(update={"votes": 1})
        self._judge: Judge = once.judge_class(once)
        self._settings, self._engine, self._seed = settings, engine, seed

    async def of(self, ranked: RankedPrompt) -> list[Judged]:
        """The judgements of all rounds up to the first that agrees."""
        answers = spread(ranked.answers, self._settings.max_answers)
        prompt = Prompt.make([{"role": "user", "content": ranked.prompt}], "ranked")
        responses = [
            Response(content_id(ID_OF_RANKED, prompt.id, place, text), prompt.id, place, text, "stop", 0, 0, "")
            for place, (text, _) in enumerate(answers)
        ]
        ranks = {response.id: rank for response, (_, rank) in zip(responses, answers, strict=True)}
        texts, judged = {response.id: response.text for response in responses}, []
        for number in range(self._settings.judge.votes):
            seed = derive_seed(self._seed, SEED_OF_EFT, ranked.prompt, answers, number)
            judgements = await self._judge.judge(self._engine, prompt, responses, seed)
            found = [
                self._read(judgement, ranked.prompt, texts[subject], ranks[subject], number)
                for judgement in judgements
                for subject in judgement.subject_ids
            ]
            judged += look(found, self._settings.ties)
            if any(each.reason is None for each in judged):
                break
        return judged

    def _read(self, judgement: Judgement, prompt: str, response: str, rank: int, number: int) -> Judged:
        """What was written, and the score that training and evaluation will read in it."""
        judge, text = self._settings.judge, judgement.raw_text.strip()
        score, error = read_score(text, judge.min_score, judge.max_score)
        if judgement.error is not None:
            score, error = None, judgement.error
        if error == "no_score" and not text:
            error = "empty"
        return Judged(prompt, response, rank, number, text, score, error, judgement.reference)


def spread(answers: Sequence[tuple[str, int]], most: int) -> list[tuple[str, int]]:
    """At most so many answers: the first, the last, and some evenly between them."""
    if len(answers) <= most:
        return list(answers)
    return [answers[round(place * (len(answers) - 1) / (most - 1))] for place in range(most)]


def look(judged: Sequence[Judged], ties: Literal["drop", "allow"]) -> list[Judged]:
    """A round with the reason why it is left out, if it is. What could not be read has a reason, and no say."""
    read = [each for each in judged if each.score is not None]
    pairs = [(a, b) for a, b in combinations(sorted(read, key=lambda j: j.rank), 2) if a.rank < b.rank]
    gaps = [(a.score or 0) - (b.score or 0) for a, b in pairs]
    reason = None
    if not gaps:
        reason = "too_few"
    elif min(gaps) < 0:
        reason = "disagrees"
    elif min(gaps) == 0 and (ties == "drop" or max(gaps) == 0):
        reason = "tie"
    return [each if each.score is None else replace(each, reason=reason) for each in judged]


def held_out_keys(prompts: Iterable[str], held_out: float, seed: int) -> set[str]:
    """The keys of the prompts that are held out: a share of them (below 1), or so many.

    Raises:
        ValueError: none would be left.
    """
    keys = sorted(dict.fromkeys(map(prompt_key, prompts)), key=lambda key: derive_seed(seed, SEED_OF_HELD_OUT, key))
    number = int(held_out) if held_out >= 1 else round(held_out * len(keys))
    if keys and number >= len(keys):
        raise ValueError(
            f"held_out is {held_out:g}, and the judgements of {len(keys)} prompts agree with their ranking: none would "
            "be left to train with. Lower held_out, or give more prompts or votes"
        )
    return set(keys[:number])


def thin(kept: Sequence[Judged], share: float, seed: int) -> list[Judged]:
    """Judgements, as many of them with the reason ``thinned`` as it takes for no score to have more than the share.

    Where there are fewer different scores than that needs, the most frequent is left as often as the next.
    """
    by_score: defaultdict[float | None, list[Judged]] = defaultdict(list)
    for each in kept:
        by_score[each.score].append(each)
    most = _most(sorted(map(len, by_score.values())), share)
    for group in by_score.values():
        group.sort(key=lambda each: derive_seed(seed, SEED_OF_THINNING, each.prompt, each.response))
    taken = {id(each) for group in by_score.values() for each in group[most:]}
    return [replace(each, reason="thinned") if id(each) in taken else each for each in kept]


def _most(counts: Sequence[int], share: float) -> int:
    """How often a score may stand there, from how often each does, in ascending order."""
    for most in range(counts[-1] if counts else 0, 0, -1):
        if most / sum(min(count, most) for count in counts) <= share:
            return most
    return counts[-2:][0] if counts else 0


def _choose(ranked: Sequence[RankedPrompt], most: int | None, seed: int) -> list[RankedPrompt]:
    """So many of the prompts, drawn at random, in their order."""
    drawn = sorted(ranked, key=lambda each: derive_seed(seed, SEED_OF_EFT_PROMPTS, each.prompt, each.answers))[:most]
    ids = {id(each) for each in drawn}
    return [each for each in ranked if id(each) in ids]


def _require_parse_rate(judged: Sequence[Judged], judge: JudgeSettings) -> None:
    unread = [each for each in judged if each.score is None]
    rate = 1 - len(unread) / max(1, len(judged))
    if rate < judge.min_parse_rate:
        examples = "\n".join(f"  {each.reason}: {each.judgement[-200:]!r}" for each in unread[:3])
        raise ValueError(
            f"{rate:.1%} of {len(judged)} judgements can be read, less than judge.min_parse_rate, "
            f"{judge.min_parse_rate:.1%}. What the judge wrote, for example:\n{examples}\nJudge with a model that can "
            "follow the judge prompt, change judge.template, raise judge.max_tokens, or lower judge.min_parse_rate"
        )


def _modal_share(judged: Sequence[Judged]) -> float | None:
    counts = Counter(each.score for each in judged)
    return max(counts.values()) / len(judged) if judged else None


def _graded(judged: Sequence[Judged]) -> list[Graded]:
    return [Graded(each.prompt, each.response, each.judgement, each.reference) for each in judged]
