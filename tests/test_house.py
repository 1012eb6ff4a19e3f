"""Habits of the code that nothing else would notice the loss of."""

import asyncio
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import selfreward
from selfreward.recipe.loader import submodel
from selfreward.recipe.recipe import Recipe
from selfreward.records import Prompt, Response

ROOT = Path(__file__).parents[1]


def settings(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        yield model.__name__, name
        if inner := submodel(field):
            yield from settings(inner)


def test_every_setting_is_read_by_code() -> None:
    files = [p for p in (ROOT / "selfreward").rglob("*.py") if p.name not in ("config.py", "reference.py")]
    code = "\n".join(path.read_text() for path in files)
    unread = {f"{block}.{name}" for block, name in settings(Recipe) if not re.search(rf"\.{name}\b", code)}
    assert unread == set()


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
