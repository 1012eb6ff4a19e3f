"""Reading a YAML file strictly: overrides, relative paths, and errors that name line, value and way out."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, ValidationError, ValidationInfo
from pydantic.fields import FieldInfo

from selfreward.recipe import strict_yaml
from selfreward.recipe.effects import Effect
from selfreward.runtime import redact

Model = TypeVar("Model", bound=BaseModel)
Key = tuple[str | int, ...]
MAX_BYTES = 1 << 18
VALUE_ERROR = "Value error, "  # what pydantic puts before the message of a ValueError
MAX_SHOWN_PROBLEMS = 20  # problems that one message lists


class RecipeError(ValueError):
    """A recipe that can't be run: its message names the file, the line, the value and the way out, and no secret."""

    def __init__(self, message: str) -> None:
        super().__init__(redact.redact(message))


class OptionError(ValueError):
    """A bad option within a block that is handed to a library; the message says all but the block."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


class _Relative:
    """Marks a path that is written relative to the recipe's own folder, as links on a page are."""


# The context in which the recipe of an existing run is read: it was checked when the run was made.
STORED = {"stored": True}


def is_stored(info: ValidationInfo) -> bool:
    """Whether the recipe is that of an existing run."""
    return bool((info.context or {}).get("stored"))


def _existing(path: Path, info: ValidationInfo) -> Path:
    if not is_stored(info) and not os.path.isfile(path):
        raise ValueError(f"no such file: {path}")
    return path


RecipeFile = Annotated[Path, _Relative(), Effect.FILE, AfterValidator(_existing)]
RecipePath = Annotated[str, _Relative(), Effect.FOLDER]


def read(model: type[Model], path: Path, overrides: Sequence[str] = ()) -> Model:
    """Reads and validates a YAML file.

    Args:
        model: the settings it must fit.
        path: the file; the relative paths in it start from its folder.
        overrides: ``key=value`` strings that win over the file; their paths start from the working directory.

    Raises:
        RecipeError: unreadable, an unknown key, a wrong type or value, a secret, settings that exclude each other.
    """
    node, data = _parse(path)
    return _validate(model, data, overrides, _Lines(path, dict(_key_lines(node))), path.resolve().parent)


def edit(model: type[Model], data: dict[str, Any], overrides: Sequence[str], where: str = "the stored recipe") -> Model:
    """Validates settings that were read before, with ``key=value`` overrides over them; errors say ``where``.

    Raises:
        RecipeError: as :func:`read`.
    """
    return _validate(model, deepcopy(data), overrides, _Lines(Path(where), {}), Path.cwd())


def _validate(model: type[Model], data: dict[str, Any], overrides: Sequence[str], lines: _Lines, base: Path) -> Model:
    typed = _parse_overrides(overrides)
    _refuse_secrets(data, typed, lines)
    _absolute(model, data, base)
    _absolute(model, typed, Path.cwd())
    _override(data, typed)
    try:
        return model.model_validate(_resolve(data, lines.path))
    except OmegaConfBaseException as error:
        raise RecipeError(f"{lines.path}: {error}. Only keys of the recipe itself can be interpolated") from None
    except ValidationError as error:
        raise RecipeError(_explain(error, model, lines, [_key(override) for override in overrides])) from None


