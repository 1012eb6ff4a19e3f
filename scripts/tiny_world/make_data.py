"""The data files of the quick start, made by the world's own program."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from selfreward.tiny import world
from selfreward.tiny.world import Task

FLAW = 0.25  # How often a demonstration breaks each constraint: mixed quality leaves the loop room to improve.
SCORES = (5, 4, 3, 2, 4, 5, 3, 1)  # In turn, so that labels do not pile up.
NUM_IFT = 1000
NUM_EFT = 3000
NUM_RANKED = 750  # prompts, each with four responses, for judges that compare
NUM_PROMPTS = 1200
NUM_HELD_OUT_PROMPTS = 400
NUM_HELD_OUT_GRADED = 100  # prompts, each with four responses
NUM_ASKING = 1000  # requests for a task, each after three others, so that a model learns to make its own prompts
# In words that the model knows, and short enough for three examples and an answer.
ASKING = "Task:\n{examples}\nTask:\n"


def write_data(folder: Path, seed: int = 0) -> None:
    """Writes seed data, prompts and held-out data as JSONL; the same seed gives the same bytes.

    The tasks of the first five files are disjoint, save that loop prompts and seed data share their tasks' pool.
    """
    rng = random.Random(seed)
    training, held_out = world.split()
    folder.mkdir(parents=True, exist_ok=True)
    ift = [{"prompt": t.text, "response": world.demonstrate(t, rng, FLAW)} for t in training[:NUM_IFT]]
    eft = graded(training[NUM_IFT : NUM_IFT + NUM_EFT], rng)
    ranked = [task for task in training[NUM_IFT : NUM_IFT + NUM_RANKED] for _ in range(4)]
    prompts = [{"prompt": task.text} for task in training[NUM_IFT + NUM_EFT :][:NUM_PROMPTS]]
    asked, judged = held_out[:NUM_HELD_OUT_PROMPTS], held_out[NUM_HELD_OUT_PROMPTS:][:NUM_HELD_OUT_GRADED]
    _write(folder / "ift.jsonl", ift)
    _write(folder / "eft.jsonl", eft)
    _write(folder / "prompts.jsonl", prompts)
    _write(folder / "heldout_prompts.jsonl", ({"prompt": task.text} for task in asked))
    _write(folder / "heldout_judging.jsonl", graded([task for task in judged for _ in range(4)], rng))
    _write(folder / "eft_ranked.jsonl", graded(ranked, rng))
    # What a world needs whose prompts its own model makes.
    asking = list(asked_for(training[:NUM_IFT], rng))
    _write(folder / "ift_self_instruct.jsonl", [*ift, *asking])
    _write(folder / "seeds.jsonl", ({"instruction": task.text} for task in training[:NUM_IFT]))
    (folder / "asking.txt").write_text(ASKING, encoding="utf-8")


def asked_for(tasks: Sequence[Task], rng: random.Random) -> Iterator[dict[str, str]]:
    """Requests for one more task after three, as self_instruct makes them of ``ASKING``, with one more task."""
    for _ in range(NUM_ASKING):
        *examples, answer = rng.sample(tasks, 4)
        lines = "\n".join(task.text for task in examples)
        yield {"prompt": ASKING.format(examples=lines).rstrip(), "response": answer.text}


def graded(tasks: Iterable[Task], rng: random.Random) -> list[dict[str, str]]:
    """One response a task with its right judgement, the scores in turn as in ``SCORES``.

    The paper throws part of the modal score away; sampling until the wanted score turns up has the same effect.
    """
    rows = []
    for number, task in enumerate(tasks):
        wanted = SCORES[number % len(SCORES)]
        for _ in range(50):
            response = world.demonstrate(task, rng, FLAW if wanted > 2 else 0.7)
            if task.score(response) == wanted:
                break
        rows.append({"prompt": task.text, "response": response, "judgement": task.verdict(response)})
    return rows


def _write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
