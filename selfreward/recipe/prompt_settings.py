"""Where prompts come from, and the model that makes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from selfreward.recipe import registry
from selfreward.recipe.base import PositiveInt, Settings
from selfreward.recipe.engine_facts import names_own_model
from selfreward.recipe.engine_settings import EngineSettings, ModelSettings, SamplingSettings
from selfreward.recipe.filter_settings import FilterSettings, Share
from selfreward.recipe.loader import RecipeFile, RecipePath, bad_value, is_stored, shown, suggest
from selfreward.recipe.own_options import check_own_options

# What a mixture itself may say of rows.
OF_ALL = ("source", "columns", "max_characters", "on_bad_line")

# What a row can tell, under the names that `columns` knows.
COLUMNS = (
    *("prompt", "messages", "conversations", "instruction", "input", "instances", "is_classification", "system"),
    *("completion", "response", "output", "reference", "text", "source", "parent_id", "license"),
    *("rank", "score", "lang"),
)


class RowSettings(Settings):
    """Rows of a file or of a data set of the hub."""

    decides = True

    path: RecipeFile | None = Field(
        None,
        description="JSONL, JSON or Parquet. A row has `prompt` (a text, or messages), `messages`, ShareGPT's "
        "`conversations`, Alpaca's `instruction`, `input` and `output`, or Self-Instruct's `instruction` and "
        "`instances`; it may have `completion`, `response` or `output` (an answer), `reference` (a right one), "
        "`system`, `source` and `license`. A conversation is asked up to its last user message, and what follows "
        "that is its answer.",
    )
    hub: RecipePath | None = Field(
        None, description="In place of a file: a data set of the hub by name, or a folder that is laid out like one."
    )
    subset: str | None = Field(None, description="Which configuration of the hub's data set.")
    revision: str | None = Field(None, description="The commit of the hub's data set: needed, as data sets change.")
    split: str = Field("train", description="Which split of the hub's data set.")
    columns: dict[str, str] = Field(
        default_factory=dict, description="Where the rows have other names: {prompt: question} reads `question`."
    )
    license: str | None = Field(None, description="The licence of all rows that don't name their own.")
    streaming: bool = Field(
        False,
        description="Read no further than an iteration needs, for sets larger than memory. Wants `num`. The same "
        "prompt again is noticed within an iteration alone.",
    )
    max_characters: PositiveInt = Field(8000, description="A longer prompt is a bad line.")
    on_bad_line: Literal["error", "skip"] = Field(
        "error",
        description="Malformed, empty, duplicate or over-long lines: stop and name them, or skip and count them.",
    )

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name not in COLUMNS:
                raise ValueError(
                    f"{shown(name)} is nothing that is read. {suggest(name, COLUMNS, len(COLUMNS))} "
                    "Write OUR NAME: THE DATA'S NAME"
                )
        return value

    @model_validator(mode="after")
    def _check_rows(self, info: ValidationInfo) -> Self:
        if self.path is not None and self.hub is not None:
            raise ValueError(f"path is {self.path} and hub is {self.hub}: rows come from one of them. Take one out")
        if self.hub is not None and self.revision is None and not (is_stored(info) or Path(self.hub).is_dir()):
            raise ValueError(
                f"hub is {self.hub}, and revision is missing: data sets of the hub change. Give the commit to use"
            )
        if self.hub is None and (self.subset is not None or self.revision is not None):
            raise ValueError("subset and revision belong to a data set of the hub, and there is no hub. Take them out")
        return self


class GenerationSettings(SamplingSettings):
    """How prompts are written; the defaults are those of arXiv 2212.10560."""

    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(0.5, description="Nucleus sampling.")


class SelfInstructSettings(Settings):
    """New instructions after examples (arXiv 2212.10560)."""

    decides = True

    variant: Literal["paper", "alpaca"] = Field(
        "paper",
        description="paper: instructions first, then whether each is a classification, then its instances. alpaca: "
        "whole tasks with input and output, many in one output (set human: 3, machine: 0, tasks: 20).",
    )
    human: PositiveInt = Field(6, description="Examples in context from the seeds ...")
    machine: Annotated[int, Field(ge=0)] = Field(
        2, description="... and from what was made before; from the seeds too while there is nothing yet."
    )
    tasks: PositiveInt = Field(8, description="How many new ones one request asks for.")
    instances: Annotated[int, Field(ge=0, le=5)] = Field(
        1, description="Most instances (input and output) of an instruction; 0: the instruction alone is the prompt."
    )
    numbered: bool = Field(
        True, description="Examples and new instructions are a numbered list; off: lines without numbers."
    )
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = Field(
        2.0, description="Taken from the logit of each token that a list of instructions has already."
    )
    requests: PositiveInt = Field(32, description="Requests in a round; the next round sees what they brought.")
    patience: PositiveInt = Field(10, description="Rounds in a row without a new task after which it gives up.")
    template: RecipeFile | None = Field(
        None,
        description="A text file in place of the prompt that asks for more. {examples} is where they stand; it may "
        "have {number}, the one of the first new task in the list, and {num}, how many are wanted.",
    )
    template_variants: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Variants of that prompt which the model proposes each iteration; the best by yield, novelty and "
        "judged quality is used, and is the one to improve in the next iteration. 0: none.",
    )
    template_budget: PositiveInt = Field(
        8, description="Requests with which each variant is measured, and how many of its tasks the model scores."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.variant == "alpaca" and not (self.instances == 1 and self.numbered):
            raise ValueError(
                f"variant is alpaca, whose tasks have one instance and a number; instances is {self.instances} and "
                f"numbered {str(self.numbered).lower()}. Take them out, or use the variant paper"
            )
        return self


class EvolSettings(Settings):
    """Instructions made harder or rarer (arXiv 2304.12244)."""

    decides = True

    rounds: PositiveInt = Field(4, description="How often an instruction is evolved; each success is a prompt.")
    breadth: Share = Field(1 / 6, description="Share of evolutions that make a new instruction of the same domain.")
    eliminate: bool = Field(
        True,
        description="Drop evolutions that repeat words of the evolving prompt, that gain nothing (asked of the model), "
        "or whose answer says sorry in less than 80 words or has nothing but stop words.",
    )


class BacktranslationSettings(Settings):
    """Documents to instructions (arXiv 2308.06259). The rows are documents, with `text`."""

    decides = True

    min_score: Annotated[int, Field(ge=1, le=5)] = Field(
        4, description="The model's own score, 1 to 5, from which on a pair of instruction and document stays."
    )
    max_characters: PositiveInt = Field(4000, description="Longer documents are left out.")


class ExplainSettings(Settings):
    """Rows that a teacher answers and explains (arXiv 2306.02707)."""

    decides = True

    messages: RecipeFile | None = Field(
        None,
        description="A text file with the system messages, empty lines between them. Empty: 16 that ask for "
        "explanations in as many ways.",
    )


class CurriculumSettings(Settings):
    """Prompts that the current model finds informative."""

    decides = True

    again: Share = Field(0.5, description="Share of prompts that come from what earlier iterations asked.")
    evolve: bool = Field(False, description="Evolve those, as evol_instruct does, rather than asking them again.")
    min_spread: Annotated[float, Field(ge=0.0)] = Field(
        0.25, description="Least standard deviation of the scores of a prompt's responses."
    )
    solved: float | None = Field(
        None, description="From which score on a response solves its prompt. Empty: the judge's best score."
    )


class SourceSettings(RowSettings):
    """One source of prompts: rows as they are, or what a model makes of them."""

    source: str = Field(
        "dataset",
        description="{names}, or MODULE:CLASS.",
        json_schema_extra={"names": "PROMPT_SOURCES"},
    )
    by: Literal["current", "seed", "teacher"] = Field(
        "current", description="Which model makes prompts: M_t, M1, or the one of `model` and `engine`."
    )
    model: ModelSettings | None = Field(None, description="The teacher, where it is not behind a server.")
    engine: EngineSettings | None = Field(None, description="What serves the teacher. Empty: as the policy.")
    generation: GenerationSettings = GenerationSettings()
    self_instruct: SelfInstructSettings = SelfInstructSettings()
    evol_instruct: EvolSettings = EvolSettings()
    backtranslation: BacktranslationSettings = BacktranslationSettings()
    explain: ExplainSettings = ExplainSettings()
    curriculum: CurriculumSettings = CurriculumSettings()
    options: dict[str, Any] | None = Field(
        None,
        description="Settings of a source that brings its own, as docs/extend.md has it; paths in them start from the "
        "working directory.",
        exclude_if=lambda value: value is None,
    )

    def in_flight(self, otherwise: int) -> int:
        """How many tasks are worked on at once, by the teacher's engine if there is one."""
        return self.engine.max_in_flight if self.engine is not None else otherwise

    @property
    def source_class(self) -> Any:
        """What the source says of itself. Of a stored run, whose class may be gone, it is what any class may do."""
        try:
            return registry.load_class(self.source, registry.PROMPT_SOURCES, "prompt source")
        except ValueError:
            return registry.base_of("prompt source")

    @property
    def reads_rows(self) -> bool:
        """Whether the source needs a path or a data set of the hub."""
        return bool(self.source_class.reads_rows)

    @property
    def asks_a_model(self) -> bool:
        """Whether this source could go on for ever, by what it made before. What users write can."""
        return bool(self.source_class.reads_past)

    @property
    def needs_model(self) -> bool:
        """Whether a model has a part in the prompts."""
        return bool(self.source_class.asks_model(self))

    @property
    def writes(self) -> bool:
        """Whether instructions are a model's own, and not rows or what rows became."""
        return bool(self.source_class.writes)

    @model_validator(mode="after")
    def _check_source(self, info: ValidationInfo) -> Self:
        """Asks the class whether it can work with its settings; a stored recipe was asked when its run was made."""
        if is_stored(info):
            return self
        source = registry.load_class(self.source, registry.PROMPT_SOURCES, "prompt source")
        check_own_options(source.Options, self.options, self.source, _bad_option)
        source.check_settings(self)
        return self

    @model_validator(mode="after")
    def _check_teacher(self) -> Self:
        name = None if self.engine is None else self.engine.name
        if (self.by == "teacher") != (self.model is not None or self.engine is not None):
            raise ValueError(
                f"by is {self.by}, and there is {'no' if self.by == 'teacher' else 'a'} `model` or `engine`: a "
                "teacher and its model or engine go together"
            )
        has_own = name is not None and names_own_model(name)
        if has_own and self.model is not None:
            raise ValueError(f"engine.name is {name}, whose model is engine.{name}.model: take model out")
        if name is not None and not has_own and self.model is None:
            raise ValueError(f"engine.name is {name}, and model is missing: name the teacher's model")
        return self