def _parse(path: Path) -> tuple[yaml.Node, dict[str, Any]]:
    try:
        node, data = strict_yaml.load(_text(path))
    except yaml.YAMLError as error:
        line, problem = strict_yaml.explain(error)
        raise RecipeError(f"{path}:{line}: {problem}") from None
    if node is None or not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of settings, KEY: VALUE on each line")
    return node, data


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        message = f"{path}: {reason}. Give the path of a recipe, such as recipes/quickstart/run.yaml"
        raise RecipeError(message) from None
    if len(raw) > MAX_BYTES:
        raise RecipeError(f"{path}: more than {MAX_BYTES} bytes, so this is no recipe")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8: {error}. Save the file as UTF-8") from None


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    typed: dict[str, Any] = {}
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign:
            raise RecipeError(f"override {shown(override)} has no '='. Write it as key=value, such as iterations=1")
        if not re.fullmatch(r"\w+(\.\w+){0,15}", key):
            raise RecipeError(f"override {shown(override)}: {shown(key)} is no key, such as training.dpo.beta")
        try:
            _, value = strict_yaml.load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"command line: {key}: {strict_yaml.explain(error)[1]}") from None
        *blocks, name = key.split(".")
        inner = typed
        for block in blocks:
            inner = inner.setdefault(block, {})
            if not isinstance(inner, dict):
                raise RecipeError(
                    f"command line: {key}: another override makes {block} a value. Take one of the two out"
                )
        inner[name] = value
    return typed


def _refuse_secrets(data: dict[str, Any], typed: dict[str, Any], lines: _Lines) -> None:
    """A secret in a recipe would go into the run's folder, into logs, and to whoever gets the recipe."""
    found = [(lines.place(key), key, message) for key, message in redact.complaints(data)]
    found += [("command line", key, message) for key, message in redact.complaints(typed)]
    if found:
        raise RecipeError("\n".join(f"{where}: {_dotted(key)}: {message}" for where, key, message in found))


def _resolve(data: dict[str, Any], path: Path) -> Any:
    """The settings with the keys that are repeated as ``${key}``."""
    if not any("${" in text for text in texts(data)):
        return data
    _check_references(data, path)
    return OmegaConf.to_container(OmegaConf.create(data, flags={"allow_objects": True}), resolve=True)


def _override(data: dict[str, Any], typed: dict[str, Any]) -> None:
    """Puts the settings of the command line over those of the file, in place."""
    for name, value in typed.items():
        before = data.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            _override(before, value)
        else:
            data[name] = value


def _check_references(raw: Any, path: Path) -> None:
    """References to references, or thousands to a large block, would multiply without bound."""
    size = 0
    for name in (name for text in texts(raw) for name in strict_yaml.REFERENCE.findall(text)):
        target = reduce(_item, name.split("."), raw)
        if any("${" in text for text in texts(target)):
            raise RecipeError(f"{path}: ${{{name}}}: what stands there repeats another key itself. Write it out")
        size += len(str(target))
        if size > MAX_BYTES:
            raise RecipeError(
                f"{path}: ${{{name}}}: the repeated keys make more than {MAX_BYTES} characters. Repeat less"
            )


def _item(value: Any, name: str) -> Any:
    if isinstance(value, list) and name.isdecimal():
        return value[int(name)] if int(name) < len(value) else None
    return value.get(name) if isinstance(value, dict) else None


