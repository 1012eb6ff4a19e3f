"""No recipe, however spoilt, gives another error than one that says why, or writes anything, or leads out of a folder.

``SELFREWARD_FUZZ=10000`` tries more of them.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfreward.recipe.loader import RecipeError
from selfreward.recipe.recipe import load_recipe
from selfreward.runs.run import Run

NUM_RECIPES = int(os.environ.get("SELFREWARD_FUZZ", "3000"))
NUM_COMMANDS = max(10, NUM_RECIPES // 333)

# fmt: off
TEXTS = [
    "..", ".", "", " ", "../../up", "../runs", "/", "/abs", "/etc/passwd", "a/b", "a\\b", "a\0b", "a\nb", "a\tb",
    "\x1b[31m", "ｎａｍｅ", "nаme", "a\u202egnp", "\ufeffa", "a\u0301", "é", "☃", "\ud800", "x" * 101, "x" * 300,
    "x" * 9999, "x" * 20000, "/" * 5000, "a/" * 3000, "~", "~root/x", "~nobody-at-all/x", "link", "loop", "loop/x",
    "dangling", "folder", "prompts.jsonl", "prompts.jsonl/x", "/dev/zero", "/dev/null", "/proc/self/environ", "-rf",
    "--help", ".hidden", "a b", "%2e%2e", "con", "???", "null", "${seed}", "${name}", "${oc.env:HOME}", "${", "${}",
    "\\${seed}", "${training}", "model", "./model", "os:system", "2024-01-01", "1:30", "0x_", "5e-7", ".inf", "!!str",
]
VALUES: list[Any] = [
    0, -1, 1, 2, 3.5, -0.0, 1e308, 10**18, 10**30, -(10**40), 2**31, True, False, None, [], {}, [[]], [None], [{}],
    {"": 1}, {"a": {"b": {"c": 1}}}, [1, "a", None], {"name": "x"}, {"1": 2}, [[[[[[1]]]]]], "true", "12", float("inf"),
]
YAML = [
    "!!python/object/apply:os.system ['touch canary']", "!!float x", "!!timestamp x", "!!binary é", "!x y", "*a",
    "&a b", "&a [*a]", "<<: {a: 1}", "? [a]\n: b", "- - - a", "|\n  x", ">-\n  x", "%YAML 3.0", "---", "...", "\t",
    "@x", "`", "'", '"', "{", "[", "}", "]", ":", "- ", "# c", "=", "0b_", "._", "1_0", "0o7", "1:1:1.5", "on",
    "yes: no", "1: 2", "null: 1", "\x85", "\u2028", "\\", "'\\x'", '"\\x"', '"\\ud800"', '"\\0"', "[1, 2",
    "{a: 1, a: 2}", "a: b: c", "!!set {a}", "!!omap [a: 1]", "~", ".nan",
]
# fmt: on
VALID: dict[str, Any] = {
    "name": "demo",
    "run_dir": "runs",
    "seed": 1,
    "model": {"path": "model", "dtype": "float32", "revision": None},
    "prompts": {"path": "prompts.jsonl", "num": 1},
    "responses": {"n": 4, "temperature": 0.7},
    "judge": {"name": "additive"},
    "training": {"dpo": {"beta": 0.1, "loss_type": ["sigmoid", "sft"]}, "lora": {"r": 8, "rank_pattern": {"a": 1}}},
    "engine": {"name": "transformers", "vllm": {"max_model_len": 64, "override_generation_config": {"a": [1]}}},
    "tracking": {"project": "p"},
}
BLOCK_STYLE = yaml.safe_dump(VALID).encode()


def any_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(6) if depth < 4 else 0
    if kind == 4:
        return [any_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 5:
        return {rng.choice([*TEXTS[:60], *VALID, "path"]): any_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return rng.choice(TEXTS) if kind < 2 else rng.choice(VALUES)


def places(value: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if key:
        yield key
    if isinstance(value, dict):
        for name, item in value.items():
            yield from places(item, (*key, name))


def put(data: dict[str, Any], key: tuple[str, ...], value: Any) -> None:
    for name in key[:-1]:
        data = data[name]
    data[key[-1]] = value


def as_yaml(data: Any) -> bytes:
    """JSON is YAML, and has a form for every character."""
    text = json.dumps(data, ensure_ascii=False)
    return (json.dumps(data) if "\ud800" in text else text).encode()


def spoil_values(rng: random.Random) -> tuple[bytes, list[str]]:
    data = json.loads(json.dumps(VALID))
    key = rng.choice(list(places(data)))
    way = rng.randrange(4)
    if way == 0:
        data["name"] = rng.choice(TEXTS) + rng.choice(["", "", "x", "/", "\0"])
    elif way == 1:
        data["run_dir"] = any_value(rng)
    elif way == 2:
        put(data, key, any_value(rng))
    else:
        put(data, (*key[:-1], rng.choice([*TEXTS, *VALID])), any_value(rng))
    return as_yaml(data), []


def spoil_command_line(rng: random.Random) -> tuple[bytes, list[str]]:
    key = ".".join(rng.choice(list(places(VALID)))) + rng.choice(["", "", ".x", "[0]", "..", ".0"])
    text = rng.choice([rng.choice(YAML), rng.choice(TEXTS), json.dumps(any_value(rng))])
    # No argument of a command can hold the character 0.
    return as_yaml(VALID), [f"{key}{rng.choice('===:')}{text}".replace("\0", "0")]


def spoil_lines(rng: random.Random) -> tuple[bytes, list[str]]:
    lines = BLOCK_STYLE.split(b"\n")
    place = rng.randrange(len(lines))
    line = lines[place]
    head = line.partition(b": ")[0] + b": "
    lines[place] = rng.choice([b"", line[1:], b" " + line, line * 2, *[head + rng.choice(YAML).encode()] * 4])
    lines.insert(rng.randrange(len(lines)), rng.choice([rng.choice(YAML).encode(), rng.choice(lines), b""]))
    return b"\n".join(lines), []


def spoil_bytes(rng: random.Random) -> tuple[bytes, list[str]]:
    raw = bytearray(BLOCK_STYLE)
    for _ in range(rng.choice([1, 3, 30])):
        raw[rng.randrange(len(raw))] = rng.choice([rng.randrange(128), rng.randrange(256)])
    return bytes(raw) if rng.random() < 0.9 else rng.randbytes(rng.randrange(200)), []


SPOIL = [spoil_values, spoil_values, spoil_command_line, spoil_lines, spoil_bytes]


def spoilt(number: int) -> tuple[bytes, list[str]]:
    """A recipe and overrides that are spoilt in one of many ways."""
    return SPOIL[number % len(SPOIL)](random.Random(number))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what the valid recipe names, and links that lead elsewhere."""
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "model").symlink_to(Path(__file__).parents[1] / "selfreward" / "tiny" / "model")
    (folder / "folder").mkdir()
    (folder / "prompts.jsonl").write_text('{"prompt": "Why?"}\n')
    (folder / "link").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to(tmp_path / "nowhere")
    (folder / "run.yaml").write_bytes(as_yaml(VALID))
    monkeypatch.chdir(folder)
    return folder


WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
FILES = "mkdir rename remove rmdir link symlink truncate chmod system exec fork posix_spawn spawn putenv".split()
EVENTS = {f"os.{name}" for name in FILES} | {"subprocess.Popen", "socket.connect", "ctypes.dlopen"}
_seen: list[str] | None = None


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _seen is not None and (event in EVENTS or (event == "open" and isinstance(args[2], int) and args[2] & WRITES)):
        _seen.append(f"{event} {args!r}")


@contextmanager
def watch() -> Iterator[list[str]]:
    """What Python itself reports of writes, and of commands that are started."""
    global _seen  # noqa: PLW0603 - an audit hook can't be taken away again, so it is put in place once
    if _seen is None and not hasattr(watch, "hooked"):
        sys.addaudithook(_audit)
        watch.hooked = True  # type: ignore[attr-defined]
    _seen = []
    try:
        yield _seen
    finally:
        _seen = None


def test_the_watch_sees_writes_and_commands(tmp_path: Path) -> None:
    with watch() as seen:
        (tmp_path / "a").write_text("x")
        (tmp_path / "b").mkdir()
        subprocess.run(["true"], check=True)
    assert [line.split()[0] for line in seen][:3] == ["open", "os.mkdir", "subprocess.Popen"]


def test_the_recipe_that_is_spoilt_is_good(root: Path) -> None:
    assert load_recipe("run.yaml").name == "demo"
    (root / "run.yaml").write_bytes(BLOCK_STYLE)
    assert load_recipe("run.yaml").name == "demo"


