"""Several sources at once, each with its share of the prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import ClassVar

from selfreward.prompts.base import PromptSource, SourceContext, source_of
from selfreward.prompts.filters.base import Filters
from selfreward.recipe.prompt_settings import PartSettings, PromptSettings, SourceSettings
from selfreward.records import Task, derive_seed
from selfreward.runs.stored import SEED_OF_ORDER, SEED_OF_PART


class MixtureSource(PromptSource):
    """Asks each part for its share by the iteration's weights, and mixes what they give.

    Rows are read first, so that what a model writes is compared with them. A task that an earlier part gave too is
    left out and counted, so that there can be fewer than were wanted.
    """

    reads_past: ClassVar[bool] = False  # its parts do
    has_parts: ClassVar[bool] = True
    _settings: PromptSettings

    @classmethod
    def asks_model(cls, settings: SourceSettings) -> bool:
        return False

    def __init__(self, settings: SourceSettings) -> None:
        assert isinstance(settings, PromptSettings)
        self._settings = settings
        self._parts: list[tuple[PartSettings, PromptSource]] = [(part, source_of(part)) for part in settings.parts]

    def check(self) -> None:
        longest = max(len(part.weight) for part, _ in self._parts)
        # The recipe sees to it that an iteration has a weight; a list may be longer than the run.
        every = [of_parts for of_parts in self._shares(longest) if any(of_parts)]
        most = [max(of_part) for of_part in zip(*every, strict=True)]
        for num, (_, source) in zip(most, self._parts, strict=True):
            source.check_share(num)

    def tasks(self, context: SourceContext) -> list[Task]:
        """The tasks of an iteration, in an order that depends on the seed.

        Raises:
            ValueError: what a part can't work with, or a part with fewer rows than its share.
        """
        asked = self._shares(context.iteration)
        # Whether a part is asked or not, and when: what is near to a seed of any of them is nothing new.
        for _, source in self._parts:
            context.filters.add_known(source.seeds())
        found: dict[str, Task] = {}
        for place in sorted(range(len(self._parts)), key=lambda place: self._parts[place][0].writes):
            nums = [of_parts[place] for of_parts in asked]
            if not nums[-1]:
                continue
            tasks = self._of_part(place, context, nums)
            context.count(f"from_part_{place + 1}", len(tasks))
            for task in tasks:
                if task.id in found:
                    context.count("in_several_parts")
                found.setdefault(task.id, task)
        mixed = [*found.values()]
        random.Random(context.derive(SEED_OF_ORDER)).shuffle(mixed)
        return mixed

    def _of_part(self, place: int, context: SourceContext, nums: Sequence[int]) -> list[Task]:
        """What a part gives, of which each iteration so far wanted ``nums``."""
        part, source = self._parts[place]
        of_rows = self._settings.filters.names(reading=True)
        filters = context.filters if part.writes or of_rows else Filters(self._settings.filters, of_rows)
        seed = derive_seed(context.seed, SEED_OF_PART, place)
        limit = part.in_flight(context.limit)
        own = replace(context, num=nums[-1], nums=nums[:-1], seed=seed, filters=filters, limit=limit)
        tasks = source.tasks(own)
        if filters is not context.filters:
            context.filters.merge(filters.removed, [])
        if not part.writes:
            context.filters.add_known(tasks)
        return tasks

    def _shares(self, iterations: int) -> list[list[int]]:
        """How many tasks each part is asked for, by iteration."""
        assert self._settings.num is not None, "the recipe wants a number for a mixture"
        every = ([part.share(t) for part, _ in self._parts] for t in range(1, iterations + 1))
        return [shares(self._settings.num, weights) for weights in every]


def shares(num: int, weights: Sequence[float]) -> list[int]:
    """``num`` by weights in whole numbers that add up to it, unless all are 0; largest remainders are rounded up."""
    if not any(weights):
        return [0] * len(weights)
    exact = [Fraction(weight) for weight in weights]
    quotas = [num * weight / sum(exact) for weight in exact]
    whole = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(whole)), key=lambda place: whole[place] - quotas[place])
    for place in by_remainder[: num - sum(whole)]:
        whole[place] += 1
    return whole
