"""docs/recipe.md is what the settings say."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from selfreward.recipe.loader import submodel
from selfreward.recipe.recipe import Recipe
from selfreward.recipe.reference_docs import BLOCKS, markdown

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
    for block, _, reserved in BLOCKS:
        assert f"### `{block}`" in text
        assert all(f"| `{name}` |" in text for name in reserved)
