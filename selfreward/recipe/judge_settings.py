"""Judges, the meta-judge, and selection."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from selfreward.recipe.base import PositiveInt, Settings
from selfreward.recipe.engine_settings import EngineSettings, ModelSettings, SamplingSettings
from selfreward.recipe.loader import RecipeFile, shown

JUDGE_NAMES = ("additive", "expected_score", "yes_no", "rubric", "pairwise", "verifier", "reward_model", "ensemble")
# Judges of which judging data is no example.
UNTAUGHT = ("verifier", "reward_model", "rubric")
# What the members of an ensemble have from it, unless they say otherwise.
INHERITED = (
    *("votes", "temperature", "top_p", "max_tokens", "min_score", "max_score", "reference", "min_parse_rate"),
    *("engine", "model"),
)
# The judge that each block of settings is for.
BLOCK_OF = {"expected": "expected_score", "pairwise": "pairwise", "rubric": "rubric", "verifier": "verifier"}
SELECTOR_NAMES = ("best_worst", "top_bottom", "correct_incorrect", "length_controlled", "revision")


class ExpectedSettings(Settings):
    """Settings of the expected-score judge."""

    think: bool = Field(
        True,
        description="Let the judge write its judgement, and read the distribution of the score at the place where "
        "the score stands. Off: read it at once, in a single forward pass.",
    )


class PairwiseSettings(Settings):
    """Settings of the pairwise judge, which sees two responses at a time, always in both orders."""

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

    together: bool = Field(False, description="All criteria in one call; else a call for each.")


class VerifierSettings(Settings):
    """Settings of the verifier, a Python function. It runs in no sandbox: name only code that you trust."""

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
        description="additive, expected_score, yes_no, rubric, pairwise, verifier, reward_model, ensemble, "
        "or MODULE:CLASS.",
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
    min_parse_rate: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.5, description="The run stops where a smaller share of judgements has a readable score."
    )
    engine: EngineSettings | None = Field(
        None, description="Another engine to judge with. Empty: the model judges itself."
    )
    model: ModelSettings | None = Field(None, description="Another model to judge with, served by that engine.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_engine()
        if self.temperature == 0 and self.votes > 1:
            raise ValueError(
                f"temperature is 0, and all {self.votes} votes would be the same. Raise it, or set votes to 1"
            )
        if self.min_score >= self.max_score:
            raise ValueError(
                f"min_score is {self.min_score} and max_score is {self.max_score}: no score lies between them"
            )
        if self.name == "rubric" and self.criteria is None:
            raise ValueError("name is rubric, and criteria is missing. Name the file that lists them")
        if self.criteria is not None and self.name in JUDGE_NAMES and self.name not in ("rubric", "pairwise"):
            raise ValueError(f"criteria are for rubric and pairwise, and name is {self.name}. Take one of the two out")
        for block, owner in BLOCK_OF.items():
            if self.name in JUDGE_NAMES and self.name != owner and getattr(self, block) != type(getattr(self, block))():
                raise ValueError(f"{block} is for the judge {owner}, and name is {self.name}. Take one of the two out")
        return self

    def _check_engine(self) -> None:
        name = None if self.engine is None else self.engine.name
        if name in ("vllm", "transformers", "classifier") and self.model is None:
            raise ValueError(f"engine.name is {name}, and model is missing: name the model to judge with")
        if name == "openai" and self.model is not None:
            raise ValueError("engine.name is openai, whose model is engine.openai.model: take judge.model out")
        if name == "openai" and self.name == "expected_score":
            raise ValueError(
                "name is expected_score and engine.name is openai: a server can't tell how a begun answer goes on. Use "
                "yes_no, or pairwise with think: false, or judge with vllm or transformers"
            )
        if self.name in JUDGE_NAMES and (self.name == "reward_model") != (name == "classifier"):
            raise ValueError(
                f"name is {self.name} and engine.name is {name or 'empty'}: the judge reward_model and the engine "
                "classifier go together. Write both, with judge.model"
            )


class MemberSettings(JudgeSettings):
    """A judge of an ensemble."""

    weight: Annotated[float, Field(gt=0.0)] = Field(1.0, description="How much it counts (not in label_model).")

    @field_validator("name")
    @classmethod
    def _no_nesting(cls, value: str) -> str:
        if value == "ensemble":
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
        if self.name == "ensemble" and self.template is not None:
            raise ValueError("an ensemble has no judge prompt of its own: give each of its members its template")
        if self.name in JUDGE_NAMES and (self.name == "ensemble") != bool(self.members):
            raise ValueError(
                f"name is {self.name}, and there are {len(self.members)} members. An ensemble has members, and "
                "other judges have none"
            )
        return self


class SelectionSettings(Settings):
    """From judged responses to preference pairs."""

    name: str = Field(
        "best_worst",
        description="best_worst, top_bottom, correct_incorrect, length_controlled, revision, or MODULE:FUNCTION.",
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

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.name == "correct_incorrect") != (self.pass_score is not None) and self.name in SELECTOR_NAMES:
            raise ValueError(
                f"name is {self.name} and pass_score is {self.pass_score}: correct_incorrect and pass_score go together"
            )
        return self

    def rho(self, iteration: int) -> float:
        """The length rule's rho in an iteration, from 1 on."""
        return self.length_rho[min(iteration, len(self.length_rho)) - 1]


class MetaSettings(SamplingSettings):
    """The meta-judge, which compares judgements; the best and the worst of them train judging (arXiv 2407.19594)."""

    iterations: list[PositiveInt] = Field([1, 2], description="In which iterations.")
    num: PositiveInt | None = Field(None, description="Most prompts whose judgements are compared. Empty: all.")
    template: RecipeFile | None = Field(
        None, description="A text file with {prompt}, {response}, {first} and {second} in place of its own prompt."
    )
    max_characters: PositiveInt = Field(1100, description="A longer judgement is never the better one.")
