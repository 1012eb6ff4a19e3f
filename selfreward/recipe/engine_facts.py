"""What an engine can do, by the methods of its class; the classes of selfreward are read and not imported. No torch."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from selfreward.recipe import registry

# What the policy's engine is asked for; any other has its judge's or its source's needs, and is closed.
LIFECYCLE = ("logprobs", "reload", "sleep", "close")
# What a class may say besides, as plain values.
_DECLARED = ("takes_prefix", "own_model", "is_client", "library", "sleep_option")
POLICY = ("generate", *LIFECYCLE)
_WORDS = {
    "generate": "generate text",
    "option_probs": "tell the probabilities of options",
    "prefix": "say how a begun answer goes on",
    "reward": "give rewards",
}


@dataclass(frozen=True)
class EngineFacts:
    """What is known of an engine before it starts.

    ``can`` has its methods, and ``prefix`` where ``option_probs`` takes the beginning of an answer (its class says
    ``takes_prefix = False`` where it doesn't). ``own_model``: True where its own settings name what it serves, False
    where a judge has to name its model, None where either will do. ``is_client``: a server does the work, so that one
    engine in this process is enough, and needs no GPU. ``library`` has to be installed besides what is required.
    ``sleep_option`` of the engine's own block lets it give back its memory and come back.
    """

    can: frozenset[str]
    own_model: bool | None
    is_client: bool = False
    library: str | None = None
    sleep_option: str | None = None


def engine_facts(name: str) -> EngineFacts:
    """The facts of an engine by its name, or of a user's class, which is imported.

    Raises:
        ValueError: no such engine.
    """
    if name in registry.ENGINES:
        methods, values = _read(registry.ENGINES[name])
    else:
        kind = registry.load(name, registry.ENGINES, "engine")
        methods = frozenset(method for method in (*_WORDS, *LIFECYCLE) if callable(getattr(kind, method, None)))
        values = {key: getattr(kind, key) for key in _DECLARED if hasattr(kind, key)}
    prefix = {"prefix"} if "option_probs" in methods and values.get("takes_prefix", True) else set()
    facts = {key: values[key] for key in _DECLARED[2:] if key in values}
    return EngineFacts(methods | prefix, values.get("own_model"), **facts)


def names_own_model(name: str) -> bool:
    """Whether an engine that comes with selfreward has in its own settings what it serves. Imports nothing."""
    return name in registry.ENGINES and engine_facts(name).own_model is True


def require_methods(name: str, needs: Iterable[str], role: str) -> None:
    """Raises ValueError for a user's class that lacks a method which engines of its role must have."""
    needs = [need for need in needs if need != "prefix"]
    missing = [need for need in needs if need not in engine_facts(name).can]
    if missing:
        raise ValueError(
            f"engine.name is {name}, and the class has no {', '.join(missing)}. {role} needs {', '.join(needs)} "
            "(selfreward.engines.base has the signatures)"
        )


def require_needs(name: str, engine: str, needs: Sequence[str]) -> None:
    """Raises ValueError for a judge or source that needs what its engine can't do."""
    missing = [need for need in needs if need not in engine_facts(engine).can]
    if missing:
        able = [name for name in registry.ENGINES if set(needs) <= engine_facts(name).can]
        raise ValueError(
            f"name is {name} and engine.name is {engine}, which can't {' or '.join(_WORDS[m] for m in missing)}. "
            f"Engines that can: {', '.join(able)}"
        )


@cache
def _read(path: str) -> tuple[frozenset[str], dict[str, Any]]:
    """The methods of a class of selfreward and the plain values in its body; its module may load torch."""
    module, _, name = path.partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None, "the registry names modules that are there"
    assert spec.origin is not None, "and that are files"
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    [found] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    methods = {node.name for node in found.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    values = {
        target.id: node.value.value
        for node in found.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return frozenset(methods), values
