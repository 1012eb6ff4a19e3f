"""Whether what a user names can be used as what it is named for: its methods, and the arguments that it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any


def require_arguments(function: Callable[..., Any], arguments: Sequence[str], what: str) -> None:
    """Refuses a function that can't be called with so many arguments.

    Raises:
        ValueError: with ``what`` in front, and both signatures.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # one that is written in C may have none
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        called = f"({', '.join(arguments)})"
        raise ValueError(
            f"{what} can't be called with {called}: {error}. It is {signature}. Let it take {called}"
        ) from None


@cache
def as_subclass(found: type, base: Any) -> type:
    """A class with the methods of its protocol, and the base's answers to what it says nothing of.

    Args:
        found: a user's class, of any parent.
        base: what the protocol's own classes derive from. Its ``required`` are the methods that have no default.

    Raises:
        ValueError: a method that is missing, or that takes other arguments.
    """
    missing = [name for name in base.required if getattr(found, name, None) in (None, getattr(base, name, None))]
    if missing:
        needed = ", ".join(_form(base, name) for name in base.required)
        raise ValueError(f"it has no {' and no '.join(missing)}. Its class needs {needed}")
    for name in ("__init__", *base.required):
        if callable(getattr(base, name, None)) and getattr(found, name) is not object.__init__:
            _require_method(found, name, list(inspect.signature(getattr(base, name)).parameters))
    return found if issubclass(found, base) else type(found.__name__, (found, base), {"__module__": found.__module__})


def _require_method(found: type, name: str, arguments: Sequence[str]) -> None:
    # Of these two, the class gives a function that has been bound already, or has no `self`.
    bound = isinstance(inspect.getattr_static(found, name), staticmethod | classmethod)
    require_arguments(getattr(found, name), arguments[1:] if bound else arguments, f"its {name}")


def _form(base: type, name: str) -> str:
    """A method as it is written, or the name of an attribute."""
    method = getattr(base, name, None)
    return f"{name}({', '.join(inspect.signature(method).parameters)})" if callable(method) else name
