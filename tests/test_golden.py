"""What is stored stays the same from version to version: records, journals, recipes and markers of small runs."""

import json
from pathlib import Path

import golden
import pytest

STORED = json.loads(golden.STORED.read_text("utf-8"))


@pytest.mark.parametrize("name", [name for name in golden.RUNS if name not in golden.COMPUTED])
def test_a_run_stores_what_it_always_did(name: str, tmp_path: Path) -> None:
    lab = golden.Lab(tmp_path / name)
    lab.write(golden.RUNS[name])
    lab.perform()
    changed = [*golden.differences({name: STORED[name]}, {name: lab.hashes(exact=False)})]
    assert changed == [], "see tests/golden.py for what to do where that is meant"
