"""The judges of a recipe: one, or an ensemble of several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from selfreward.engines.base import Sampler
from selfreward.judges.base import Example, Judge
from selfreward.judges.ensemble import combine
from selfreward.recipe.judge_facts import JudgeFacts
from selfreward.recipe.judge_settings import JudgeSettings, MemberSettings, PanelSettings
from selfreward.recipe.recipe import Recipe
from selfreward.records import Graded, Judgement, Prompt, Response, derive_seed


@dataclass(frozen=True)
class BoundJudge:
    """A judge of the panel; its ``name`` stands in its judgements."""

    name: str
    settings: JudgeSettings
    judge: Judge

    @property
    def is_policy(self) -> bool:
        """Whether M_t, the model that samples, is the judge."""
        return self.settings.engine is None and self.settings.model is None

    @cached_property
    def facts(self) -> JudgeFacts:
        """What the judge says of itself under its settings."""
        return self.settings.facts

    @cached_property
    def served_by(self) -> str:
        """The same for judges that share an engine."""
        engine, model = self.settings.engine, self.settings.model
        return f"{engine and engine.model_dump_json()} {model and model.model_dump_json()}"

    async def vote(self, engine: Sampler, prompt: Prompt, responses: Sequence[Response], seed: int) -> list[Judgement]:
        """The judgements of some responses to one prompt, under its own name."""
        judgements = await self.judge.judge(engine, prompt, responses, seed)
        return [replace(judgement, judge=self.name) for judgement in judgements]


class Panel:
    """Asks every judge, and makes one score a response of what they say."""

    def __init__(self, settings: PanelSettings) -> None:
        """Raises ValueError for a name or settings that don't work."""
        self._settings = settings
        self.judges = _bound(settings)
        self.pointwise = all(bound.judge.pointwise for bound in self.judges)
        self.is_policy = all(bound.is_policy for bound in self.judges)
        alone = len(self.judges) == 1
        self.highest = self.judges[0].facts.highest if alone else None
        self.lowest = self.judges[0].facts.lowest if alone else 0.0

    def groups(self) -> list[list[BoundJudge]]:
        """The judges by the engine that serves them, for on a GPU there may be room for one at a time."""
        groups: dict[str, list[BoundJudge]] = {}
        for bound in self.judges:
            groups.setdefault(bound.served_by, []).append(bound)
        return list(groups.values())

    def seed(self, bound: BoundJudge, seed: int) -> int:
        """A judge's own seed for a prompt."""
        return seed if len(self.judges) == 1 else derive_seed(seed, bound.name)

    def scores(self, judgements: Sequence[Judgement]) -> dict[str, float]:
        """The score by response id, from all judgements of an iteration; unscored responses are left out."""
        if len(self.judges) == 1:
            return self.judges[0].judge.scores(judgements)
        weights = {s.name: s.settings.weight for s in self.judges if isinstance(s.settings, MemberSettings)}
        scores = {s.name: s.judge.scores([j for j in judgements if j.judge == s.name]) for s in self.judges}
        prompt_of = {subject: j.prompt_id for j in judgements for subject in j.subject_ids}
        return combine(scores, weights, prompt_of, self._settings.combine)

    def examples(self, graded: Sequence[Graded]) -> list[Example]:
        """Judging data as each judge's prompt is trained with it."""
        return [example for bound in self.judges for example in bound.judge.examples(graded)]


def panel_of(recipe: Recipe) -> Panel:
    """The judges of a recipe. Raises ValueError for a name or settings that don't work."""
    return Panel(recipe.judge)


def _bound(settings: PanelSettings) -> list[BoundJudge]:
    members = settings.judges
    total, seen, judges = Counter(member.name for member in members), Counter[str](), []
    for member in members:
        seen[member.name] += 1
        name = member.name if total[member.name] == 1 else f"{member.name}.{seen[member.name]}"
        judge: Judge = member.judge_class(member)
        judges.append(BoundJudge(name, member, judge))
    return judges
