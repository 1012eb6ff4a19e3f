"""The plan of a run: what each stage does, where, for how long, and what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from selfreward.estimates import disk, speed, training_memory
from selfreward.estimates.architecture import Architecture, read
from selfreward.estimates.data_size import Data, count, measured
from selfreward.estimates.machine import Machine
from selfreward.estimates.requests import Requests, asks_by_prompt, judging, of_a_prompt, of_all_prompts
from selfreward.estimates.serving_memory import Serving, serving
from selfreward.estimates.speed import Lengths, Load, Server
from selfreward.estimates.training_memory import Training
from selfreward.launchers.layout import Layout
from selfreward.recipe.recipe import Recipe
from selfreward.runs.plan import plan
from selfreward.runs.stages import STAGES, Step

EPOCHS = 3.0  # of TRL, unless the recipe says otherwise


@dataclass(frozen=True)
class Stage:
    """A stage of the plan; ``measured_in`` is the iteration whose seconds it has, None for assumed ones."""

    step: Step
    processes: str
    load: Load
    disk: int
    measured_in: int | None = None


@dataclass(frozen=True)
class RunEstimate:
    """A recipe on a machine. What is slow to find is found when it is asked for."""

    recipe: Recipe
    machine: Machine

    @cached_property
    def layout(self) -> Layout:
        return Layout.of(self.recipe, self.machine.nodes, self.machine.gpus)

    @cached_property
    def sizes(self) -> Architecture:
        return read(self.recipe.model)

    @cached_property
    def serving(self) -> Serving:
        return serving(self.recipe, self.sizes, self.layout.replicas, self.machine.device)

    @cached_property
    def dpo(self) -> Training | None:
        """The training of an iteration, or None where there is no iteration."""
        return training_memory.dpo(*self._trained) if self.recipe.iterations else None

    @cached_property
    def sft(self) -> Training | None:
        """The training of the seed stage, or None where there is none."""
        return training_memory.sft(*self._trained) if self.recipe.seed_data is not None else None

    @property
    def _trained(self) -> Any:
        return self.recipe, self.sizes, self.layout, self.machine.device

    @property
    def keeps_engine(self) -> bool:
        """Whether the engine stays up while there is training."""
        keep = self.recipe.launch.keep_engine
        return self.machine.device.is_cpu if keep is None else keep

    @cached_property
    def data(self) -> Data:
        return count(self.recipe)

    @cached_property
    def measured(self) -> dict[str, dict[str, Any]]:
        return measured(self.recipe)

    @cached_property
    def lengths(self) -> Lengths:
        """Assumed lengths, with the mean of the answers that the run has sampled."""
        mean = self.measured.get("responses", {}).get("mean_tokens")
        share = speed.OF_MAX_TOKENS if mean is None else mean / self.recipe.responses.max_tokens
        return Lengths(self.data.prompt_tokens, self.data.instruction_tokens, share)

    @property
    def pairs(self) -> int:
        """The pairs of an iteration: as many as the last one had, or as there can be."""
        known = self.measured.get("pairs", {}).get("pairs")
        return self.data.prompts * (self.recipe.selection.max_per_prompt or 1) if known is None else int(known)

    @cached_property
    def stages(self) -> list[Stage]:
        """All stages of the run in their order."""
        return [self._stage(step) for step in plan(self.recipe)]

    @property
    def seconds(self) -> float:
        """Of all stages, with what an engine needs to serve each new model."""
        models = len({step.iteration for step in plan(self.recipe)})
        keeps, on_cpu = self.keeps_engine, self.machine.device.is_cpu
        start = speed.WAKE_S if keeps else speed.CPU_START_S if on_cpu else speed.START_S
        return models * (start + self.loading) + sum(stage.load.seconds or 0.0 for stage in self.stages)

    @property
    def loading(self) -> float:
        """Seconds in which the weights come from the disk."""
        return self.sizes.weight_bytes(self.recipe.model.dtype) / speed.DISK_BYTES_A_S

    @property
    def disk(self) -> int:
        """The most bytes that the run folder will have, with what a training needs for a while."""
        weights = self.sizes.weight_bytes(self.recipe.model.dtype)
        seed = self.recipe.seed_data is not None
        passing = disk.of_training(weights, self.recipe.model.dtype, seed) - weights
        return disk.MARGIN + passing + sum(stage.disk for stage in self.stages)

    def _stage(self, step: Step) -> Stage:
        load, known = self._load(step), self.measured.get(_name(step))
        measured_in = None
        if known is not None:
            measured_in = known["iteration"]
            load = Load(load.read, load.written, load.trained, known["seconds"])
        return Stage(step, self._processes(step), load, self._disk(step), measured_in)

    def _processes(self, step: Step) -> str:
        if STAGES[step.stage].trains:
            return f"{self.layout.ranks} x 1" if self.layout.ranks > 1 else "1"
        if not STAGES[step.stage].asks:
            return ""
        return f"{self.serving.replicas} x {self.serving.devices}"

    def _disk(self, step: Step) -> int:
        if STAGES[step.stage].trains:
            return self.sizes.weight_bytes(self.recipe.model.dtype)
        return disk.of_records(self.recipe, step, self.data.prompts)

    def _load(self, step: Step) -> Load:
        if STAGES[step.stage].trains:
            return self._training(step)
        server = Server(self.recipe, self.sizes, self.serving, self.machine.device)
        return server.load(self._requests(step), self.lengths)

    def _requests(self, step: Step) -> list[Requests]:
        """All requests of a stage."""
        recipe, num = self.recipe, self.data.prompts
        stage = STAGES[step.stage]
        if "prompts" in stage.asks:
            return of_all_prompts(recipe, num)
        if asks_by_prompt(stage):
            return [each.times(num) for each in of_a_prompt(recipe, stage, step.iteration)]
        if "logprobs" in stage.asks:
            # Two models read each response, and write nothing.
            asked = 2 * num * recipe.responses.n
            return [Requests(asked, 1, asked, answers=1, written=False)]
        return self._evaluation() if "held_out" in stage.asks else []

    def _evaluation(self) -> list[Requests]:
        recipe, data = self.recipe, self.data
        sampled = Requests(recipe.evaluation.n + 1, recipe.responses.max_tokens, 1).times(data.held_out)
        own = data.held_out if recipe.evaluation.scorer is None else 0
        judged = data.graded + data.canaries + own
        return [sampled, *(each.times(judged) for each in judging(recipe, 1))]

    def _training(self, step: Step) -> Load:
        if step.iteration == 0:
            assert self.sft is not None
            options, examples, tokens = self.recipe.training.sft, self.data.seed_examples, self.data.seed_tokens
            return self._trains(self.sft, options, examples, tokens)
        assert self.dpo is not None
        options = self.recipe.training.dpo_options(step.iteration)
        added = 1 + self.recipe.training.rehearsal + self.recipe.training.replay * (step.iteration > 1)
        answer = self.recipe.responses.max_tokens * self.lengths.share
        return self._trains(self.dpo, options, round(self.pairs * added), 2 * (self.lengths.prompt + answer))

    def _trains(self, trained: Training, options: dict[str, Any], examples: int, tokens: float) -> Load:
        batch = trained.per_device * trained.accumulation * trained.ranks
        epochs = float(options.get("num_train_epochs", EPOCHS))
        if (most := int(options.get("max_steps", -1))) > 0 and examples:
            epochs = most * batch / examples
        return speed.training(trained, self.sizes, self.machine.device, examples, epochs, tokens)


def _name(step: Step) -> str:
    """What a stage's measurements are called."""
    return "seed" if (step.stage, step.iteration) == ("train", 0) else step.stage
