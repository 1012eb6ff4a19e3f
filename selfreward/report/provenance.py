"""Follows the records of one iteration back to what they were made from. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from selfreward.errors import Damaged
from selfreward.judges import panel_of
from selfreward.records import Judgement, PreferencePair, Response, content_id, derive_seed
from selfreward.report.iteration_records import SAMPLED, IterationRecords
from selfreward.runs.fingerprint import changes
from selfreward.runs.folders import iteration_folder
from selfreward.runs.stages import Step
from selfreward.stages.pairs import consistencies, scores_of


class Provenance:
    """The records of one iteration that is whole, and what does not hold together in them."""

    def __init__(self, records: IterationRecords, whole: set[str]) -> None:
        """``whole`` are the folders of the run whose marker and files are."""
        self._records, self._whole = records, whole
        self._run, self._t, self._prompts = records.run, records.iteration, records.prompts
        self._own, self._anchors, self._lookahead = (records.responses[name] for name in SAMPLED)

    def problems(self) -> Iterator[str]:
        """What does not follow from what."""
        for problem in self._problems():
            yield f"iteration {self._t}: {problem}"

    @cached_property
    def unproved(self) -> str | None:
        """Why the scores of the pairs can't be counted again, if they can't."""
        if self._t < self._run.first_iteration and not self._same_judge():
            return "an earlier recipe had another judge"
        try:
            panel_of(self._run.recipe)
        except (OSError, ValueError) as error:
            # A template or module of the recipe may not be on this machine.
            return str(error)
        return None

    def _problems(self) -> Iterator[str]:
        run, t, records = self._run, self._t, self._records
        for prompt in self._prompts.values():
            if prompt.id != content_id("prompt", prompt.messages):
                yield f"prompt {prompt.id} has another id than its messages"
        draft = str(run.model_folder(Step("draft_train", t)))
        yield from self._of_model("responses", self._own, run.model_path(t))
        yield from self._of_model("anchors", self._anchors, run.model_path(1))
        yield from self._of_model("lookahead", self._lookahead, draft)
        yield from self._revisions()
        judged = {**self._own, **self._anchors}
        yield from self._subjects(records.judgements, judged)
        yield from self._subjects(records.previous_judgements, judged)
        yield from self._subjects(records.lookahead_judgements, {**judged, **self._lookahead})
        yield from self._rewards()
        has_lookahead = "lookahead" in records.stages
        yield from self._pairs_of(records, has_lookahead)
        if has_lookahead and self._is_whole("draft_pairs"):
            yield from self._pairs_of(records.of_draft(), lookahead=False)
        if self._is_whole("meta"):
            yield from self._judge_pairs()

    def _is_whole(self, stage: str) -> bool:
        return f"{iteration_folder(self._t)}/{stage}" in self._whole

    def _same_judge(self) -> bool:
        step = Step("pairs", self._t)
        try:
            found = changes(self._run.stage("pairs", self._t).marker["reads"], self._run.reads(step))
        except Damaged:
            return False  # told where that stage itself is checked
        return not any(change.key.startswith("judge") for change in found)

    def _of_model(self, stage: str, responses: Mapping[str, Response], model: str) -> Iterator[str]:
        if not responses:
            return
        seed = self._run.stage(stage, self._t).marker["reads"]["settings"]["seed"]
        # A stage of its own samples other noise than the iteration's own responses.
        noise = () if stage == "responses" else (stage,)
        for r in responses.values():
            if r.id != content_id("response", r.prompt_id, r.k, r.seed, r.text) or r.prompt_id not in self._prompts:
                yield f"response {r.id} does not belong to its text and prompt"
            made = (derive_seed(seed, self._t, r.prompt_id, r.k, *noise), self._run.model_name(model))
            if (r.seed, r.model) != made:
                yield f"response {r.id} has another seed or model than the run's"

    def _revisions(self) -> Iterator[str]:
        for r in self._own.values():
            original = self._own.get(r.revises) if r.revises else None
            if r.revises and (original is None or original.revises or original.prompt_id != r.prompt_id):
                yield f"response {r.id} revises no response to its prompt"

    def _subjects(self, judgements: Sequence[Judgement], known: Mapping[str, Response]) -> Iterator[str]:
        for j in judgements:
            of_prompt = all(s in known and known[s].prompt_id == j.prompt_id for s in j.subject_ids)
            compares = len(set(j.subject_ids)) == 2
            if j.prompt_id not in self._prompts or not of_prompt or (j.preference is not None and not compares):
                yield f"judgement {j.id} judges nothing of this iteration"

    def _rewards(self) -> Iterator[str]:
        found = [reward.response_id for reward in self._records.implicit_rewards]
        if "implicit" in self._records.stages and found != list(self._own):
            yield "the implicit rewards are not those of the responses"

    def _pairs_of(self, records: IterationRecords, lookahead: bool) -> Iterator[str]:
        """Looks into the iteration's pairs, or into those of its draft."""
        known = {**self._own, **self._anchors, **(self._lookahead if lookahead else {})}
        scores = alike = None
        if not self.unproved:
            scores = scores_of(records.run, self._t, lookahead)
            alike = consistencies(records.run, self._t) if "previous_judgements" in self._records.stages else None
        for pair in records.pairs:
            counted = scores is None or _scores(pair) == [scores.get(pair.chosen_id), scores.get(pair.rejected_id)]
            agreed = pair.consistency == alike.get(pair.prompt_id) if alike else True
            if not (counted and agreed and self._is_linked(pair, known)):
                yield f"pair {pair.id} does not follow from its prompt, responses and judgements"
        ended = {pair.prompt_id for pair in records.pairs} | {each.prompt_id for each in records.rejections}
        if ended != set(self._prompts):
            yield f"{len(ended ^ set(self._prompts))} prompts are neither a pair nor a rejection"

    def _is_linked(self, pair: PreferencePair, known: Mapping[str, Response]) -> bool:
        prompt = self._prompts.get(pair.prompt_id)
        chosen, rejected = known.get(pair.chosen_id), known.get(pair.rejected_id)
        return (
            pair.id == content_id("pair", pair.chosen_id, pair.rejected_id)
            and prompt is not None
            and pair.prompt == prompt.messages
            and chosen is not None
            and rejected is not None
            and chosen.prompt_id == rejected.prompt_id == pair.prompt_id
            and chosen.id not in self._anchors
            and rejected.id not in self._lookahead
            and _texts(pair) == [chosen.text, rejected.text]
        )

    def _judge_pairs(self) -> Iterator[str]:
        """A verdict compares two judgements of one response, and a judge pair is made of two that were compared."""
        judgements = {judgement.id: judgement for judgement in self._records.judgements}
        compared: set[str] = set()
        for verdict in self._records.verdicts:
            compared |= set(verdict.subject_ids)
            if not _are_of_one(judgements, verdict.subject_ids):
                yield f"verdict {verdict.id} compares nothing of this iteration"
        for pair in self._records.judge_pairs:
            ids = [pair.chosen_id, pair.rejected_id]
            linked = pair.id == content_id("pair", *ids) and set(ids) <= compared and _are_of_one(judgements, ids)
            if not linked or _texts(pair) != [judgements[name].raw_text for name in ids]:
                yield f"judge pair {pair.id} does not follow from its judgements"


def _are_of_one(judgements: Mapping[str, Judgement], ids: Iterable[str]) -> bool:
    """Whether judgements are there, and of one response."""
    found = [judgements.get(each) for each in ids]
    return None not in found and len({tuple(j.subject_ids) for j in found if j is not None}) == 1


def _texts(pair: PreferencePair) -> list[str]:
    return [pair.chosen[-1]["content"], pair.rejected[-1]["content"]]


def _scores(pair: PreferencePair) -> list[float]:
    return [pair.score_chosen, pair.score_rejected]
