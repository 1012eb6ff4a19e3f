"""Libraries that not every installation has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def optional(user: str, extra: str) -> Iterator[None]:
    """Surrounds an import of what an extra of this package installs.

    Args:
        user: what needs it, for the message.
        extra: the name of the extra.

    Raises:
        ValueError: the library is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(
            f'{user} needs {error.name}, which is not installed: pip install "selfreward[{extra}]"'
        ) from None
