"""The option names of the installed TRL, PEFT and vLLM, read from their source without importing them.

Importing any of the three loads torch, which takes longer than a user waits for a typing error.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from selfreward.recipe.loader import OptionError, shown, suggest

# Each class with its base classes, nearest last, as (package, file, class).
Source = tuple[tuple[str, str, str], ...]
_TRAINER = (
    ("transformers", "training_args.py", "TrainingArguments"),
    ("trl", "trainer/base_config.py", "_BaseConfig"),
)
SFT: Source = (*_TRAINER, ("trl", "trainer/sft_config.py", "SFTConfig"))
DPO: Source = (*_TRAINER, ("trl", "trainer/dpo_config.py", "DPOConfig"))
LORA: Source = (
    ("peft", "config.py", "PeftConfigMixin"),
    ("peft", "config.py", "PeftConfig"),
    ("peft", "tuners/lora/config.py", "LoraConfig"),
)
VLLM: Source = (("vllm", "engine/arg_utils.py", "EngineArgs"),)


def check(options: dict[str, Any], source: Source, reserved: Mapping[str, str]) -> None:
    """Checks names and, where the annotation is a plain one, types of options meant for an upstream class.

    Args:
        options: by upstream's names.
        source: the class.
        reserved: names that the loop sets itself, each with what to write instead.

    Raises:
        OptionError: an unknown or reserved name or a value of a wrong type.
    """
    known = fields(source)
    package, _, cls = source[-1]
    for name, value in options.items():
        if name in reserved:
            raise OptionError(name, f"set by the loop: {reserved[name]}")
        if known is None:
            continue
        if name not in known:
            message = f"the installed {package} has no such field in {cls}. {suggest(name, list(known))}"
            raise OptionError(name, message)
        _check_type(name, value, known[name], f"{package}'s {cls}")


@cache
def fields(source: Source) -> dict[str, str] | None:
    """Field names and annotations of a dataclass and its bases, or None where its package is not installed."""
    found: dict[str, str] = {}
    for package, file, cls in source:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return None
        tree = ast.parse(Path(spec.submodule_search_locations[0], file).read_text(encoding="utf-8"))
        body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls)
        found |= {
            node.target.id: ast.unparse(node.annotation)
            for node in body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
    return {name: annotation for name, annotation in found.items() if "ClassVar" not in annotation}


@cache
def compared(package: str, file: str, name: str) -> list[str] | None:
    """The texts that a variable or attribute is compared with in a source file: the names that upstream dispatches on.

    None where the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    tree = ast.parse(Path(spec.submodule_search_locations[0], file).read_text(encoding="utf-8"))
    comparisons = [node for node in ast.walk(tree) if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq)]
    sides = [side for node in comparisons if _last_name(node.left) == name for side in node.comparators]
    texts = [side.value for side in sides if isinstance(side, ast.Constant)]
    return [text for text in texts if isinstance(text, str)]


def _last_name(node: ast.expr) -> str | None:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def _check_type(name: str, value: Any, annotation: str, owner: str) -> None:
    # The annotations are the installed library's own source, no user's text.
    names = {**vars(builtins), "Any": Any, "Literal": Literal, "Union": Union}
    try:
        expected = eval(annotation, {"__builtins__": {}}, names)
        if isinstance(expected, str):
            expected = eval(expected, {"__builtins__": {}}, names)
        adapter = TypeAdapter(expected, config=ConfigDict(strict=True))
    except (NameError, AttributeError, TypeError, PydanticUserError):
        return  # An annotation in upstream's own types: upstream checks the value when it is built.
    if isinstance(value, str) and get_origin(expected) is list:
        return  # TRL takes `loss_type: sigmoid` for a list of one.
    try:
        adapter.validate_python(value)
    except ValidationError:
        raise OptionError(name, f"the value is {shown(value)}, and {owner} takes {annotation.strip(chr(39))}") from None


def not_installed() -> Collection[str]:
    """The packages whose options could not be checked."""
    return [source[-1][0] for source in (DPO, LORA, VLLM) if fields(source) is None]
