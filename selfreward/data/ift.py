"""Instruction data from ranked answers: the best one to each prompt (arXiv 2401.10020)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from selfreward.data.ranked import RankedPrompt, prompt_key
from selfreward.records import Removal, Task


def make_ift(
    ranked: Sequence[RankedPrompt], source: str, without: Iterable[str] = ()
) -> tuple[list[Task], list[Removal]]:
    """The prompts with their answers of rank 0, in their order, and those that are left out.

    Args:
        ranked: prompts with their answers; of several answers of rank 0 the first is taken.
        source: where they are from.
        without: prompts that are held out; none that is nearly the same as one of these is taken.
    """
    held_out = {prompt_key(prompt) for prompt in without}
    tasks, removed = [], []
    for each in ranked:
        task = Task.make(each.prompt, source, output=each.best, license=each.license)
        if prompt_key(each.prompt) in held_out:
            removed.append(_removal(task, "held_out", "it is held out, or nearly the same as one that is"))
        elif each.best is None:
            removed.append(_removal(task, "without_best", "it has no answer of rank 0"))
        else:
            tasks.append(task)
    return tasks, removed


def _removal(task: Task, name: str, detail: str) -> Removal:
    return Removal(task.id, task.instruction, task.input, task.output, task.source, name, detail)
