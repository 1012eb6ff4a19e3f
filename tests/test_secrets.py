"""Secrets stay out of messages, logs and run folders: canaries put wherever a key may be typed or thrown."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
import string
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import selfreward
from selfreward.recipe.loader import RecipeError, shown
from selfreward.recipe.recipe import load_recipe
from selfreward.runtime import redact

TINY = Path(selfreward.__file__).parent / "tiny"
BASE = f"name: demo\nmodel: {{path: {TINY}/model}}\nprompts: {{path: {TINY}/data/heldout_prompts.jsonl, num: 2}}\n"
LETTERS = string.ascii_letters + string.digits
NUM_CANARIES = 1000

# Each well-known token as its prefix, the characters that follow and their number.
SHAPES = {
    "hf": ("hf_", LETTERS, 34),
    "openai": ("sk-", LETTERS, 48),
    "project": ("sk-proj-", LETTERS + "-_", 60),
    "anthropic": ("sk-ant-", LETTERS + "-_", 80),
    "github": ("ghp_", LETTERS, 36),
    "fine-grained": ("github_pat_", LETTERS + "_", 60),
    "oauth": ("gho_", LETTERS, 36),
    "aws": ("AKIA", string.ascii_uppercase + string.digits, 16),
    "slack": ("xoxb-", string.digits, 24),
    "google": ("AIza", LETTERS + "-_", 35),
    "gitlab": ("glpat-", LETTERS, 20),
}
# What has no form to be known by: known by the name it stands under, or as the value of a variable.
PLAIN = {"wandb": "0123456789abcdef", "password": LETTERS + "-_!$%^*+~", "odd": LETTERS + "\"'\\ \n&<é☃"}


def draw(rng: random.Random, alphabet: str, length: int) -> str:
    return "".join(rng.choices(alphabet, k=length))


def known(rng: random.Random, kind: str = "") -> tuple[str, str]:
    """A canary that can be known by its form, and the random part of it."""
    kind = kind or rng.choice([*SHAPES, "jwt", "pem"])
    if kind == "jwt":
        head, body = (base64.urlsafe_b64encode(json.dumps({k: draw(rng, LETTERS, 20)}).encode()).decode() for k in "ab")
        return f"{head.rstrip('=')}.{body.rstrip('=')}.{draw(rng, LETTERS, 30)}", body[8:].rstrip("=")
    if kind == "pem":
        body = draw(rng, LETTERS + "+/", 64)
        return f"-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----", body
    prefix, alphabet, length = SHAPES[kind]
    body = draw(rng, LETTERS if length > 16 else alphabet, 1) + draw(rng, alphabet, length - 1)
    return prefix + body, body


def plain(rng: random.Random) -> tuple[str, str]:
    kind = rng.choice(list(PLAIN))
    # Not to be taken for a number, a list or a comment, and no space at its ends.
    value = f"p{draw(rng, PLAIN[kind], 38)}q"
    return value, value


def leaked(text: str, core: str) -> list[str]:
    """Parts of a secret that a text shows, as they are or as Python or JSON writes them."""
    forms = {core, repr(core)[1:-1], json.dumps(core)[1:-1], json.dumps(core, ensure_ascii=False)[1:-1]}
    return [form[i : i + 10] for form in forms for i in range(len(form) - 9) if form[i : i + 10] in text]


CREDENTIALS = ["api_key", "hub_token", "password", "client_secret", "auth", "access_token", "wandb_api_key", "apiKey"]
BLOCKS = ["engine: {{vllm: {{{}}}}}", "training: {{dpo: {{{}}}}}", "judge: {{engine: {{openai: {{{}}}}}}}", "{}"]
BLOCKS += [
    "training: {{lora: {{rank_pattern: {{deep: {{deeper: [1, {{{}}}]}}}}}}}}",
    "engine: {{vllm: {{a: [{{{}}}]}}}}",
]


def at_credential(rng: random.Random, value: str) -> str:
    return rng.choice(BLOCKS).format(f"{rng.choice(CREDENTIALS)}: {json.dumps(value)}")


def anywhere(rng: random.Random, value: str) -> str:
    name = rng.choice(["gpu_memory_utilization", "beta", "served_model", "nonsense", "project", "base_url"])
    text = rng.choice([value, f"https://host/{value}/v1", f"a {value} b"])
    places = [f"{name}: {json.dumps(text)}", f"{name}: [1, {json.dumps(text)}]", f"{json.dumps(text)}: 1"]
    return rng.choice(BLOCKS).format(rng.choice(places))


class World:
    """Where a canary is put, and what comes out."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recipe = folder / "run.yaml"
        self.monkeypatch = monkeypatch

    def export(self, rng: random.Random, value: str) -> str:
        name = rng.choice(
            ["MY_API_KEY", "DB_PASSWORD", "CI_TOKEN", "STRIPE_KEY", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"]
        )
        self.monkeypatch.setenv(name, value)
        return name

    def refused(self, text: str, *overrides: str) -> str:
        self.recipe.write_text(BASE + text, encoding="utf-8")
        with pytest.raises(RecipeError) as caught:
            load_recipe(self.recipe, overrides)
        return str(caught.value)

    def value(self, rng: random.Random) -> tuple[str, str]:
        """In the recipe: at a key that tells, or anywhere if the canary tells, or a variable has it."""
        (value, core), way = rng.choice([(known(rng), anywhere), (plain(rng), at_credential), (plain(rng), None)])
        if way is None:
            self.export(rng, value)
            way = anywhere
        message = self.refused(way(rng, value))
        assert re.search(r"keys come from the environment", message)
        assert re.search(r"(Export|variable) [A-Z_]{4,}", message)
        return message, core

    def override(self, rng: random.Random) -> tuple[str, str]:
        value, core = known(rng)
        key = rng.choice(["engine.vllm.hf_token", "judge.engine.openai.api_key", "tracking.project", "seed"])
        message = self.refused("", f"{key}={json.dumps(value)}")
        assert message.startswith(f"command line: {key}: ")
        assert "keys come from the environment" in message
        return message, core

    def url(self, rng: random.Random) -> tuple[str, str]:
        core = draw(rng, LETTERS, 20)
        block = f"judge: {{engine: {{name: openai, openai: {{model: m, base_url: 'https://me:{core}@host/v1'}}}}}}"
        message = self.refused(block)
        assert "a URL with a password stands here (***)" in message
        return message, core

    def variable(self, rng: random.Random) -> tuple[str, str]:
        value, core = rng.choice([known(rng), plain(rng)])
        openai = {"model": "m", "base_url": "http://localhost", "api_key_env": value}
        message = self.refused("judge: " + json.dumps({"engine": {"name": "openai", "openai": openai}}))
        assert "OPENAI_API_KEY" in message or "Export" in message
        return message, core

    def broken(self, rng: random.Random) -> tuple[str, str]:
        """A file or an override that is not YAML, for what is known and what is not."""
        value, core = rng.choice([known(rng), plain(rng)])
        ends = rng.choice([": [", "}", "\n\t- x", ": b: c", "@", '"'])
        text = f"{rng.choice(CREDENTIALS)}: {' '.join(value.split())}{ends}"
        return self.refused("", f"seed={{{text}") if rng.random() < 0.5 else self.refused(f"{{{text}"), core

    def thrown(self, rng: random.Random) -> tuple[str, str]:
        """In an exception, as any library may write it."""
        value, core = rng.choice([known(rng), plain(rng)])
        name = self.export(rng, value)
        forms = [value, repr(value), json.dumps(value), f"https://me:{value}@h/", f"{name}={value}", f"Bearer {value}"]
        error = RuntimeError(f"failed with {rng.choice(forms)} and {{'key': {value!r}}}")
        return redact.redact(f"{error}\n{error!r}"), core

    def named(self, rng: random.Random) -> tuple[str, str]:
        """Behind its name, where nothing else is known of it."""
        core = draw(rng, LETTERS, 39) + "1"
        name = rng.choice(CREDENTIALS)
        forms = [f"{name}={core}", f"{name}: {core}", f'{{"{name}": "{core}"}}', f"{{'{name}': '{core}'}}"]
        forms += [f"--{name}={core}", f"x.{name} = '{core}'", f"Authorization: Bearer {core}"]
        return redact.redact(f"request with {rng.choice(forms)}, and more"), core


CHANNELS: list[Callable[[World, random.Random], tuple[str, str]]] = [
    World.value,
    World.override,
    World.url,
    World.variable,
    World.broken,
    World.thrown,
    World.named,
]


def test_no_canary_comes_out_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaks = []
    for number in range(NUM_CANARIES):
        rng = random.Random(number)
        channel = CHANNELS[number % len(CHANNELS)]
        with monkeypatch.context() as patch:
            message, core = channel(World(tmp_path, patch), rng)
        if parts := leaked(message, core):
            leaks.append((channel.__name__, number, parts[0], message))
    print(f"{NUM_CANARIES} canaries, {len(leaks)} leaked")
    assert leaks == []


@pytest.mark.parametrize(
    "name",
    "api_key apikey apiKey X-Api-Key token hf_token hub_token access_token secret "
    "client_secret password db_passwd credentials auth Authorization auth_token AWS_SECRET_ACCESS_KEY "
    "AWS_ACCESS_KEY_ID PGPASSWORD oauth_token private_key".split(),
)
def test_names_of_credentials(name: str) -> None:
    assert redact.is_credential(name)


@pytest.mark.parametrize(
    "name",
    "max_tokens api_key_env eos_token pad_token num_tokens tokens tokenizer key author "
    "eos_token_id max_num_batched_tokens trainable_token_indices alora_invocation_tokens bos_token image_token "
    "SSH_AUTH_SOCK TOKENIZERS_PARALLELISM include_num_input_tokens_seen hf_token_path KEYBOARD monkey".split(),
)
def test_names_that_are_none(name: str) -> None:
    assert not redact.is_credential(name)


@pytest.mark.parametrize(
    "text",
    [
        "run.yaml:3: training.dpo.pad_token: the value is 5, and trl's DPOConfig takes str",
        "engine.vllm.hf_token: set by the loop: sign in with HF_TOKEN in the environment",
        "judge.engine.openai.api_key_env: input should be a valid string",
        "https://localhost:8000/v1 answered 404: no model is called 'sk-learn'",
        '{"num_tokens": 12, "tokens_per_s": 3.5, "eos_token": "<|end|>"}',
        "the task-list of the risk-averse desk-and-disk hf_overrides of AKIA",
        "ratio 10:30, user@host, http://host/a@b:c",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact.redact(text) == text


def test_a_secret_is_masked_before_a_long_value_is_cut() -> None:
    assert shown("x" * 180 + " hf_" + "a1" * 20) == "'" + "x" * 180 + " ***'"


def test_a_short_value_of_a_variable_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "EMPTY")
    assert redact.redact("EMPTY responses") == "EMPTY responses"


@pytest.mark.parametrize(
    ("block", "way_out"),
    [
        (
            "judge: {engine: {openai: {api_key: abc}}}",
            "Export OPENAI_API_KEY, or name another variable in openai.api_key_env",
        ),
        ("engine: {vllm: {hf_token: abc}}", "Export HF_TOKEN and take it out"),
        ("training: {sft: {hub_token: abc}}", "Export HF_TOKEN and take it out"),
        ("tracking: {wandb_api_key: 12345678}", "Export WANDB_API_KEY and take it out"),
        ("training: {dpo: {beta: hf_" + 30 * "a" + "}}", "Export HF_TOKEN and take it out"),
        ("engine: {vllm: {hf_token: true}}", "sign in with HF_TOKEN in the environment"),
        (
            "judge: {engine: {name: openai, openai: {base_url: x, model: m, api_key_env: my key}}}",
            "api_key_env: OPENAI_API_KEY",
        ),
    ],
)
def test_a_key_in_a_recipe_is_an_error_that_names_the_variable(tmp_path: Path, block: str, way_out: str) -> None:
    (tmp_path / "run.yaml").write_text(BASE + block)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "run.yaml")
    assert "run.yaml:4: " in str(caught.value)
    assert way_out in str(caught.value)
    assert "abc" not in str(caught.value)


def test_a_secret_in_an_edited_run_is_refused(tmp_path: Path) -> None:
    from selfreward.recipe.recipe import edited_recipe

    (tmp_path / "run.yaml").write_text(BASE)
    stored = load_recipe(tmp_path / "run.yaml").model_dump(mode="json")
    with pytest.raises(RecipeError, match=r"command line: tracking.project: what looks like a key"):
        edited_recipe(stored, ["tracking.project=hf_" + 30 * "a"])


@contextmanager
def redacted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Redacted standard streams, and what arrives on standard error behind them."""
    buffer = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setenv("MY_TOKEN", "canary-of-the-mine")
        for name in ("stdout", "stderr"):
            patch.setattr(sys, f"__{name}__", None)
            patch.setattr(sys, name, io.TextIOWrapper(buffer, encoding="utf-8", write_through=True))
        redact.install()
        yield lambda: buffer.getvalue().decode()


def test_a_secret_that_is_written_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    with redacted(monkeypatch) as written:
        for part in ("it is canary-", "of-the", "-mine.\nand ", "can"):
            sys.stderr.write(part)
        assert written() == "it is ***.\n"
        sys.stderr.flush()
        assert written() == "it is ***.\nand can"
        sys.stderr.writelines(["\n", "canary-of-", "the-mine\n"])
        assert written() == "it is ***.\nand can\n***\n"


def test_threads_write_lines_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with redacted(monkeypatch) as written:
        sys.stderr.write("first canary-")
        thread = threading.Thread(target=lambda: print("second canary-of-the-mine", file=sys.stderr))
        thread.start()
        thread.join()
        sys.stderr.write("of-the-mine\n")
        assert written() == "second ***\nfirst ***\n"


def test_installing_twice_wraps_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with redacted(monkeypatch):
        wrapped = sys.stderr
        redact.install()
        assert sys.stderr is wrapped
        assert (wrapped.encoding, wrapped.isatty(), wrapped.closed) == ("utf-8", False, False)


LIBRARIES = """
import logging, os, subprocess, sys, warnings
from selfreward.runtime import redact
redact.install()
from selfreward.runtime.progress import console
from rich.console import Console
from tqdm import tqdm
key = os.environ["MY_API_KEY"]
logging.basicConfig(level="INFO")
logging.info("signed in with %s", key)
logging.getLogger("lib").exception("no", exc_info=ValueError(key))
warnings.warn(f"the key {key}")
console.print("a long line " * 5, key, "and " + key)
Console(width=200).print({"key": key})
print(key, end=""); print(key, file=sys.stderr, flush=True)
for _ in tqdm(range(2), desc=key): pass
subprocess.run(["echo", "a child's words"], stdout=sys.stderr, check=True)
assert sys.stderr.fileno() == 2 and not sys.stdout.isatty() and sys.stdout.encoding.lower() == "utf-8"
class Late:
    def __del__(self, sys=sys, key=key): sys.stderr.write(f"at the very end {key}\\n")
late = Late()
def connect(token): raise KeyError(token)
try:
    connect(key)
except KeyError as error:
    raise RuntimeError(f"password={key[:3]}0") from error
"""


def test_whatever_library_writes_it() -> None:
    key = "canary/with-a+strange&look" + "0123456789" * 6
    environment = {**os.environ, "MY_API_KEY": key, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", LIBRARIES]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 1
    assert leaked(result.stdout + result.stderr, key) == []
    assert "INFO:root:signed in with ***\n" in result.stderr
    assert "RuntimeError: password=***\n" in result.stderr
    assert "KeyError: '***'\n" in result.stderr
    assert "a child's words\n" in result.stderr
    assert "UserWarning: the key ***" in result.stderr
    assert result.stdout == "{'key': '***'}\n***"


EXTENSION = """
import logging, os, warnings
from selfreward.engines.scripted import ScriptedEngine

def best_worst(*arguments):
    return None

class Leaky(ScriptedEngine):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        logging.getLogger("leaky").warning("signing in with %s", os.environ["LEAKY_API_KEY"])
        warnings.warn("http://me:" + os.environ["LEAKY_API_KEY"] + "@host")
        print("token", os.environ["LEAKY_API_KEY"])

    @staticmethod
    def script(model, text, seed):
        error = {"ValueError": ValueError, "KeyError": KeyError}[os.environ["LEAKY_ERROR"]]
        raise error("no access with " + os.environ["LEAKY_API_KEY"])
"""


def selfreward(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}", **variables}
    command = [sys.executable, "-m", "selfreward", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)


def written_files(folder: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("error", ["ValueError", "KeyError"])
def test_a_run_that_fails_with_a_key_in_its_error(tmp_path: Path, error: str) -> None:
    (tmp_path / "leaky.py").write_text(EXTENSION)
    (tmp_path / "run.yaml").write_text(BASE + "engine: {name: 'leaky:Leaky'}\n")
    for seed in range(2):
        value, core = (known, plain)[seed](random.Random(seed))
        arguments = ("run", "run.yaml", f"run_dir={tmp_path}/runs", f"name=run-{seed}")
        result = selfreward(tmp_path, *arguments, LEAKY_API_KEY=value, LEAKY_ERROR=error)
        assert result.returncode == 1
        assert "no access with ***" in result.stderr
        files = written_files(tmp_path / "runs" / f"run-{seed}")
        assert '"Leaky"' in files or "leaky:Leaky" in files
        assert leaked(result.stdout + result.stderr + files, core) == []
    assert [run / "environment.json" for run in (tmp_path / "runs").iterdir() if (run / "environment.json").is_file()]


@pytest.mark.parametrize("number", range(8))
def test_a_command_that_is_given_a_key(tmp_path: Path, number: int) -> None:
    rng = random.Random(number)
    value, core = known(rng, "anthropic" if number > 3 else "")
    shell = " ".join(value.split())
    texts = [at_credential(rng, value), anywhere(rng, value), f"{{api_key: {shell}: [", ""]
    (tmp_path / "run.yaml").write_text(BASE + texts[min(number, 3)])
    commands = {
        4: ["check", "run.yaml", f"engine.vllm.hf_token={shell}"],
        5: ["run", "run.yaml", f"name={shell}"],
        6: ["check", f"{shell}.yaml"],
        7: ["status", "run.yaml", shell],
    }
    result = selfreward(tmp_path, *commands.get(number, ["check", "run.yaml"]), MY_TOKEN=value)
    assert result.returncode == (0 if number == 3 else 1)
    assert leaked(result.stdout + result.stderr, core) == []
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
