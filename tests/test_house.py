"""Habits of the code that nothing else would notice the loss of."""

import ast
import asyncio
import inspect
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import networkx as nx

import selfreward
from selfreward import errors
from selfreward.records import Prompt, Response

ROOT = Path(__file__).parents[1]


def test_the_public_names_and_their_signatures() -> None:
    signatures = {n: str(inspect.signature(getattr(selfreward, n))) for n in ("load_recipe", "run")}
    assert sorted(selfreward.__all__) == ["Recipe", "Run", "__version__", "load_recipe", "run"]
    assert signatures == {
        "load_recipe": "(path: 'str | Path', overrides: 'Sequence[str]' = ()) -> 'Recipe'",
        "run": "(recipe: 'Recipe') -> 'Run'",
    }
    assert str(inspect.signature(selfreward.Run.dataset)) == "(self, name: 'str', iteration: 'int') -> 'Dataset'"


def test_links_in_documents_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/**/*.md"), *ROOT.glob("launch/**/*.md")]
    missing = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert missing == []


def test_the_judge_in_the_documentation_judges() -> None:
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "judges.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    judge, prompt = names["Brief"](None), Prompt.make([{"role": "user", "content": "Name birds."}], "test")
    responses = [Response(f"r{n}", prompt.id, n, "owl " * n, "stop", n, n, "M1") for n in (1, 3)]
    judgements = asyncio.run(judge.judge(None, prompt, responses, seed=0))
    assert judge.scores(judgements) == {"r1": -1.0, "r3": -3.0}
    assert judge.examples([]) == []


def test_the_recipe_in_the_readme_loads(tmp_path: Path) -> None:
    [recipe] = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "run.yaml").write_text(recipe)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    assert selfreward.load_recipe(tmp_path / "run.yaml").name == "my-run"


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its name, parsed."""
    package = ROOT / "selfreward"
    names = {path: path.relative_to(ROOT).with_suffix("").parts for path in package.rglob("*.py")}
    dotted = {path: ".".join(n[:-1] if n[-1] == "__init__" else n) for path, n in names.items()}
    return {dotted[path]: ast.parse(path.read_text()) for path in names}


def imported(tree: ast.Module, known: Mapping[str, Any]) -> set[str]:
    """The modules of the package that one imports, wherever in it."""
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {name if (name := f"{node.module}.{a.name}") in known else node.module for a in node.names}
    return found & known.keys()


def test_no_imports_go_in_circles_among_files_or_rooms() -> None:
    known = modules()
    files = nx.DiGraph((name, other) for name, tree in known.items() for other in imported(tree, known))
    # The package itself only says what is public, and stands above all rooms.
    between = [(a.split(".")[1], b.split(".")[1]) for a, b in files.edges if "." in a and "." in b]
    rooms = nx.DiGraph((a, b) for a, b in between if a != b)
    assert list(nx.simple_cycles(files)) == []
    assert list(nx.simple_cycles(rooms)) == []


def test_file_names_say_one_thing_and_are_not_those_of_the_standard_library() -> None:
    names = [path.stem for path in (ROOT / "selfreward").rglob("*.py")]
    assert {name for name, count in Counter(names).items() if count > 1} == {"__init__", "base"}
    assert not {*names} & {*sys.stdlib_module_names}


def test_only_the_registry_imports_by_name() -> None:
    known = modules()
    for name, tree in known.items():
        if name == "selfreward.recipe.registry":
            continue
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not {each for each in called if each.rpartition(".")[2] in ("import_module", "__import__")}, name
        strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        assert not {text for text in strings if re.fullmatch(r"selfreward(\.\w+)+:\w+", text)}, name


def test_each_end_of_a_run_has_an_exit_status_of_its_own() -> None:
    kinds = {name: each for name, each in vars(errors).items() if inspect.isclass(each)}
    named = {each for each in kinds.values() if issubclass(each, errors.SelfrewardError)} - {errors.SelfrewardError}
    assert named == {*errors.BY_EXIT_STATUS.values()}
    assert all(errors.BY_EXIT_STATUS[kind.exit_status] is kind for kind in named)
