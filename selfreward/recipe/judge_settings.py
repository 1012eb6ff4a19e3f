"""Judges, the meta-judge, and selection."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from selfreward.recipe import registry
from selfreward.recipe.base import PositiveInt, Settings
from selfreward.recipe.effects import Effect
from selfreward.recipe.engine_facts import engine_facts, require_methods, require_needs
from selfreward.recipe.engine_settings import EngineSettings, ModelSettings, SamplingSettings
from selfreward.recipe.judge_facts import JudgeFacts, Need
from selfreward.recipe.loader import RecipeFile, bad_value, is_stored, shown
from selfreward.recipe.own_options import check_own_options

# Several judges in one, which is no class.
ENSEMBLE = "ensemble"
# What the members of an ensemble have from it, unless they say otherwise.
INHERITED = (
    *("votes", "temperature", "top_p", "max_tokens", "min_score", "max_score", "reference", "min_parse_rate"),
    *("engine", "model"),
)
# Blocks and keys that are for some judges alone, which name them in ``uses``.
OWN_SETTINGS = ("criteria", "expected", "pairwise", "rubric", "verifier")
# Settings without a default that are for some selectors alone, which say that they need them.
SELECTOR_SETTINGS = ("pass_score",)
# What a selector is called with.
SELECTOR_ARGUMENTS = ("prompt", "responses", "scores", "rules")


class SelectorNeeds(NamedTuple):
    """What a selector says that it needs.

    Those are ``settings`` of the block ``selection`` that have no default and are for it alone, and ``principles``:
    revisions of the responses.
    """

    settings: tuple[str, ...] = ()
    principles: bool = False


class ExpectedSettings(Settings):
    """Settings of the expected-score judge."""

    decides = True

    think: bool = Field(
        True,
        description="Let the judge write its judgement, and read the distribution of the score at the place where "
        "the score stands. Off: read it at once, in a single forward pass.",
    )


class PairwiseSettings(Settings):
    """Settings of the pairwise judge, which sees two responses at a time, always in both orders."""

    decides = True

    matches: Literal["all", "random", "swiss"] = Field(
        "all",
        description="Which responses to a prompt meet: each two; random ones; or in Swiss rounds, those with "
        "like scores so far.",
    )
    rounds: PositiveInt = Field(3, description="Rounds of random or Swiss matches; each response meets one a round.")
    disagreement: Literal["both", "tie", "drop"] = Field(
        "both",
        description="Where the two orders name different winners: count both, call it a tie, or drop the match.",
    )
    think: bool = Field(
        True, description="Let the judge write its reasons and a verdict. Off: compare the labels' probabilities."
    )
    labels: Annotated[list[str], Field(min_length=2, max_length=2)] = Field(
        ["A", "B"], description="What the judge prompt calls the first and the second response."
    )

    @field_validator("labels")
    @classmethod
    def _distinct(cls, value: list[str]) -> list[str]:
        if not all(re.fullmatch(r"\w+", label) for label in value) or value[0].lower() == value[1].lower():
            raise ValueError(f"labels are {shown(value)}: give two different words, such as A and B")
        return value


class RubricSettings(Settings):
    """Settings of the rubric judge."""

    decides = True

    together: bool = Field(False, description="All criteria in one call; else a call for each.")


class VerifierSettings(Settings):
    """Settings of the verifier, a Python function. It runs in no sandbox: name only code that you trust."""

    decides = True

    function: str = Field(
        "exact_match",
        description="exact_match, regex, json_schema, instructions, or MODULE:FUNCTION from "
        "(prompt, response, **options) to a score, or None to abstain.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the function.")


class JudgeSettings(SamplingSettings):
    """The judge: by default M_t itself with the additive prompt of the paper."""

    name: str = Field(
        "additive",
        description="{names}, ensemble, or MODULE:CLASS.",
        json_schema_extra={"names": "JUDGES"},
    )
    votes: PositiveInt = Field(3, description="Judgements of each response; the score is their mean.")
    template: RecipeFile | None = Field(
        None,
        description="A text file in place of the judge's own prompt, with {prompt} and {response} (pairwise: {first} "
        "and {second}) where they belong; {reference} and {criteria} where those are used.",
    )
    min_score: int = Field(0, description="Lowest score the judge may give.")
    max_score: int = Field(5, description="Highest score the judge may give.")
    max_tokens: PositiveInt = Field(512, description="Most new tokens of a judgement.")
    reference: Literal["none", "answer", "prompt"] = Field(
        "none",
        description="What the judge compares with: nothing; an answer that it gives itself before it sees any "
        "(arXiv 2607.05904); or the prompt's own `reference`.",
    )
    criteria: RecipeFile | None = Field(
        None,
        description="A YAML file of criteria, each with name, description and weight: for rubric, and for pairwise "
        "in the A/B form (arXiv 2405.01535).",
    )
    expected: ExpectedSettings = ExpectedSettings()
    pairwise: PairwiseSettings = PairwiseSettings()
    rubric: RubricSettings = RubricSettings()
    verifier: VerifierSettings = VerifierSettings()
    # It decides whether a run goes on, not what it makes.
    min_parse_rate: Annotated[float, Field(ge=0.0, le=1.0), Effect.OPERATIONAL] = Field(
        0.5, description="The run stops where a smaller share of judgements has a readable score."
    )
    engine: EngineSettings | None = Field(
        None, description="Another engine to judge with. Empty: the model judges itself."
    )
    model: ModelSettings | None = Field(None, description="Another model to judge with, served by that engine.")

    options: dict[str, Any] | None = Field(
        None,
        description="Settings of a judge that brings its own, as docs/extend.md has it; paths in them start from the "
        "working directory.",
        exclude_if=lambda value: value is None,
    )

    @property
    def judge_class(self) -> Any:
        """The class of the judge, a subclass of ``selfreward.judges.Judge``. Raises ValueError where there is none."""
        return _judge_class(self.name)

    @property
    def facts(self) -> JudgeFacts:
        """What the judge says of itself under these settings."""
        if self.name == ENSEMBLE:
            return JudgeFacts()
        facts: JudgeFacts = self.judge_class.facts(self)
        return facts

    @property
    def needs(self) -> tuple[Need, ...]:
        """What it asks its engine for, with the answer of its own that it compares with."""
        needs = self.facts.needs
        return ("generate", *needs) if self.reference == "answer" and needs and "generate" not in needs else needs

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        if self.temperature == 0 and self.votes > 1:
            raise ValueError(
                f"temperature is 0, and all {self.votes} votes would be the same. Raise it, or set votes to 1"
            )
        if self.min_score >= self.max_score:
            raise ValueError(
                f"min_score is {self.min_score} and max_score is {self.max_score}: no score lies between them"
            )
        # A run's own recipe was checked when the run was made, and a user's module may have moved since.
        if not is_stored(info):
            self._check_class()
            self._check_engine()
        return self

    def _check_class(self) -> None:
        """Refuses what the judge's class has no use for, and a class that is no judge."""
        kind = None if self.name == ENSEMBLE else self.judge_class
        uses = () if kind is None else kind.uses
        for key in OWN_SETTINGS:
            if uses is not None and key not in uses and key in self._own_settings():
                raise ValueError(f"{key} {_owners(key)}, and name is {self.name}. Take one of the two out")
        check_own_options(None if kind is None else kind.Options, self.options, self.name, self._bad_option)
        if kind is not None:
            kind.check(self)

    def _bad_option(self, model: type[BaseModel], problem: Mapping[str, Any]) -> str:
        return f"{bad_value(problem)}. Options of {self.name}: {', '.join(model.model_fields)}"

    def _own_settings(self) -> list[str]:
        """Those of the settings for some judges alone that are not the default."""
        defaults = {key: type(self).model_fields[key].default for key in OWN_SETTINGS}
        return [key for key, default in defaults.items() if getattr(self, key) != default]

    def _check_engine(self) -> None:
        if self.engine is None:
            if "reward" in self.needs:
                able = [name for name in registry.ENGINES if "reward" in engine_facts(name).can]
                raise ValueError(
                    f"name is {self.name} and engine.name is empty: the judge {self.name} and the engine "
                    f"{' or '.join(able)} go together. Write both, with judge.model"
                )
            return
        name, own_model = self.engine.name, engine_facts(self.engine.name).own_model
        if own_model is False and self.model is None:
            raise ValueError(f"engine.name is {name}, and model is missing: name the model to judge with")
        if own_model and self.model is not None:
            raise ValueError(f"engine.name is {name}, whose model is engine.{name}.model: take judge.model out")
        if ":" in name:
            require_methods(name, (*self.needs, "close"), f"An engine of the judge {self.name}")
        # An ensemble's engine is asked by its members, which look at it themselves.
        if self.name != ENSEMBLE:
            require_needs(self.name, name, self.needs)


