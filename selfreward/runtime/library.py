"""Parts of other libraries that carry no promise: looked up with an error that says which version has them.

Options, documented methods and other public names are used directly. What is private, or replaced, is used by one
module a room (``engines/vllm_internals.py`` and ``training/upstream_internals.py``), through what is here.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Library:
    """A library by the name that it is imported with, and the version that this package was written for."""

    name: str
    version: str

    def changed(self, fact: str) -> ValueError:
        """The error for a version whose internals are others; ``fact`` has the library as its subject."""
        installed = getattr(sys.modules.get(self.name), "__version__", "of unknown version")
        return ValueError(
            f"{self.name} {installed} {fact}. Install {self.name} {self.version}, which selfreward was written for"
        )

    @contextmanager
    def importing(self) -> Iterator[None]:
        """Surrounds imports from the library. Raises ValueError if it has no such module or name."""
        try:
            yield
        except ImportError as error:
            if not f"{error.name}.".startswith(f"{self.name}."):
                # What is missing is another library.
                raise
            raise self.changed(f"is divided into other modules ({error})") from error

    def get(self, owner: Any, name: str) -> Any:
        """An attribute of a module, a class or an object. Raises ValueError if it has none of this name."""
        try:
            return getattr(owner, name)
        except AttributeError as error:
            raise self.changed(f"has no {name} in {_name(owner)}") from error

    def get_static(self, owner: type, name: str) -> Callable[..., Any]:
        """A static method, or ValueError if it is missing or of another kind."""
        found: Callable[..., Any] = self.get(owner, name)
        if not isinstance(inspect.getattr_static(owner, name), staticmethod):
            raise self.changed(f"has {_name(owner)}.{name}, but not as a static method")
        return found

    def require_parameter(self, function: Callable[..., Any], name: str) -> None:
        """Raises ValueError if a function has no parameter of this name, though it may take any."""
        if name not in inspect.signature(function).parameters:
            raise self.changed(f"has no parameter {name} of {_name(function)}")


def _name(owner: Any) -> str:
    return str(getattr(owner, "__qualname__", None) or getattr(owner, "__name__", None) or type(owner).__qualname__)
