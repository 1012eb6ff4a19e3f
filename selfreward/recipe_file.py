"""Reading a YAML file strictly: overrides, relative paths, and errors that name line, value and way out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, ValidationError, ValidationInfo
from pydantic.fields import FieldInfo

Model = TypeVar("Model", bound=BaseModel)
Key = tuple[str | int, ...]


class RecipeError(ValueError):
    """A recipe that can't be run: its message names the file, the line, the value and the way out."""


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
    if not is_stored(info) and not path.is_file():
        raise ValueError(f"no such file: {path}")
    return path


RecipeFile = Annotated[Path, _Relative(), AfterValidator(_existing)]
RecipePath = Annotated[str, _Relative()]


def read(model: type[Model], path: Path, overrides: Sequence[str] = ()) -> Model:
    """Reads and validates a YAML file.

    Args:
        model: the settings it must fit.
        path: the file; the relative paths in it start from its folder.
        overrides: ``key=value`` strings that win over the file; their paths start from the working directory.

    Raises:
        RecipeError: unreadable, an unknown key, a wrong type or value, settings that exclude each other.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        message = f"{path}: {error.strerror}. Give the path of a recipe, such as recipes/quickstart/run.yaml"
        raise RecipeError(message) from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8: {error}. Save the file as UTF-8") from None
    data, typed = _parse(text, path), _parse_overrides(overrides)
    _absolute(model, data, path.resolve().parent)
    _absolute(model, typed, Path.cwd())
    try:
        merged = OmegaConf.merge(OmegaConf.create(data, flags={"allow_objects": True}), typed)
        return model.model_validate(OmegaConf.to_container(merged, resolve=True))
    except OmegaConfBaseException as error:
        raise RecipeError(f"{path}: {error}. Only keys of the recipe itself can be interpolated") from None
    except ValidationError as error:
        raise RecipeError(_explain(error, model, path, text, overrides)) from None


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError(f"{path}: a recipe is a mapping of settings, KEY: VALUE on each line")
        _check_keys(node, path)
        return _as_dict(OmegaConf.create(text), str(path))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(f"{path}: not YAML: {error}") from None


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        if "=" not in override:
            raise RecipeError(f"override {override!r} has no '='. Write it as key=value, such as iterations=1")
    try:
        return _as_dict(OmegaConf.from_dotlist(list(overrides)), "command line")
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(f"command line: not YAML values: {' '.join(overrides)}: {error}") from None


def _as_dict(config: Any, where: str) -> dict[str, Any]:
    data = OmegaConf.to_container(config, resolve=False)
    assert isinstance(data, dict)
    for text in _texts(data):
        # A resolver could read the environment, which may hold secrets, into the run folder's resolved recipe.
        if re.search(r"\$\{[^{}]*(:|\$\{)", text):
            raise RecipeError(f"{where}: {text!r}: only keys of the recipe itself can be interpolated, as ${{seed}}")
    return {str(key): value for key, value in data.items()}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _check_keys(node: yaml.Node, path: Path) -> None:
    """Keys are plain words and stand once: YAML lets the last of two equal keys win in silence."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, path)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            where = f"{path}:{key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(f"{where}: a key is a plain word, and here stands a whole list or mapping")
            if key.value in seen:
                raise RecipeError(f"{where}: the key {key.value!r} stands here a second time")
            seen.add(key.value)
            _check_keys(value, path)


def _absolute(model: type[BaseModel], data: dict[str, Any], base: Path) -> None:
    """Makes the relative paths of ``data`` absolute, in place."""
    for name, field in model.model_fields.items():
        value = data.get(name)
        inner = submodel(field)
        if inner is not None and isinstance(value, dict):
            _absolute(inner, value, base)
        elif isinstance(value, str) and _has_marker(field):
            path = Path(base, Path(value).expanduser())
            if field.annotation is not str:
                data[name] = path.resolve()
            elif path.is_dir():
                data[name] = str(path.resolve())


def submodel(field: FieldInfo) -> type[BaseModel] | None:
    """The settings class of a block, or None for a plain setting."""
    options = (field.annotation, *get_args(field.annotation))
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _has_marker(field: FieldInfo) -> bool:
    marks = list(field.metadata)
    for option in get_args(field.annotation):
        marks += get_args(option) if get_origin(option) is Annotated else []
    return any(isinstance(mark, _Relative) for mark in marks)


def _explain(error: ValidationError, model: type[BaseModel], path: Path, text: str, overrides: Sequence[str]) -> str:
    lines = dict(_key_lines(yaml.compose(text, Loader=yaml.SafeLoader)))
    typed = [tuple(item.partition("=")[0].split(".")) for item in overrides]
    messages = []
    for problem in error.errors(include_url=False):
        cause = problem.get("ctx", {}).get("error")
        option = (cause.option,) if isinstance(cause, OptionError) else ()
        key = (*problem["loc"], *option)
        dotted = ".".join(map(str, key)) or "the recipe"
        messages.append(f"{_place(key, lines, typed, path)}: {dotted}: {_message(dict(problem), model)}")
    return "\n".join(messages)


def _place(key: Key, lines: dict[Key, int], typed: Sequence[Key], path: Path) -> str:
    """Where a key was set: on the command line, or on a line of the file."""
    if any(key[: len(start)] == start for start in typed):
        return "command line"
    if key not in lines and any(start[: len(key)] == key for start in typed):
        return "command line"
    return f"{path}:{next((lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in lines), 1)}"


def _message(problem: dict[str, Any], model: type[BaseModel]) -> str:
    if problem["type"] == "extra_forbidden":
        return f"unknown key. {suggest(str(problem['loc'][-1]), _siblings(model, problem['loc']))}"
    if problem["type"] == "missing":
        return "missing, and it has no default. Add it to the recipe"
    text = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return text
    return f"{text[0].lower()}{text[1:]}, and the value is {problem['input']!r}"


def _siblings(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    for name in loc[:-1]:
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


def edit(model: type[Model], data: dict[str, Any], overrides: Sequence[str]) -> Model:
    """Validates settings that were read before, with ``key=value`` overrides over them.

    Raises:
        RecipeError: as :func:`read`.
    """
    where = Path("the stored recipe")
    typed = _parse_overrides(overrides)
    _absolute(model, data, Path.cwd())
    _absolute(model, typed, Path.cwd())
    try:
        merged = OmegaConf.merge(OmegaConf.create(data, flags={"allow_objects": True}), typed)
        return model.model_validate(OmegaConf.to_container(merged, resolve=True))
    except OmegaConfBaseException as error:
        raise RecipeError(f"{where}: {error}. Only keys of the recipe itself can be interpolated") from None
    except ValidationError as error:
        raise RecipeError(_explain(error, model, where, "{}", overrides)) from None
