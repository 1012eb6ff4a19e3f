"""Critique and revision under written principles (Constitutional AI, arXiv 2212.08073)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from selfreward.engines import Completion, Sampler, SamplingParams
from selfreward.recipe.response_settings import ResponseSettings
from selfreward.records import Message, Prompt, Response, content_id, derive_seed
from selfreward.runs.stored import SEED_OF_CRITIQUE, SEED_OF_PRINCIPLES, SEED_OF_REVISION
from selfreward.text.prompt_template import Template

TEMPLATES = Path(__file__).with_name("templates")


class Constitution:
    """The principles of a file, and the turns of critique and revision under them."""

    def __init__(self, settings: ResponseSettings) -> None:
        """Raises ValueError for a file without principles."""
        assert settings.principles is not None, "the stage revises nothing without principles"
        self._principles = read_principles(settings.principles)
        self._num_turns = settings.revisions
        self._params = SamplingParams.of(settings)
        self._critique = Template.read(TEMPLATES / "critique.txt", ("prompt", "response", "principle"))
        self._revision = Template.read(TEMPLATES / "revision.txt", ("prompt", "response", "principle", "critique"))

    async def revise(self, engine: Sampler, prompt: Prompt, response: Response, k: int, seed: int) -> list[Response]:
        """The last revision of a response, numbered ``k``, with the principles and critiques of all turns.

        There is none where the response has no text or was cut, or where that happened to a critique or a revision:
        what is left would be the revision of something else.
        """
        if response.finish_reason != "stop" or not response.text.strip():
            return []
        principles = self._drawn(seed)
        critiques: list[str] = []
        revision = Completion(response.text, "stop", response.num_tokens)
        for turn, principle in enumerate(principles):
            given = {"prompt": prompt.text, "response": revision.text, "principle": principle}
            critique = await self._ask(engine, self._critique.fill(**given), derive_seed(seed, SEED_OF_CRITIQUE, turn))
            if critique is None:
                return []
            critiques.append(critique.text.strip())
            messages = self._revision.fill(**given, critique=critiques[-1])
            answer = await self._ask(engine, messages, derive_seed(seed, SEED_OF_REVISION, turn))
            if answer is None:
                return []
            revision = answer
        return [
            Response(
                id=content_id("response", prompt.id, k, seed, revision.text),
                prompt_id=prompt.id,
                k=k,
                text=revision.text,
                finish_reason=revision.finish_reason,
                num_tokens=revision.num_tokens,
                seed=seed,
                model=response.model,
                revises=response.id,
                principle="\n".join(principles),
                critique="\n\n".join(critiques),
            )
        ]

    def _drawn(self, seed: int) -> list[str]:
        """A principle for each turn, none a second time before all have had theirs."""
        order = random.Random(derive_seed(seed, SEED_OF_PRINCIPLES)).sample(self._principles, len(self._principles))
        return [order[turn % len(order)] for turn in range(self._num_turns)]

    async def _ask(self, engine: Sampler, messages: list[Message], seed: int) -> Completion | None:
        """A completion with text that was not cut, or None."""
        [completion] = await engine.generate(messages, self._params, [seed])
        return completion if completion.finish_reason == "stop" and completion.text.strip() else None


def read_principles(path: Path) -> list[str]:
    """The principles of a text file, one a line; empty lines and those that begin with # are none.

    Raises:
        ValueError: no principle, or one that stands there twice.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error}. Save the file as UTF-8") from None
    principles = [line for line in lines if line and not line.startswith("#")]
    if not principles:
        raise ValueError(f"{path} has no principle. Write one a line, such as: The response admits what it can't know.")
    for place, principle in enumerate(principles):
        if principle in principles[:place]:
            raise ValueError(f"{path}: the principle {principle!r} stands there twice. Take one of the two out")
    return principles


def demonstrations(prompts: Iterable[Prompt], responses: Iterable[Response]) -> Iterator[dict[str, str]]:
    """The revisions as instruction data, in the format of ``seed_data.ift``: the method's supervised stage.

    A prompt of several messages is one text here, as judges are shown it.
    """
    texts = {prompt.id: prompt.text for prompt in prompts}
    for response in responses:
        if response.revises is not None:
            yield {"prompt": texts[response.prompt_id], "response": response.text}
