"""Data sets that are made outside of a loop."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from selfreward.recipe.base import Settings
from selfreward.recipe.eft_settings import EFTSettings
from selfreward.recipe.engine_facts import engine_facts, names_own_model
from selfreward.recipe.engine_settings import EngineSettings, ModelSettings
from selfreward.recipe.loader import RecipeFile
from selfreward.recipe.prompt_settings import PromptSettings, RowSettings


class JobSettings(Settings):
    """What makes a data set: the model that writes, and what is said of licences."""

    decides = True

    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Every random choice derives from it.")
    model: ModelSettings | None = Field(None, description="The model that writes, where it is not behind a server.")
    engine: EngineSettings = EngineSettings()
    license: str | None = Field(None, description="The licence that you give to what is made.")
    model_license: str | None = Field(None, description="The licence of the model, which may bind what it writes.")

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        if names_own_model(self.engine.name) and self.model is not None:
            raise ValueError(
                f"engine.name is {self.engine.name}, whose model is engine.{self.engine.name}.model: take model out"
            )
        if "generate" not in engine_facts(self.engine.name).can:
            raise ValueError(f"engine.name is {self.engine.name}, which generates nothing, and a data set is written")
        return self


class DataJob(JobSettings):
    """A data set that a prompt source gives."""

    prompts: PromptSettings

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        for source in self.prompts.sources:
            if source.source_class.reads_difficulty:
                raise ValueError(f"the source {source.source} asks how a loop's models did, and here is no loop")
            if source.by != "current":
                raise ValueError(f"by is {source.by}, and a data set has one model. Name it with --model")
        return self


class IFTJob(JobSettings):
    """Instruction data from ranked human answers."""

    ranked: RowSettings = Field(description="Trees or messages as OASST has them, or rows with prompt, response, rank.")
    lang: str | None = Field(None, description="The language of the prompts, such as en. Empty: all.")
    without: RecipeFile | None = Field(None, description="Judging data whose prompts are left out, as it is held out.")


class EFTJob(JobSettings):
    """Judging data from ranked human answers."""

    ranked: RowSettings
    lang: str | None = None
    eft: EFTSettings = EFTSettings()


JOBS: tuple[type[JobSettings], ...] = (DataJob, IFTJob, EFTJob)
