"""What a job of ``selfreward data`` makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfreward.records import Record
from selfreward.runs.stages import Summary

Row = dict[str, Any]


@dataclass(frozen=True)
class Made:
    """What a job made: rows by split, records of what was left out, and figures."""

    splits: Mapping[str, Sequence[Row]]
    figures: Summary
    removed: Sequence[Record] = ()
    origins: Sequence[tuple[str, str]] = ()  # what the card says of where it is from, besides settings