def _judge_class(name: str) -> Any:
    return registry.load_class(name, registry.JUDGES, "judge")


def _owners(key: str) -> str:
    owners = [name for name in registry.JUDGES if key in (_judge_class(name).uses or ())]
    return f"are for {' and '.join(owners)}" if key.endswith("a") else f"is for the judge {' and '.join(owners)}"


class MemberSettings(JudgeSettings):
    """A judge of an ensemble."""

    weight: Annotated[float, Field(gt=0.0)] = Field(1.0, description="How much it counts (not in label_model).")

    @field_validator("name")
    @classmethod
    def _no_nesting(cls, value: str) -> str:
        if value == ENSEMBLE:
            raise ValueError("an ensemble can't be a member of one. List its members instead")
        return value


class PanelSettings(JudgeSettings):
    """The judge of the loop: one, or an ensemble of several."""

    members: list[MemberSettings] = Field(
        default_factory=list,
        description="The judges of an ensemble. How they sample, their votes, range, reference, floor and engine are "
        "those of the ensemble, unless they say otherwise.",
    )
    combine: Literal["mean", "rank", "label_model"] = Field(
        "mean",
        description="How an ensemble's scores become one: their weighted mean, each judge's scaled to 0 to 1; the "
        "weighted mean of their ranks among a prompt's responses; or by accuracies learned without labels.",
    )

    @property
    def judges(self) -> Sequence[JudgeSettings]:
        """Those that are asked: the members of an ensemble, or the one there is."""
        return self.members or [self]

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, data: Any) -> Any:
        """What a member does not say of itself is said once for all."""
        if not isinstance(data, dict) or not isinstance(data.get("members"), list):
            return data
        shared = {name: data[name] for name in INHERITED if name in data}
        return {**data, "members": [{**shared, **m} if isinstance(m, dict) else m for m in data["members"]]}

    @model_validator(mode="after")
    def _check_members(self) -> Self:
        if self.name == ENSEMBLE and self.template is not None:
            raise ValueError("an ensemble has no judge prompt of its own: give each of its members its template")
        if (self.name == ENSEMBLE) != bool(self.members):
            raise ValueError(
                f"name is {self.name}, and there are {len(self.members)} members. An ensemble has members, and "
                "other judges have none"
            )
        return self


