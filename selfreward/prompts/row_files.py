"""What files and data sets of the hub hold, row by row, as it stands there."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from selfreward.recipe.prompt_settings import RowSettings

Row = dict[str, Any]
# A longer line is not read into memory.
MAX_LINE_BYTES = 1 << 24
_BATCH = 1000


class BadRow(Exception):
    """What is wrong with a row; ``reason`` is the name under which it is counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


Numbered = Iterator[tuple[int, Row | BadRow]]


def name_of(settings: RowSettings) -> str:
    """The name of the file, or of the data set with its subset."""
    if settings.hub is None:
        assert settings.path is not None
        return settings.path.name
    name = Path(settings.hub).name if Path(settings.hub).is_dir() else settings.hub
    return f"{name}/{settings.subset}" if settings.subset else name


def raw_rows(settings: RowSettings) -> Numbered:
    """Each row with its number, from 1 on: of the line, where the file has lines.

    A data set that is larger than memory is never held, unless it is a JSON list.

    Raises:
        ValueError: the file or data set as a whole can't be read.
    """
    if settings.hub is not None:
        return _hub(settings, settings.hub)
    assert settings.path is not None
    if settings.path.suffix == ".parquet":
        return _parquet(settings.path)
    if is_list(settings):
        if settings.streaming:
            raise ValueError(f"{settings.path} is one JSON list, which is read whole. streaming takes JSONL or Parquet")
        return _list(settings.path)
    return _texts(settings.path) if settings.path.suffix == ".txt" else _lines(settings.path)


def has_lines(settings: RowSettings) -> bool:
    """Whether the numbers of :func:`raw_rows` are those of lines."""
    return settings.path is not None and settings.path.suffix != ".parquet" and not is_list(settings)


def is_list(settings: RowSettings) -> bool:
    """Whether it is a ``.json`` that does not begin with an object on a line of its own, as JSONL does."""
    if settings.path is None or settings.path.suffix != ".json":
        return False
    first = next((row for _, row in _lines(settings.path) if not _is_blank(row)), None)
    return not isinstance(first, dict)


def _is_blank(row: Row | BadRow) -> bool:
    return isinstance(row, BadRow) and row.reason == "empty"


def _lines(path: Path) -> Numbered:
    for number, raw in _raw_lines(path):
        try:
            yield number, _parse(raw)
        except BadRow as bad:
            yield number, bad


def _texts(path: Path) -> Numbered:
    """A text a line; lines without any are nothing."""
    for number, raw in _raw_lines(path):
        try:
            text = _decode(raw).strip()
        except BadRow as bad:
            yield number, bad
            continue
        if text:
            yield number, {"text": text}


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """The bytes of each line without a byte order mark; None for a line of more than ``MAX_LINE_BYTES``."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            rest = raw
            while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE_BYTES + 1)
            if len(raw) > MAX_LINE_BYTES:
                yield number, None
            else:
                yield number, raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw


def _decode(raw: bytes | None) -> str:
    if raw is None:
        raise BadRow("over_long", f"a line of more than {MAX_LINE_BYTES} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadRow("malformed", f"not UTF-8: {error.reason} at byte {error.start + 1} of the line") from None


def _parse(raw: bytes | None) -> Row:
    text = _decode(raw)
    if not text.strip():
        raise BadRow("empty", "an empty line")
    try:
        value = json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        raise BadRow("malformed", f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        raise BadRow("malformed", f"not JSON: {error}") from None
    return _object(value, "\\u" in text)


def _object(value: Any, has_escapes: bool) -> Row:
    if not isinstance(value, dict):
        raise BadRow("malformed", f"a JSON object is wanted, and this is a {type(value).__name__}")
    if has_escapes and re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)):
        raise BadRow("malformed", "half of a surrogate pair, such as \\ud83d alone, which is no character")
    return value


def _list(path: Path) -> Numbered:
    """The items of a JSON list, which is one text: a mistake anywhere spoils it all."""
    way_out = "Mend it, or give JSONL: an object on each line, in a file named .jsonl"
    try:
        text = path.read_bytes().decode("utf-8-sig")
        value = json.loads(text)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}:{line}: not UTF-8: {error.reason}. {way_out}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg} at column {error.colno}. {way_out}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}. {way_out}") from None
    if not isinstance(value, list):
        raise ValueError(f"{path}: a list of objects is wanted, and this is a {type(value).__name__}. {way_out}")
    has_escapes = "\\u" in text
    del text
    for number, item in enumerate(value, start=1):
        try:
            yield number, _object(item, has_escapes)
        except BadRow as bad:
            yield number, bad


def _parquet(path: Path) -> Numbered:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            # One group of rows at a time: what was read of them stays in memory as long as the iterator.
            groups = (file.iter_batches(_BATCH, row_groups=[group]) for group in range(file.num_row_groups))
            yield from _arrow_rows(chain.from_iterable(groups))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: no readable Parquet: {error}. Write it anew, or give JSONL") from None


def _hub(settings: RowSettings, hub: str) -> Numbered:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    try:
        data = load_dataset(
            hub, settings.subset, split=settings.split, revision=settings.revision, streaming=settings.streaming
        )
        yield from _arrow_rows(data.with_format("arrow").iter(_BATCH))
    except (DatasetsError, ArrowException, ValueError, RuntimeError, OSError) as error:
        reason = " ".join(f"{error}: {error.__cause__}".split()) if error.__cause__ else error
        raise ValueError(f"the data set {hub} can't be read: {reason}. {_way_out(error)}") from error


def _way_out(error: Exception) -> str:
    if "scripts are no longer supported" in str(error):
        return (
            "It comes with code of its own, which is never run. Take a revision that has Parquet files, such as "
            "refs/convert/parquet, or download its files and name one as path"
        )
    return "Look at hub, subset, split and revision, or download its files and name one as path"


def _arrow_rows(batches: Iterable[Any]) -> Numbered:
    """The rows of Arrow tables. One whose text is not UTF-8 is bad, and not the whole batch with it."""
    number = 0
    for batch in batches:
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError:
            rows = [_arrow_row(batch.slice(place, 1)) for place in range(batch.num_rows)]
        for row in rows:
            number += 1
            yield number, row


def _arrow_row(batch: Any) -> Row | BadRow:
    try:
        [row] = batch.to_pylist()
    except UnicodeDecodeError as error:
        return BadRow("malformed", f"not UTF-8: {error.reason}")
    return dict(row)
