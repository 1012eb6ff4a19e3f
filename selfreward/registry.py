"""Names for what users extend: each maps to ``module:object``, imported when it is used.

Any import path works in place of a name, so an extension needs no registration.
"""

from __future__ import annotations

import importlib
from typing import Any

from selfreward.recipe_file import suggest

ENGINES = {
    "vllm": "selfreward.engines.vllm:VLLMEngine",
    "transformers": "selfreward.engines.transformers:TransformersEngine",
    "openai": "selfreward.engines.openai:OpenAIEngine",
}
JUDGES = {"additive": "selfreward.judges.additive:AdditiveJudge"}
PROMPT_SOURCES = {"dataset": "selfreward.prompts.dataset:DatasetSource"}
SELECTORS = {"best_worst": "selfreward.selection:best_worst"}


def locate(name: str, known: dict[str, str], kind: str) -> str:
    """The import path of a name, without importing it.

    Raises:
        ValueError: neither a known name nor MODULE:OBJECT.
    """
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if colon and module and attribute:
        return name
    raise ValueError(
        f"no {kind} is called {name!r}. {suggest(name, list(known))} Or give an import path, MODULE:OBJECT"
    )


def load(name: str, known: dict[str, str], kind: str) -> Any:
    """The object that a name or an import path stands for.

    Raises:
        ValueError: no such name, module or attribute.
    """
    module, _, attribute = locate(name, known, kind).partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{kind} {name!r}: there is no module {error.name!r}. Install it, or put its folder on PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise ValueError(f"{kind} {name!r}: the module {module} has no {attribute!r}") from error
