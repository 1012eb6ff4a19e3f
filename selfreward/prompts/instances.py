"""Instances of an instruction: whether it is a classification is asked first (arXiv 2212.10560, section 2.2).

Of a classification the label comes first and then an input for it, as inputs that are made first tend to have one
label; of everything else the input comes first.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from selfreward.engines import Sampler
from selfreward.prompts.base import SourceContext
from selfreward.prompts.instruction_writer import SOURCE
from selfreward.prompts.replies import failure, greedy, template
from selfreward.recipe.prompt_settings import SourceSettings
from selfreward.records import Task
from selfreward.runs.stored import SEED_OF_INSTANCES, SEED_OF_SHOTS
from selfreward.text.labelled import Labels, input_of

# Examples from the seeds: so many of each kind for the question, so many tasks for instances.
KIND_SHOTS, INSTANCE_SHOTS = 6, 4
# Longer seeds are no examples: all of them stand in every request.
SHOT_CHARACTERS = 1000
_YES_OR_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Written:
    """What was written for an instruction: its instances in their order, and what was wrong with the replies."""

    instances: list[Task]
    errors: list[str]


class InstanceWriter:
    """Writes instances with the help of those seeds that show how; without any, the template must do."""

    def __init__(
        self, settings: SourceSettings, context: SourceContext, engine: Sampler, seeds: Sequence[Task]
    ) -> None:
        self._num = settings.self_instruct.instances
        self._params = greedy(settings)
        self._engine = engine
        self._seed = context.derive(SEED_OF_INSTANCES)
        self._kind = template("classification", "instruction")
        self._input_first = template("input_first", "instruction", "num")
        self._output_first = template("output_first", "instruction", "num")
        self._by_input, self._by_label = Labels("Example", "Input", "Output"), Labels("Example", "Label", "Input")
        rng = random.Random(context.derive(SEED_OF_SHOTS))
        self._kinds = _shown_kinds(seeds, rng)
        self._inputs = self._shots([seed for seed in seeds if seed.is_classification is not True], False, rng)
        self._labelled = self._shots([seed for seed in seeds if seed.is_classification], True, rng)

    async def write(self, task: Task) -> Written:
        """The instances of an instruction."""
        errors: list[str] = []
        is_classification = await self._is_classification(task, errors)
        found = await self._ask(task, bool(is_classification), errors)
        instances = [
            Task.make(task.instruction, SOURCE, input_of(input), output=output, is_classification=is_classification)
            for input, output in found[: self._num]
        ]
        return Written(instances, errors + ["instances_not_needed"] * (len(found) - len(instances)))

    async def _is_classification(self, task: Task, errors: list[str]) -> bool | None:
        """What the model says; None where it does not say, and then the input comes first."""
        messages = self._kind.fill(instruction=task.instruction, reference=self._kinds)
        [completion] = await self._engine.generate(messages, self._params, [self._seed])
        said = {word.lower() for word in _YES_OR_NO.findall(completion.text)}
        first = re.match(r"\W*(?:(?:answer|classification)\W+)?(yes|no)\b", completion.text, re.IGNORECASE)
        if first is None and len(said) != 1:
            errors.append("kind_unclear")
            return None
        return (first[1].lower() if first else said.pop()) == "yes"

    async def _ask(self, task: Task, is_classification: bool, errors: list[str]) -> list[tuple[str, str]]:
        """Pairs of input and output."""
        request = self._output_first if is_classification else self._input_first
        shots = self._labelled if is_classification else self._inputs
        messages = request.fill(instruction=task.instruction, num=str(self._num), reference=shots)
        [completion] = await self._engine.generate(messages, self._params, [self._seed])
        useless = failure(completion)
        if useless in ("prompt_too_long", "empty"):
            errors.append(f"instances_{useless}")
            return []
        read = self._read_labelled if is_classification else self._read_inputs
        found = read(completion.text)
        if completion.finish_reason == "length":
            errors.append("instances_truncated")
            found = found[:-1]
        elif not found:
            errors.append("instances_unparsed")
        errors += ["instances_malformed"] * found.count(None)
        return [pair for pair in found if pair is not None]

    def _read_inputs(self, text: str) -> list[tuple[str, str] | None]:
        examples = self._by_input.read(text)
        return [(each.get("input", ""), each["output"]) if "output" in each else None for each in examples]

    def _read_labelled(self, text: str) -> list[tuple[str, str] | None]:
        pairs: list[tuple[str, str] | None] = []
        for each in self._by_label.read(text):
            # Some write the input below the label and don't say that it is one.
            label, _, below = each.get("label", "").partition("\n")
            pairs.append((each.get("input", below.strip()), label.strip()) if "label" in each else None)
        return pairs

    def _shots(self, seeds: Sequence[Task], is_classification: bool, rng: random.Random) -> str | None:
        """Some seeds with up to as many instances as are wanted, as the template's examples."""
        by_instruction: dict[str, list[Task]] = {}
        for seed in seeds:
            if seed.output and len(seed.instruction + seed.input + seed.output) <= SHOT_CHARACTERS:
                by_instruction.setdefault(seed.instruction, []).append(seed)
        groups = [*by_instruction.values()]
        drawn = rng.sample(groups, min(INSTANCE_SHOTS, len(groups)))
        return "\n\n".join(self._shown(group[: self._num], is_classification) for group in drawn) or None

    def _shown(self, group: Sequence[Task], is_classification: bool) -> str:
        labels = self._by_label if is_classification else self._by_input
        lines = [f"Task: {' '.join(group[0].instruction.split())}"]
        for number, seed in enumerate(group, start=1):
            input, output = labels.guard(seed.input.strip() or "<noinput>"), labels.guard((seed.output or "").strip())
            parts = ("Label", output, "Input", input) if is_classification else ("Input", input, "Output", output)
            lines += [f"Example {number}", f"{parts[0]}: {parts[1]}", f"{parts[2]}: {parts[3]}"]
        return "\n".join(lines)


def _shown_kinds(seeds: Sequence[Task], rng: random.Random) -> str | None:
    """Seeds with what they are, where they say it, in a random order."""
    known = {seed.instruction: seed.is_classification for seed in seeds if seed.is_classification is not None}
    drawn: list[str] = []
    for kind in (True, False):
        those = [each for each, is_classification in known.items() if is_classification is kind]
        short = [each for each in those if len(each) <= SHOT_CHARACTERS]
        drawn += rng.sample(short, min(KIND_SHOTS, len(short)))
    rng.shuffle(drawn)
    return (
        "\n".join(f"Task: {' '.join(each.split())}\nAnswer: {'Yes' if known[each] else 'No'}" for each in drawn) or None
    )