def texts(value: Any) -> Iterator[str]:
    """The texts among the values of lists and mappings, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def _absolute(model: type[BaseModel], data: dict[str, Any], base: Path) -> None:
    """Makes the relative paths of ``data`` absolute, in place."""
    for name, field in model.model_fields.items():
        value = data.get(name)
        inner = submodel(field)
        if inner is not None and isinstance(value, dict | list):
            for block in value if isinstance(value, list) else [value]:
                if isinstance(block, dict):
                    _absolute(inner, block, base)
        elif isinstance(value, str) and _has_marker(field):
            # The functions of os.path take any text; Path's own raise for a home that isn't, or a loop of links.
            path = os.path.join(base, os.path.expanduser(value))
            if _is_file(field):
                data[name] = Path(os.path.realpath(path))
            elif os.path.isdir(path):
                data[name] = os.path.realpath(path)


def _is_file(field: FieldInfo) -> bool:
    """Whether a path names a file; else it is a folder, or a name that is known elsewhere."""
    options = [field.annotation, *get_args(field.annotation)]
    return Path in (*options, *(get_args(option)[0] for option in options if get_origin(option) is Annotated))


def submodel(field: FieldInfo) -> type[BaseModel] | None:
    """The settings class of a block or of a list of them, or None for a plain setting."""
    options = (field.annotation, *get_args(field.annotation))
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def marks_of(field: FieldInfo) -> list[Any]:
    """What ``Annotated`` has of a field: first that of its type, last that of the field itself."""
    options = [option for option in get_args(field.annotation) if get_origin(option) is Annotated]
    return [*(mark for option in options for mark in get_args(option)), *field.metadata]


def _has_marker(field: FieldInfo) -> bool:
    return any(isinstance(mark, _Relative) for mark in marks_of(field))


@dataclass(frozen=True)
class _Lines:
    """On which line of which file each key stands."""

    path: Path
    lines: dict[Key, int]

    def place(self, key: Key, typed: Sequence[Key] = ()) -> str:
        """Where a key was set: on the command line, where the keys of ``typed`` are, or on a line of the file."""
        if any(key[: len(start)] == start for start in typed):
            return "command line"
        if key not in self.lines and any(start[: len(key)] == key for start in typed):
            return "command line"
        line = next((self.lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.lines), 1)
        return f"{self.path}:{line}"


def _key(override: str) -> Key:
    return tuple(override.partition("=")[0].split("."))


def _explain(error: ValidationError, model: type[BaseModel], lines: _Lines, typed: Sequence[Key]) -> str:
    messages = []
    problems = error.errors(include_url=False)
    for problem in problems[:MAX_SHOWN_PROBLEMS]:
        cause = problem.get("ctx", {}).get("error")
        option = (cause.option,) if isinstance(cause, OptionError) else ()
        key = (*problem["loc"], *option)
        messages.append(f"{lines.place(key, typed)}: {_dotted(key)}: {_message(dict(problem), model)}")
    more = [f"... and {len(problems) - MAX_SHOWN_PROBLEMS} more"] if len(problems) > MAX_SHOWN_PROBLEMS else []
    return "\n".join([*messages, *more])


def _dotted(key: Key) -> str:
    return ".".join(map(str, key)) or "the recipe"


def _message(problem: dict[str, Any], model: type[BaseModel]) -> str:
    if problem["type"] == "extra_forbidden":
        return f"unknown key. {suggest(str(problem['loc'][-1]), _siblings(model, problem['loc']))}"
    if problem["type"] == "missing":
        return "missing, and it has no default. Add it to the recipe"
    if problem["type"] == "value_error":
        return str(problem["msg"]).removeprefix(VALUE_ERROR)
    return bad_value(problem)


def bad_value(problem: Mapping[str, Any]) -> str:
    """One of pydantic's problems in the words of an error message, with the value."""
    text = str(problem["msg"]).removeprefix(VALUE_ERROR)
    return f"{text[0].lower()}{text[1:]}, and the value is {shown(problem['input'])}"


def shown(value: Any, limit: int = 200) -> str:
    """A value as an error message shows it: without secrets, and cut after that, as half a secret is one too."""
    text = redact.redact(repr(value))
    return text if len(text) <= limit else f"{text[:limit]}..."


def _siblings(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    for name in (name for name in loc[:-1] if not isinstance(name, int)):
        inner = submodel(model.model_fields[str(name)])
        assert inner is not None
        model = inner
    return list(model.model_fields)


def suggest(name: str, known: Sequence[str], limit: int = 12) -> str:
    """'Did you mean ...?' where a known name is near, else the known names."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    more = f" and {len(known) - limit} more" if len(known) > limit else ""
    return f"Known: {', '.join(sorted(known)[:limit])}{more}."


def _key_lines(node: yaml.Node | None, prefix: Key = ()) -> Iterator[tuple[Key, int]]:
    """Each key of the file with the line, counted from 1, that it stands on."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*prefix, key.value), key.start_mark.line + 1
            yield from _key_lines(value, (*prefix, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            yield (*prefix, place), item.start_mark.line + 1
            yield from _key_lines(item, (*prefix, place))
