"""The recipe: typed, strict, free of torch.

A recipe is one YAML file. Settings that the loop itself reads are typed here; the blocks
``training.sft``, ``training.dpo``, ``training.lora`` and ``engine.vllm`` are handed to ``SFTConfig``,
``DPOConfig``, ``LoraConfig`` and vLLM's ``EngineArgs`` under upstream's own names, and are checked
against the fields of the installed versions (:mod:`selfreward.upstream`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from selfreward.recipe_file import STORED, OptionError, RecipeError, RecipeFile, edit, is_stored, read, shown
from selfreward.settings.base import PositiveInt, Settings
from selfreward.settings.engine import EngineSettings, ModelSettings, SamplingSettings
from selfreward.settings.judge import UNTAUGHT, MetaSettings, PanelSettings, SelectionSettings
from selfreward.settings.launch import LaunchSettings
from selfreward.settings.prompts import BUILT_IN, PromptSettings
from selfreward.settings.training import TrainingSettings

__all__ = ["Recipe", "RecipeError", "load_recipe"]

Rule = Literal["drop", "keep"]


class SeedDataSettings(Settings):
    """Data of the seed stage, which makes M1 from M0 by SFT (section 2.1 of arXiv 2401.10020)."""

    ift: RecipeFile = Field(
        description="Instruction data, in any format of prompts.path that has an answer: `prompt` and `response`, "
        "`instruction`, `input` and `output`, conversations."
    )
    eft: RecipeFile | None = Field(
        None, description="Judging data: JSONL with `prompt`, `response` and `judgement`. Empty: none."
    )


class ResponseSettings(SamplingSettings):
    """N responses to each prompt, sampled from M_t."""

    n: Annotated[int, Field(ge=2)] = Field(4, description="Responses to each prompt; at least 2.")
    on_empty: Rule = Field("drop", description="Responses without text: drop them from selection, or keep them.")
    on_truncated: Rule = Field("drop", description="Responses cut at max_tokens: drop or keep.")
    on_duplicate: Rule = Field("keep", description="Responses with the text of an earlier one: drop or keep.")
    principles: RecipeFile | None = Field(
        None,
        description="A text file with one principle a line: each response is criticised and revised by M_t under "
        "principles of it (arXiv 2212.08073), and the last revision is a response too.",
    )
    revisions: PositiveInt = Field(1, description="Turns of critique and revision; needs principles.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.temperature == 0:
            raise ValueError(f"temperature is 0, and all {self.n} responses to a prompt would be the same. Raise it")
        if self.revisions > 1 and self.principles is None:
            raise ValueError(
                f"revisions is {self.revisions}, and there are no principles to revise by. Name their file"
            )
        return self


class EvaluationSettings(Settings):
    """Measurements on held-out data, of M1 and of the model of each iteration."""

    prompts: RecipeFile | None = Field(
        None,
        description="Held-out prompts, in any format of prompts.path. prompts.columns holds for rows that have such a "
        "column; the others are read under their own names.",
    )
    n: PositiveInt = Field(1, description="Responses sampled for each held-out prompt, besides one greedy.")
    scorer: str | None = Field(
        None, description="MODULE:FUNCTION from (prompt, response) to a number: measures, never trains."
    )
    pass_score: float | None = Field(None, description="From which gold score on a response passes, for pass rates.")
    judging: RecipeFile | None = Field(
        None, description="Held-out judging data, in the format of seed_data.eft: how well the model judges."
    )
    canaries: Annotated[int, Field(ge=0)] = Field(
        8,
        description="Of how many held-out prompts the judge is also shown empty phrases known to fool judges; the "
        "share that scores no lower than the model's own answer is a figure.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.scorer is not None and self.prompts is None:
            raise ValueError("a scorer needs evaluation.prompts to score responses to")
        if self.pass_score is not None and self.scorer is None:
            raise ValueError(f"pass_score is {self.pass_score}, and there is no scorer whose scores could pass")
        return self


class HealthSettings(Settings):
    """Signs of collapse, looked for at the end of each stage. Each limit can be empty: not looked for."""

    action: Literal["warn", "halt"] = Field("warn", description="Say so and go on, or stop the run.")
    max_length_ratio: Annotated[float, Field(gt=1.0)] | None = Field(
        2.0, description="Mean tokens of the responses beside those of the first iteration."
    )
    min_distinct: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        0.05,
        description="How different the responses to one prompt are, from 0 (one text) to 1 (no text twice).",
    )
    max_tied: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(
        0.9, description="Share of prompts whose responses all have the same score."
    )
    max_canary_rate: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(
        0.5, description="Share of the canaries that the judge accepts."
    )
    min_accepted: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        0.1, description="Share of what was made as prompts that passes the filters."
    )
    max_diversity_drop: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        0.5,
        description="By what share distinct_2 or distinct_roots of the prompts fall below those of the first "
        "iteration. Not looked for where that has fewer than 20 prompts.",
    )


class TrackingSettings(Settings):
    """Where loop metrics and trainer logs go besides ``metrics.jsonl``."""

    report_to: list[str] = Field(
        default_factory=list, description="accelerate's trackers: tensorboard, wandb, trackio, mlflow, ..."
    )
    project: str = Field("selfreward", description="The project's name in the tracker.")

    @field_validator("project")
    @classmethod
    def _plain_name(cls, value: str, info: ValidationInfo) -> str:
        # Trackers that write files make a folder of it.
        if not is_stored(info) and not re.fullmatch(r"\w[\w .-]{0,99}", value):
            raise ValueError(f"{shown(value)} is not a project's name: use letters, digits, ' ', '.', '_' and '-'")
        return value


class Recipe(Settings):
    """Everything that decides what a run does."""

    name: str = Field(description="The run's name: its folder is RUN_DIR/NAME.")
    run_dir: Path = Field(
        Path("runs"), strict=False, description="The folder of runs, relative to where you start from."
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="Every random choice of the run derives from it."
    )
    iterations: Annotated[int, Field(ge=0)] = Field(
        3, description="T: from M1 to M(T+1). 0: the seed stage alone, which is plain SFT."
    )
    model: ModelSettings
    seed_data: SeedDataSettings | None = Field(
        None, description="Makes M1 by SFT. Empty: the model can judge already and is M1."
    )
    prompts: PromptSettings = PromptSettings()
    responses: ResponseSettings = ResponseSettings()
    judge: PanelSettings = PanelSettings()
    meta: MetaSettings | None = Field(None, description="Empty: no meta-judge.")
    selection: SelectionSettings = SelectionSettings()
    training: TrainingSettings = TrainingSettings()
    engine: EngineSettings = EngineSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    health: HealthSettings = HealthSettings()
    launch: LaunchSettings = LaunchSettings()
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
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
        self._check_training_of_judges()
        if self.meta is not None and (self.judge.name != "additive" or self.judge.votes < 2):
            raise ValueError(
                f"meta compares the votes of the additive judge, and judge.name is {self.judge.name} with "
                f"{self.judge.votes} votes. Use additive with at least 2 votes, or take meta out"
            )
        if self.meta is not None and self.judge.reference == "answer":
            raise ValueError("meta trains on judge prompts, which judge.reference: answer makes anew for each model")
        if (self.selection.name == "revision") > (self.responses.principles is not None):
            raise ValueError("selection.name is revision, and there are no responses.principles to revise by")
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
            if self.iterations and source.source in BUILT_IN and source.path is None and source.hub is None:
                raise OptionError(
                    "prompts", f"path is missing: {source.source} reads rows. Name a file (path), or a data set (hub)"
                )
        for iteration in range(1, self.iterations + 1):
            if self.prompts.parts and not any(part.share(iteration) for part in self.prompts.parts):
                raise OptionError(
                    "prompts", f"all weights are 0 in iteration {iteration}. Give a part a weight above 0"
                )

    def _check_training_of_judges(self) -> None:
        """Refuses what nothing would come of with the judges that there are."""
        judges = self.judge.judges
        names = ", ".join(judge.name for judge in judges)
        if self.training.rehearsal and {judge.name for judge in judges} <= set(UNTAUGHT):
            raise ValueError(
                f"training.rehearsal is {self.training.rehearsal}, and judging data teaches {names} nothing. "
                "Set training.rehearsal to 0"
            )
        asked = [
            j for j in judges if j.engine is None and j.model is None and j.name not in ("verifier", "reward_model")
        ]
        if self.training.consistency != "none" and not asked:
            raise ValueError(
                f"training.consistency is {self.training.consistency}, and {names} judges the same whatever M_t is. "
                "Let the model judge itself, or write consistency: none"
            )

    @field_validator("engine")
    @classmethod
    def _policy_engine(cls, value: EngineSettings) -> EngineSettings:
        if value.name == "classifier":
            raise ValueError("engine.name is classifier, which generates nothing. It can judge: judge.engine")
        if value.name == "openai":
            raise ValueError(
                "engine.name is openai, and the weights of a server can't be replaced by the model that was trained. "
                "Use vllm or transformers here; a server can be the judge: judge.engine"
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
