"""The records that an iteration's pairs were made from, for all that looks behind a pair. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from selfreward.records import ImplicitReward, Judgement, PreferencePair, Prompt, R, Rejection, Response
from selfreward.runs.folders import iteration_folder
from selfreward.runs.run import Run
from selfreward.runs.stages import STAGES, Stage, records_named

# What every pair was made from, and its own stage.
NEEDED = ("prompts", "responses", "judgements", "pairs")
# The records of responses: M_t's, the anchor model's, and the look-ahead model's.
SAMPLED = ("responses", "anchors", "lookahead")


@dataclass(frozen=True)
class IterationRecords:
    """What the pairs of an iteration were made from, read when it is first asked for.

    Records of an earlier recipe may lie beside those that took part: they are left out.
    """

    run: Run
    iteration: int
    pairs_stage: Stage = STAGES["pairs"]

    def of_draft(self) -> IterationRecords:
        """The same with the pairs that the draft of M_{t+1} is trained on."""
        return replace(self, pairs_stage=STAGES["draft_pairs"])

    @cached_property
    def stages(self) -> list[str]:
        """The stages of the iteration that the pairs were made from, and the pairs' own."""
        reads = self.run.stage(self.pairs_stage.name, self.iteration).marker["reads"]["stages"]
        folder = f"{iteration_folder(self.iteration)}/"
        beside = [name.removeprefix(folder) for name in reads if name.startswith(folder)]
        return [*NEEDED, *(name for name in beside if name not in NEEDED)]

    def are_among(self, folders: set[str]) -> bool:
        """Whether the folders of all these stages are among some of the run's."""
        # Only a marker that is whole tells the others.
        return self._folders(NEEDED) <= folders and self._folders(self.stages) <= folders

    @cached_property
    def prompts(self) -> dict[str, Prompt]:
        """By id, in their order."""
        return {prompt.id: prompt for prompt in self._read("prompts", Prompt)}

    @cached_property
    def responses(self) -> dict[str, dict[str, Response]]:
        """By id, in their order, for each of ``SAMPLED``."""
        return {name: {response.id: response for response in self._read(name, Response)} for name in SAMPLED}

    @cached_property
    def judgements(self) -> list[Judgement]:
        return self._read("judgements", Judgement)

    @cached_property
    def previous_judgements(self) -> list[Judgement]:
        """Those of M_{t-1}."""
        return self._read("previous_judgements", Judgement)

    @cached_property
    def lookahead_judgements(self) -> list[Judgement]:
        return self._read("lookahead_judgements", Judgement)

    @cached_property
    def implicit_rewards(self) -> list[ImplicitReward]:
        return self._read("implicit", ImplicitReward)

    @cached_property
    def pairs(self) -> list[PreferencePair]:
        return self._read(self._pairs_records[0], PreferencePair)

    @cached_property
    def rejections(self) -> list[Rejection]:
        return self._read(self._pairs_records[1], Rejection)

    @cached_property
    def verdicts(self) -> list[Judgement]:
        """The meta-judge's. No pair is made from them: whether there are any, the caller has to know."""
        return self.run.records("meta", self.iteration, Judgement)

    @cached_property
    def judge_pairs(self) -> list[PreferencePair]:
        """Those of the verdicts."""
        return self.run.records("judge_pairs", self.iteration, PreferencePair)

    @property
    def _pairs_records(self) -> list[str]:
        """The names of pairs and rejections."""
        return [*self.pairs_stage.records]

    def _read(self, name: str, kind: type[R]) -> list[R]:
        stage = records_named(name)[0]
        has_part = stage in NEEDED or stage in self.stages or stage == self.pairs_stage.name
        return self.run.records(name, self.iteration, kind) if has_part else []

    def _folders(self, stages: Iterable[str]) -> set[str]:
        return {f"{iteration_folder(self.iteration)}/{stage}" for stage in stages}