class SelectionSettings(Settings):
    """From judged responses to preference pairs."""

    decides = True

    name: str = Field(
        "best_worst",
        description="{names}, or MODULE:FUNCTION.",
        json_schema_extra={"names": "SELECTORS"},
    )
    min_margin: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="Pairs whose scores differ by less are dropped; equal scores never make a pair."
    )
    top: PositiveInt = Field(2, description="top_bottom: how many of the best are chosen ...")
    bottom: PositiveInt = Field(2, description="... against how many of the worst.")
    pass_score: float | None = Field(None, description="correct_incorrect: from which score on a response is correct.")
    length_rho: list[Annotated[float, Field(ge=0.0, le=0.5)]] = Field(
        [0.0, 0.32, 0.32, 0.4],
        description="length_controlled: which share of the score range counts as best, and as worst, by iteration; "
        "the last one stays (arXiv 2407.19594).",
        min_length=1,
    )
    anchored: bool = Field(
        False,
        description="From iteration 2 on M1 answers too, and its worst response is the rejected one where it scores "
        "below M_t's worst (arXiv 2508.06026).",
    )
    lookahead: bool = Field(
        False,
        description="A draft of M_{t+1} is trained and answers too; its best response is the chosen one where M_t "
        "scores it above M_t's best (arXiv 2508.06026). Doubles the cost of an iteration.",
    )
    implicit_agreement: bool = Field(
        False,
        description="From iteration 2 on, drop pairs that the implicit reward, log M_t/M_{t-1}, orders the other way "
        "(arXiv 2502.08922).",
    )
    max_per_prompt: PositiveInt | None = Field(None, description="Most pairs of one prompt: those of greatest margin.")
    max_per_source: PositiveInt | None = Field(None, description="Most pairs of one prompt source in an iteration.")

    @property
    def needs(self) -> SelectorNeeds:
        """What the selector needs; nothing where it does not say, or where its module is gone."""
        try:
            function = registry.load(self.name, registry.SELECTORS, "selector")
        except ValueError:
            return SelectorNeeds()
        needs: SelectorNeeds = getattr(function, "needs", SelectorNeeds())
        return needs

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        # A run's own recipe was checked when the run was made, and a user's module may have moved since.
        if is_stored(info):
            return self
        function = registry.load_function(self.name, registry.SELECTORS, "selector", SELECTOR_ARGUMENTS)
        # Of a function that says nothing it is not known what it reads.
        if (needs := getattr(function, "needs", None)) is not None:
            self._check_own(needs)
        return self

    def _check_own(self, needs: SelectorNeeds) -> None:
        for key in SELECTOR_SETTINGS:
            value, is_needed = getattr(self, key), key in needs.settings
            if is_needed != (value is not None):
                owners = [name for name in registry.SELECTORS if key in _selector_needs(name)]
                owner = self.name if is_needed else " or ".join(owners)
                raise ValueError(f"name is {self.name} and {key} is {value}: {owner} and {key} go together")

    def rho(self, iteration: int) -> float:
        """The length rule's rho in an iteration, from 1 on."""
        return self.length_rho[min(iteration, len(self.length_rho)) - 1]


def _selector_needs(name: str) -> tuple[str, ...]:
    needs: SelectorNeeds = registry.load(name, registry.SELECTORS, "selector").needs
    return needs.settings


class MetaSettings(SamplingSettings):
    """The meta-judge, which compares judgements; the best and the worst of them train judging (arXiv 2407.19594)."""

    iterations: Annotated[list[PositiveInt], Effect.PLAN] = Field([1, 2], description="In which iterations.")
    num: PositiveInt | None = Field(None, description="Most prompts whose judgements are compared. Empty: all.")
    template: RecipeFile | None = Field(
        None, description="A text file with {prompt}, {response}, {first} and {second} in place of its own prompt."
    )
    max_characters: PositiveInt = Field(1100, description="A longer judgement is never the better one.")
