"""Every setting has a reader outside of ``selfreward/recipe``.

A type checker tells readers apart by the class that they read from: in a copy of the package every setting has another
name, and each error that follows is a reader.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

import selfreward
from selfreward.recipe.loader import submodel
from selfreward.recipe.recipe import Recipe

PACKAGE = Path(selfreward.__file__).parent
# Without a stub pydantic's classes would be of no known type, and have any attribute.
STUB = "from typing import Any\nclass BaseModel:\n    def __init__(self, **values: Any) -> None: ...\n"
STUB += "def __getattr__(name: str) -> Any: ...\n"
OTHER_NAME = "{}_of_another_name"
MISSING = re.compile(r'"(\w+)"(?: of "[^"]*")? has no attribute "(\w+)"')
Read = set[tuple[str, str]]  # class and attribute


def is_setting(node: ast.stmt) -> bool:
    """Whether a line of a class is a setting that is no block of others."""
    is_field = isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    return is_field and "Settings" not in ast.unparse(node.annotation)


def name_of(node: ast.stmt) -> str:
    return node.target.id if isinstance(node, ast.AnnAssign) else node.name


def renamed(source: str) -> str:
    """A module whose settings, and the public methods beside them, have other names."""
    lines = source.splitlines(keepends=True)
    for kind in classes(source):
        for node in kind.body:
            if is_setting(node) or (isinstance(node, ast.FunctionDef) and not node.name.startswith("_")):
                line, name = lines[node.lineno - 1], name_of(node)
                lines[node.lineno - 1] = re.sub(rf"\b{name}\b", OTHER_NAME.format(name), line, count=1)
    return "".join(lines)


def classes(source: str) -> list[ast.ClassDef]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]


def read_outside(folder: Path) -> Read:
    """What code outside of ``recipe`` reads from classes in it, in a copy of the package in the folder."""
    for path in (folder / "selfreward" / "recipe").glob("*.py"):
        path.write_text(renamed(path.read_text()))
    (folder / "stubs" / "pydantic").mkdir(parents=True)
    (folder / "stubs" / "pydantic" / "__init__.pyi").write_text(STUB)
    plain = ["--config-file=", "--follow-imports=skip", "--ignore-missing-imports", "--check-untyped-defs"]
    command = [sys.executable, "-m", "mypy", str(folder / "selfreward"), f"--cache-dir={folder / 'cache'}", *plain]
    environment = {**os.environ, "MYPYPATH": str(folder / "stubs")}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert not done.stderr
    errors = [line for line in done.stdout.splitlines() if "/selfreward/recipe/" not in line.partition(":")[0]]
    return {match.groups() for line in errors if (match := MISSING.search(line))}


def read_inside(folder: Path, read: Read) -> Read:
    """What a method of a settings class reads of itself, if code outside calls the method."""
    found: Read = set()
    for path in (folder / "selfreward" / "recipe").glob("*.py"):
        for kind in classes(path.read_text()):
            methods = [node for node in kind.body if isinstance(node, ast.FunctionDef)]
            called = [each for each in methods if each.name.replace("_of_another_name", "") in {n for _, n in read}]
            attributes = [n for each in called for n in ast.walk(each) if isinstance(n, ast.Attribute)]
            found |= {(kind.name, each.attr) for each in attributes}
    return found


def settings(model: type[BaseModel]) -> Iterator[tuple[type[BaseModel], str]]:
    for name, field in model.model_fields.items():
        if inner := submodel(field):
            yield from settings(inner)
        else:
            yield model, name


def family(model: type[BaseModel]) -> set[str]:
    """The names of a class, its parents and its children: a reader may hold any of them."""
    children = [name for child in model.__subclasses__() for name in family(child)]
    return {*(parent.__name__ for parent in model.__mro__ if parent is not BaseModel), *children}


def unread(folder: Path) -> set[str]:
    """The settings of the package that is copied to the folder that nobody reads."""
    read = read_outside(folder)
    inside = {name for _, name in read_inside(folder, read)}
    return {
        f"{model.__name__}.{name}"
        for model, name in settings(Recipe)
        if not any((kind, name) in read for kind in family(model)) and name not in inside
    }


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "selfreward", ignore=shutil.ignore_patterns("__pycache__", "tiny"))
    return tmp_path


def test_every_setting_is_read_by_code(copy: Path) -> None:
    assert unread(copy) == set()


def test_settings_whose_readers_are_gone_are_found(copy: Path) -> None:
    """One whose name many other things have too, and one that other settings' classes have as well."""
    for name, before, after in (
        ("serving/engines.py", "settings.max_restarts", "3"),
        ("engines/replica_pool.py", "settings.max_restarts", "3"),
        ("stages/evaluate.py", "settings.n", "1"),
        ("estimates/run_estimate.py", "recipe.evaluation.n", "1"),
    ):
        path = copy / "selfreward" / name
        assert before in path.read_text(), f"{name} reads it no longer"
        path.write_text(path.read_text().replace(before, after))
    assert unread(copy) >= {"EngineSettings.max_restarts", "EvaluationSettings.n"}
