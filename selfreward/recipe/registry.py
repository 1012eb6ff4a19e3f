"""Names for what users extend: each maps to ``module:object``, imported when it is used.

Any import path works in place of a name, so an extension needs no registration.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from typing import Any

from selfreward.recipe.loader import shown, suggest

ENGINES = {
    "vllm": "selfreward.engines.vllm:VLLMEngine",
    "transformers": "selfreward.engines.transformers:TransformersEngine",
    "openai": "selfreward.engines.openai:OpenAIEngine",
    "classifier": "selfreward.engines.classifier:ClassifierEngine",
}
JUDGES = {
    "additive": "selfreward.judges.additive:AdditiveJudge",
    "expected_score": "selfreward.judges.expected_score:ExpectedScoreJudge",
    "yes_no": "selfreward.judges.yes_no:YesNoJudge",
    "rubric": "selfreward.judges.rubric:RubricJudge",
    "pairwise": "selfreward.judges.pairwise:PairwiseJudge",
    "verifier": "selfreward.judges.verifier:VerifierJudge",
    "reward_model": "selfreward.judges.reward_model:RewardModelJudge",
}
VERIFIERS = {
    "exact_match": "selfreward.judges.verifiers:exact_match",
    "regex": "selfreward.judges.verifiers:regex",
    "json_schema": "selfreward.judges.verifiers:json_schema",
    "instructions": "selfreward.judges.verifiers:instructions",
}
PROMPT_SOURCES = {
    "dataset": "selfreward.prompts.dataset:DatasetSource",
    "mixture": "selfreward.prompts.mixture:MixtureSource",
    "self_instruct": "selfreward.prompts.self_instruct:SelfInstructSource",
    "evol_instruct": "selfreward.prompts.evol_instruct:EvolInstructSource",
    "backtranslation": "selfreward.prompts.backtranslation:BacktranslationSource",
    "explain": "selfreward.prompts.explain:ExplainSource",
    "curriculum": "selfreward.prompts.curriculum:CurriculumSource",
}
FILTERS = {
    **{
        name: f"selfreward.prompts.filters.plain:{kind}"
        for name, kind in {
            "length": "Length",
            "keywords": "Keywords",
            "first_character": "FirstCharacter",
            "empty_output": "EmptyOutput",
            "input_equals_output": "InputEqualsOutput",
            "trailing_colon": "TrailingColon",
            "refusal": "Refusal",
            "contradiction": "Contradiction",
        }.items()
    },
    "language": "selfreward.prompts.filters.language:Language",
    "rouge_l": "selfreward.prompts.filters.rouge:RougeL",
    "minhash": "selfreward.prompts.filters.near:NearByWords",
    "embedding": "selfreward.prompts.filters.near:NearByMeaning",
    "novelty": "selfreward.prompts.filters.ngrams:Novelty",
    "decontamination": "selfreward.prompts.filters.ngrams:Decontamination",
    "toxicity": "selfreward.prompts.filters.harm:Toxicity",
    "personal_data": "selfreward.prompts.filters.harm:PersonalData",
}
SELECTORS = {
    name: f"selfreward.selection.pair_selectors:{name}"
    for name in ("best_worst", "top_bottom", "correct_incorrect", "length_controlled", "revision")
}


# Plain names only, and none with double underscores, as `pkg.__main__` is a program that runs when it is imported.
_PATH = re.compile(r"(?P<module>NAME(\.NAME)*):(?P<object>NAME)".replace("NAME", r"(?!__)[A-Za-z_][A-Za-z0-9_]*"))


def locate(name: str, known: dict[str, str], kind: str) -> str:
    """The import path of a name, without importing it.

    Raises:
        ValueError: neither a known name nor MODULE:OBJECT, or the module is Python's own.
    """
    if name in known:
        return known[name]
    path = _PATH.fullmatch(name)
    if path is None:
        raise ValueError(
            f"no {kind} is called {shown(name)}. {suggest(name, list(known))} Or give an import path, MODULE:OBJECT"
        )
    if _is_standard(path["module"]):
        raise ValueError(_refusal(name, kind, "the module is Python's own"))
    return name


def load(name: str, known: dict[str, str], kind: str) -> Any:
    """The class or function that a name or an import path stands for.

    Raises:
        ValueError: no such name, module or attribute, or an object that is no extension.
    """
    module, _, attribute = locate(name, known, kind).partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{kind} {name!r}: there is no module {error.name!r}. Install it, or put its folder on PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise ValueError(f"{kind} {name!r}: the module {module} has no {attribute!r}") from error
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        raise ValueError(_refusal(name, kind, f"it is a {type(found).__name__}"))
    if _is_standard(getattr(found, "__module__", None) or module):
        raise ValueError(_refusal(name, kind, f"it is Python's own {found.__module__}.{found.__name__}"))
    return found


def load_stage(module: str) -> Any:
    """The function of a stage, by the name of its module in ``stages/``."""
    return importlib.import_module(f"selfreward.stages.{module}").stage


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def _refusal(name: str, kind: str, fact: str) -> str:
    # A scorer that is `os:system` would run what a model writes.
    return f"{kind} {name!r}: {fact}. Give a class or function that was written for this, in a module of its own"