def test_any_recipe_is_a_recipe_or_an_error_that_says_why(root: Path) -> None:
    good = refused = 0
    for number in range(NUM_RECIPES):
        text, overrides = spoilt(number)
        (root / "run.yaml").write_bytes(text)
        with watch() as seen:
            try:
                recipe = load_recipe("run.yaml", overrides)
            except RecipeError as error:
                message, refused = str(error), refused + 1
            except Exception as error:
                raise AssertionError(f"recipe {number}, {text!r}, {overrides}") from error
            else:
                message, good = "", good + 1
                assert (recipe.run_dir / recipe.name).parent == recipe.run_dir, (number, text, overrides)
        assert seen == [], (number, text, overrides)
        assert not message or message.startswith(("run.yaml", "command line: ", "override ")), (number, message)
        assert len(message) < 50_000, (number, message[:500])
    print(f"{NUM_RECIPES} recipes: {good} good, {refused} refused, 0 other errors, 0 writes")
    assert 0 < good < refused


# What a message says of a value that is refused before its key is known.
SAID = (
    "can't stand in a setting",
    "characters, more than",
    "can be interpolated",
    "repeats another key",
    "valid string",
)


@pytest.mark.parametrize("name", TEXTS)
def test_a_name_that_leads_elsewhere_is_refused_and_shown(root: Path, name: str) -> None:
    (root / "run.yaml").write_bytes(as_yaml(VALID | {"name": name}))
    try:
        recipe = load_recipe("run.yaml")
    except RecipeError as error:
        message = str(error)
    else:
        assert (recipe.run_dir / recipe.name).parent == recipe.run_dir
        return
    shown = repr(name.removeprefix("\\"))[1:-1][:150]
    assert shown in message or any(part in message for part in SAID)


def snapshot(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*") if path.name != "run.yaml"}


def selfreward(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "selfreward", *arguments]
    return subprocess.run([os.fsencode(word) for word in command], capture_output=True, check=False)


def test_any_recipe_leaves_the_command_whole(tmp_path: Path, root: Path) -> None:
    before = snapshot(tmp_path)
    statuses = [selfreward("check", "run.yaml").returncode]
    for number in range(NUM_COMMANDS):
        text, overrides = spoilt(number)
        (root / "run.yaml").write_bytes(text)
        result = selfreward("check", "run.yaml", *overrides)
        assert result.returncode in (0, 1), (number, text, overrides, result.stderr.decode())
        assert b"Traceback" not in result.stderr, (number, text, overrides, result.stderr.decode())
        statuses.append(result.returncode)
    assert snapshot(tmp_path) == before
    print(
        f"{NUM_COMMANDS} commands: {statuses.count(0) - 1} passed, {statuses.count(1)} refused, 0 tracebacks, 0 writes"
    )
    assert statuses[0] == 0
    assert 1 in statuses


@pytest.mark.parametrize("name", ["../up", "/abs", "link", "a\nb", "x" * 300, "ｎａｍｅ"])
def test_a_run_is_made_within_its_folder_or_not_at_all(tmp_path: Path, root: Path, name: str) -> None:
    """``link`` is a good name, and here it leads out."""
    (root / "run.yaml").write_bytes(as_yaml(VALID | {"run_dir": "."}))
    before = snapshot(tmp_path)
    result = selfreward("run", "run.yaml", f"name={json.dumps(name, ensure_ascii=False)}")
    assert result.returncode == 1
    assert b"Traceback" not in result.stderr
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("target", ["outside", "nowhere", "runs"])
def test_a_run_folder_that_is_a_link_is_refused(tmp_path: Path, root: Path, target: str) -> None:
    recipe = load_recipe("run.yaml", [f"run_dir={tmp_path}/runs"])
    for folder in ("outside", "runs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "runs" / "demo").symlink_to(tmp_path / target)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="link"):
        Run.create(recipe)
    assert snapshot(tmp_path) == before
