"""The recipe: typed, strict, free of torch.

A recipe is one YAML file. Settings that the loop itself reads are typed here; the blocks
``training.sft``, ``training.dpo``, ``training.lora`` and ``engine.vllm`` are handed to ``SFTConfig``,
``DPOConfig``, ``LoraConfig`` and vLLM's ``EngineArgs`` under upstream's own names, and are checked
against the fields of the installed versions (:mod:`selfreward.recipe.upstream`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from selfreward.recipe import registry
from selfreward.recipe.base import Settings
from selfreward.recipe.effects import Effect
from selfreward.recipe.engine_facts import POLICY, engine_facts, require_methods, require_needs
from selfreward.recipe.engine_settings import EngineSettings, ModelSettings
from selfreward.recipe.evaluation_settings import EvaluationSettings
from selfreward.recipe.health_settings import HealthSettings
from selfreward.recipe.judge_settings import MetaSettings, PanelSettings, SelectionSettings
from selfreward.recipe.launch_settings import LaunchSettings
from selfreward.recipe.loader import STORED, OptionError, RecipeError, edit, is_stored, read, shown
from selfreward.recipe.prompt_settings import PromptSettings
from selfreward.recipe.response_settings import ResponseSettings
from selfreward.recipe.seed_settings import SeedDataSettings
from selfreward.recipe.tracking_settings import TrackingSettings
from selfreward.recipe.training_settings import TrainingSettings

__all__ = ["Recipe", "RecipeError", "load_recipe"]


class Recipe(Settings):
    """Everything that decides what a run does."""

    name: Annotated[str, Effect.OPERATIONAL] = Field(description="The run's name: its folder is RUN_DIR/NAME.")
    run_dir: Annotated[Path, Effect.OPERATIONAL] = Field(
        Path("runs"), strict=False, description="The folder of runs, relative to where you start from."
    )
    seed: Annotated[int, Field(ge=0, lt=2**31), Effect.VALUE] = Field(
        0, description="Every random choice of the run derives from it."
    )
    iterations: Annotated[int, Field(ge=0), Effect.PLAN] = Field(
        3, description="T: from M1 to M(T+1). 0: the seed stage alone, which is plain SFT."
    )
    model: ModelSettings
    seed_data: SeedDataSettings | None = Field(
        None, description="Makes M1 by SFT. Empty: the model can judge already and is M1."
    )
    prompts: PromptSettings = Field(default_factory=PromptSettings)
    responses: ResponseSettings = ResponseSettings()
    judge: PanelSettings = Field(default_factory=PanelSettings)
    meta: MetaSettings | None = Field(None, description="Empty: no meta-judge.")
    selection: SelectionSettings = Field(default_factory=SelectionSettings)
    training: TrainingSettings = TrainingSettings()
    engine: EngineSettings = EngineSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    health: HealthSettings = HealthSettings()
    launch: LaunchSettings = LaunchSettings()
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        if self.training.rehearsal and (self.seed_data is None or self.seed_data.eft is None):
            raise ValueError(
                f"training.rehearsal is {self.training.rehearsal}, and there is no seed_data.eft to rehearse. "
                "Add seed_data, or set training.rehearsal to 0"
            )
        if self.launch.launcher == "ray" and self.launch.keep_engine and any(self._of_others("model")):
            raise ValueError(
                "launch.keep_engine is true and launcher is ray, for which an engine that sleeps has its GPUs, and a "
                "judge or teacher has a model of its own, which would find none. Write keep_engine: false"
            )
        if self.iterations == 0 and self.seed_data is None:
            raise ValueError("iterations is 0, and there is no seed_data: nothing would be trained")
        self._check_prompts()
        # A run's own recipe was checked when the run was made, and a user's module may have moved since.
        if not is_stored(info):
            self._check_engines()
            self._check_training_of_judges()
            self._check_meta()
        if self.meta is not None and self.judge.reference == "answer":
            raise ValueError("meta trains on judge prompts, which judge.reference: answer makes anew for each model")
        if self.selection.needs.principles and self.responses.principles is None:
            name = self.selection.name
            raise ValueError(f"selection.name is {name}, and there are no responses.principles to revise by")
        return self

    @property
    def engines(self) -> list[EngineSettings]:
        """Every engine that is named: the policy's, and those of judges and teachers."""
        return [self.engine, *(each for each in self._of_others("engine") if each is not None)]

    def _of_others(self, name: str) -> list[Any]:
        """The ``model`` or ``engine`` of each judge and of each source of prompts, None where it names none."""
        return [getattr(each, name) for each in (self.judge, *self.judge.members, *self.prompts.sources)]

    def _check_prompts(self) -> None:
        """Refuses sources without rows, and an iteration that no source has a share in."""
        for source in self.prompts.sources:
            if self.iterations and source.reads_rows and source.path is None and source.hub is None:
                raise OptionError(
                    "prompts", f"path is missing: {source.source} reads rows. Name a file (path), or a data set (hub)"
                )
        for iteration in range(1, self.iterations + 1):
            if self.prompts.parts and not any(part.share(iteration) for part in self.prompts.parts):
                raise OptionError(
                    "prompts", f"all weights are 0 in iteration {iteration}. Give a part a weight above 0"
                )

    def _check_engines(self) -> None:
        """Refuses an engine that can't do what the loop, its judge or its source asks it for."""
        if ":" in self.engine.name:
            require_methods(self.engine.name, POLICY, "The policy's engine")
        for judge in self.judge.judges:
            if judge.engine is None:
                require_needs(judge.name, self.engine.name, judge.needs)
        for source in self.prompts.sources:
            if source.engine is not None and source.needs_model:
                require_needs(source.source, source.engine.name, ("generate",))

    def _check_meta(self) -> None:
        if self.meta is not None and (not self.judge.facts.is_compared or self.judge.votes < 2):
            raise ValueError(
                f"meta compares the votes of the additive judge, and judge.name is {self.judge.name} with "
                f"{self.judge.votes} votes. Use additive with at least 2 votes, or take meta out"
            )

    def _check_training_of_judges(self) -> None:
        """Refuses what nothing would come of with the judges that there are."""
        judges = self.judge.judges
        names = ", ".join(judge.name for judge in judges)
        if self.training.rehearsal and not any(judge.facts.is_taught for judge in judges):
            raise ValueError(
                f"training.rehearsal is {self.training.rehearsal}, and judging data teaches {names} nothing. "
                "Set training.rehearsal to 0"
            )
        asked = [judge for judge in judges if judge.engine is None and judge.model is None and judge.needs]
        if self.training.consistency != "none" and not asked:
            raise ValueError(
                f"training.consistency is {self.training.consistency}, and {names} judges the same whatever M_t is. "
                "Let the model judge itself, or write consistency: none"
            )

    @field_validator("engine")
    @classmethod
    def _policy_engine(cls, value: EngineSettings, info: ValidationInfo) -> EngineSettings:
        if is_stored(info) or value.name not in registry.ENGINES:
            return value
        can = engine_facts(value.name).can
        if "generate" not in can:
            raise ValueError(f"engine.name is {value.name}, which generates nothing. It can judge: judge.engine")
        if "reload" not in can:
            raise ValueError(
                f"engine.name is {value.name}, and the weights of a server can't be replaced by the model that was "
                "trained. Use vllm or transformers here; a server can be the judge: judge.engine"
            )
        return value

    @field_validator("name")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ValueError(f"{shown(value)} is not a run name: use letters, digits, '.', '_' and '-'")
        return value


def stored_recipe(resolved: dict[str, Any]) -> Recipe:
    """The recipe of an existing run, whose files may have moved and whose libraries may have changed since."""
    return Recipe.model_validate_json(json.dumps(resolved), context=STORED)


def edited_recipe(resolved: dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of an existing run with ``key=value`` overrides, checked anew.

    Raises:
        RecipeError: it can't be run any more, or with these values.
    """
    return edit(Recipe, resolved, overrides)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        path: the YAML file.
        overrides: ``key=value`` strings that win over the file, such as ``training.dpo.beta=0.2``.

    Raises:
        RecipeError: the recipe can't be run; the message has a line for each thing to mend.
    """
    return read(Recipe, Path(path), overrides)