class PartSettings(SourceSettings):
    """A source in a mixture."""

    weight: list[Annotated[float, Field(ge=0.0, allow_inf_nan=False)]] = Field(
        [1.0], description="Its share of the prompts, by iteration; the last one stays.", min_length=1
    )

    def share(self, iteration: int) -> float:
        """The weight in an iteration, from 1 on."""
        return self.weight[min(iteration, len(self.weight)) - 1]


class PromptSettings(SourceSettings):
    """Where the prompts of each iteration come from."""

    num: PositiveInt | None = Field(
        None, description="Prompts an iteration; each iteration takes the next ones. Empty: all, each time."
    )
    parts: list[PartSettings] = Field(default_factory=list, description="The sources of a mixture.")
    filters: FilterSettings = FilterSettings()

    @property
    def sources(self) -> list[SourceSettings]:
        """Those that give prompts: the parts of a mixture, or the one there is."""
        return [*self.parts] if self.parts else [self]

    @property
    def filter_names(self) -> list[str]:
        """The filters in their order."""
        return self.filters.names(reading=not any(source.writes for source in self.sources))

    def filters_of(self, source: SourceSettings) -> list[str]:
        """The filters that look at what one of the sources gives, in their order."""
        seen = source.source_class.filtered(source)
        names = self.filter_names if source.writes else self.filters.names(reading=True)
        return [name for name in names if getattr(self.filters.class_of(name), "of", None) in seen]

    @property
    def filter_classes(self) -> list[Any]:
        """What each filter says of itself, in their order."""
        return [self.filters.class_of(name) for name in self.filter_names]

    @property
    def filter_models(self) -> list[ModelSettings]:
        """The models that filters load."""
        models = [each.model(self.filters) for each in self.filter_classes]
        return [model for model in models if model is not None]

    @property
    def reads_held_out(self) -> bool:
        """Whether the recipe's evaluation data decides what filters take out."""
        return any(each.reads_held_out(self.filters) for each in self.filter_classes)

    @property
    def reads_past(self) -> bool:
        """Whether the prompts of an iteration depend on those of earlier ones: on all but rows as they are."""
        return any(source.asks_a_model for source in self.sources)

    @property
    def keeps_tasks(self) -> bool:
        """Whether there is more to keep of prompts than what is asked: a model made them, or filters looked at them."""
        return self.reads_past or bool(self.filter_names)

    @property
    def reads_difficulty(self) -> bool:
        """Whether prompts are chosen by how earlier models did on theirs."""
        return any(source.source_class.reads_difficulty for source in self.sources)

    @property
    def searches_templates(self) -> bool:
        """Whether the prompts that ask for prompts evolve: each iteration improves on what the one before it used."""
        return any(source.source_class.searches_templates(source) for source in self.sources)

    @property
    def solved_score(self) -> float | None:
        """From which score on a response solves its prompt, by the first source that says so."""
        limits = [source.source_class.solved_score(source) for source in self.sources]
        return next((limit for limit in limits if limit is not None), None)

    def _own(self) -> list[str]:
        """The settings of a source that were set beside the parts; held-out data is read with some of them."""
        fields = {name: field for name, field in SourceSettings.model_fields.items() if name not in OF_ALL}
        return [name for name, field in fields.items() if getattr(self, name) != field.get_default()]

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        if is_stored(info):
            return self
        if self.source_class.has_parts != bool(self.parts):
            raise ValueError(
                f"source is {self.source}, and there are {len(self.parts)} parts. A mixture has parts, and other "
                "sources have none"
            )
        if self.parts and (own := self._own()):
            raise ValueError(
                f"source is {self.source}, whose parts have rows, a model and settings of their own. Move "
                f"{', '.join(own)} into them"
            )
        if any(part.source_class.has_parts for part in self.parts):
            raise ValueError("a part of a mixture is a mixture itself. List its parts instead")
        wanting = [each for each in self.sources if each.asks_a_model or each.streaming or not each.reads_rows]
        if self.num is None and (self.parts or wanting):
            raise ValueError(f"source is {self.source}, and num is missing: say how many prompts an iteration wants")
        for each in self.sources:
            if each.streaming and not each.source_class.streams:
                raise ValueError(f"streaming is for the source dataset, and source is {each.source}. Take it out")
            if each.streaming and self.filters.names(reading=True):
                raise ValueError("filters compare with all rows, and streaming never holds all. Filter them beforehand")
        return self


def _bad_option(model: type[BaseModel], problem: Mapping[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        return f"unknown key. {suggest(str(problem['loc'][-1]), [*model.model_fields])}"
    return bad_value(problem)
