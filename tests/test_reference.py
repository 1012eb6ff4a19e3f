"""docs/recipe.md is what the settings say."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from selfreward.recipe import upstream
from selfreward.recipe.loader import RecipeError, submodel
from selfreward.recipe.recipe import Recipe, load_recipe
from selfreward.recipe.reference_docs import markdown, passed_on

QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart" / "run.yaml"
DOCS = Path(__file__).parents[1] / "docs" / "recipe.md"


def blocks(model: type[BaseModel]) -> set[type[BaseModel]]:
    inner = {block for field in model.model_fields.values() if (block := submodel(field)) is not None}
    return {model}.union(*(blocks(block) for block in inner))


BLOCK_CLASSES = sorted(blocks(Recipe), key=lambda block: block.__name__)


def test_the_file_is_up_to_date() -> None:
    assert DOCS.read_text(encoding="utf-8") == markdown(Recipe), "run `make docs`"


@pytest.mark.parametrize("block", BLOCK_CLASSES, ids=lambda block: block.__name__)
def test_every_setting_is_described(block: type[BaseModel]) -> None:
    assert block.__doc__, f"{block.__name__} needs a docstring: it introduces the block"
    bare = [name for name, field in block.model_fields.items() if not field.description and submodel(field) is None]
    assert not bare


def test_every_block_and_every_refused_name_stands_in_it() -> None:
    text = markdown(Recipe)
    for key in ("`engine`", "`engine.openai`", "`judge`", "`training`"):
        assert f"## {key}\n" in text
    for block, mark in passed_on(Recipe).items():
        section = text.partition(f"### `{block}`")[2].partition("###")[0]
        assert all(f"| `{name}` |" in section for name in mark.reserved)


@pytest.mark.parametrize("block", ["training.sft", "training.dpo", "training.lora", "engine.vllm"])
def test_what_stands_in_it_as_refused_is_all_that_is_refused(block: str) -> None:
    """Each option of the library's class is tried, against the section of its block."""
    section = markdown(Recipe).partition(f"### `{block}`")[2].partition("###")[0]
    told = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    names = told | {*(upstream.fields(passed_on(Recipe)[block].source) or ())}
    assert told == {name for name in names if is_reserved(f"{block}.{name}")}


def is_reserved(key: str) -> bool:
    """Whether a recipe with this option is refused for the option's name, whatever its value."""
    try:
        load_recipe(QUICKSTART, [f"{key}=nothing"])
    except RecipeError as error:
        # A key of a service is refused as that, before anyone asks whose option it is.
        return "set by the loop" in str(error) or "from the environment" in str(error)
    return False
