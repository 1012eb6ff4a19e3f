"""What an iteration trains on, in TRL's columns: its pairs, and what else the recipe adds to them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain
from typing import Any

from selfreward.judges import panel_of
from selfreward.prompts.seed_data import read_graded
from selfreward.records import PreferencePair, derive_seed
from selfreward.runs.plan import names
from selfreward.runs.run import Run
from selfreward.runs.stages import STAGES, Step
from selfreward.runs.stored import SEED_OF_REHEARSAL, SEED_OF_REPLAY
from selfreward.text.chat import ChatEncoder, fits

Row = dict[str, Any]


def preference_rows(run: Run, step: Step) -> list[Row]:
    """All rows of an iteration, its own pairs first."""
    return list(chain.from_iterable(rows_by_source(run, step).values()))


def rows_by_source(run: Run, step: Step) -> dict[str, list[Row]]:
    """The rows of ``pairs`` and, where the recipe has them, those ``replayed``, of ``judge_pairs`` and ``rehearsed``.

    ``consistency`` is a further column where the recipe asks for it: how far a pair counts as it stands.
    """
    training, stage, iteration = run.recipe.training, STAGES[step.stage], step.iteration
    pairs = run.records(stage.pairs, iteration, PreferencePair)
    found = {"pairs": [_row(pair) for pair in pairs]}
    if training.replay:
        found["replayed"] = _replayed(run, step, round(training.replay * len(pairs)))
    if "meta" in stage.reads and "meta" in names(run.recipe, iteration):
        found["judge_pairs"] = [_row(pair) for pair in run.records("judge_pairs", iteration, PreferencePair)]
    if training.rehearsal:
        found["rehearsed"] = _rehearsed(run, step, round(training.rehearsal * len(pairs)))
    if training.consistency != "none":
        counted = {"pairs": consistencies(pairs, of_all=training.consistency == "set")}
        for source, rows in found.items():
            shares = counted.get(source, [1.0] * len(rows))
            found[source] = [{**row, "consistency": c} for row, c in zip(rows, shares, strict=True)]
    return found


def consistencies(pairs: list[PreferencePair], of_all: bool) -> list[float]:
    """How far M_t and M_{t-1} agree on each pair, from 0 to 1 (arXiv 2410.12735).

    Args:
        pairs: those of an iteration; in the first one M_{t-1} has judged none.
        of_all: the mean in the place of each pair's own, which also stands for a pair that has none.
    """
    known = [pair.consistency for pair in pairs if pair.consistency is not None]
    mean = sum(known) / len(known) if known else 1.0
    return [mean if of_all or pair.consistency is None else pair.consistency for pair in pairs]


def split(
    rows: Sequence[Row], sides: tuple[str, ...], chat: ChatEncoder, options: dict[str, Any]
) -> tuple[list[Row], dict[str, int]]:
    """The rows that TRL trains as what they are, and how many are left out by which reason.

    It takes the text of a control token for a real one (``control_tokens``), and it cuts what is longer than
    ``max_length`` (``too_long``). An iteration's own pairs were looked at when they were made.

    Args:
        rows: in TRL's columns.
        sides: the columns that follow the prompt, each a conversation with it.
        chat: the tokenizer that they are trained with.
        options: the trainer's.
    """
    kept: list[Row] = []
    left_out = {"control_tokens": 0, "too_long": 0}
    for row in rows:
        conversations = [[*row["prompt"], *row[side]] for side in sides]
        if any(chat.has_control_text(message["content"]) for each in conversations for message in each):
            left_out["control_tokens"] += 1
        elif not all(fits(chat.tokenizer, each, options) for each in conversations):
            left_out["too_long"] += 1
        else:
            kept.append(row)
    return kept, left_out


def _row(pair: PreferencePair) -> Row:
    return {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}


def _replayed(run: Run, step: Step, num: int) -> list[Row]:
    # A draft of M_{t+1} is trained in the place of M_{t+1}: what it replays are no pairs of drafts.
    earlier = [pair for t in range(1, step.iteration) for pair in run.records("pairs", t, PreferencePair)]
    rng = random.Random(derive_seed(run.recipe.seed, step.iteration, SEED_OF_REPLAY))
    return [_row(pair) for pair in rng.sample(earlier, min(num, len(earlier)))]


def _rehearsed(run: Run, step: Step, num: int) -> list[Row]:
    """Right judgements as chosen *and* rejected.

    The preference term is then constant and has no gradient, so that the row adds nothing but the NLL term. That is
    the pretraining mix of InstructGPT (arXiv 2203.02155) with judging data in the place of pretraining data.
    """
    assert run.recipe.seed_data is not None
    assert run.recipe.seed_data.eft is not None
    examples = panel_of(run.recipe).examples(read_graded(run.recipe.seed_data.eft))
    rng = random.Random(derive_seed(run.recipe.seed, step.iteration, SEED_OF_REHEARSAL))
    chosen = rng.sample(examples, min(num, len(examples)))
    verdicts = [[{"role": "assistant", "content": example.judgement}] for example in chosen]
    return [
        {"prompt": example.messages, "chosen": verdict, "rejected": verdict}
        for example, verdict in zip(chosen, verdicts, strict=True)
    ]
