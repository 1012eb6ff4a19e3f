"""Judges and engines of a user's own, as the documentation has them; and a built-in judge: one file and one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import selfreward
from selfreward.cli import app
from selfreward.judges import panel_of
from selfreward.preflight import describe
from selfreward.recipe import reference_docs, registry
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.recipe.loader import RecipeError
from selfreward.recipe.recipe import Recipe
from selfreward.records import Judgement
from selfreward.runs.run import Run

ROOT = Path(__file__).parents[1]


def example(heading: str) -> str:
    """The code under a heading of docs/extend.md."""
    page = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", page, flags=re.MULTILINE)
    [text] = [part for part in section if part.startswith(f"{heading}\n")]
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return str(code)


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_random_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_judge.py").write_text(example("Judge"))
    (tmp_path / "my_engine.py").write_text(example("Engine"))
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "Name {n} birds."}}\n' for n in range(3)))
    (tmp_path / "run.yaml").write_text(f"""
name: test
run_dir: {tmp_path}/runs
iterations: 1
model: {{path: {tiny_random_model}, dtype: float32}}
prompts: {{path: prompts.jsonl}}
responses: {{n: 6}}
judge: {{name: "my_judge:Pass", votes: 2, options: {{word: birds}}}}
engine: {{name: "my_engine:Parrot", max_in_flight: 1}}
training:
  dpo: {{max_steps: 1, per_device_train_batch_size: 2, gradient_checkpointing: false}}
evaluation: {{prompts: prompts.jsonl, n: 1, canaries: 1}}
""")
    yield tmp_path / "run.yaml"
    for name in ("my_judge", "my_engine", "pass_judge"):
        sys.modules.pop(name, None)


def command(*words: str) -> str:
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_judge_and_the_engine_of_the_documentation_run(recipe_file: Path) -> None:
    said = command("check", recipe_file)
    assert "my_judge:Pass by M_t itself, 2 votes: 36 judgements an iteration" in said
    for line in ("RUNNING my_judge:Pass (judge.name)", "RUNNING my_engine:Parrot (engine.name)"):
        assert line in said
    run = selfreward.run(selfreward.load_recipe(recipe_file))
    judgements = run.records("judgements", 1, Judgement)
    assert {judgement.score for judgement in judgements} == {0.0, 1.0}
    assert len(judgements) == 36
    assert "canary_accepted" in run.stage("evaluate", 1).summary
    command("verify", run.path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["judge.options={words: 1}"], "judge.options.words: extra inputs are not permitted.* Options of .*: word"),
        (["judge.options={word: 1}"], "judge.options.word: input should be a valid string, and the value is 1"),
        (["judge.name=additive"], "additive has no settings of its own. Take options out"),
        (["judge.verifier.function=regex"], "verifier is for the judge verifier, and name is my_judge:Pass"),
        (
            ["judge.name=my_judge:Mute"],
            r"judge 'my_judge:Mute': it has no judge. Its class needs judge\(self, engine, ",
        ),
        (
            ["engine.name=my_engine:Deaf"],
            "the class has no generate, logprobs, sleep. The policy's engine needs generate",
        ),
        (
            ["judge.name=yes_no", "judge.votes=1", "judge.options=null"],
            "yes_no and engine.name is my_engine:Parrot, which can't tell",
        ),
        (["judge.engine.name=my_engine:Deaf"], "the class has no generate. An engine of the judge my_judge:Pass needs"),
    ],
)
def test_what_cannot_work_is_refused_with_the_recipe(recipe_file: Path, overrides: list[str], message: str) -> None:
    with (recipe_file.parent / "my_judge.py").open("a") as file:
        file.write("\n\nclass Mute:\n    def scores(self, judgements):\n        return {}\n")
    with (recipe_file.parent / "my_engine.py").open("a") as file:
        file.write("\n\nclass Deaf:\n    reload, close = Parrot.reload, Parrot.close\n")
    with pytest.raises(RecipeError, match=message):
        selfreward.load_recipe(recipe_file, overrides)


def test_a_stored_recipe_needs_no_module_of_the_users(recipe_file: Path) -> None:
    run = Run.create(selfreward.load_recipe(recipe_file))
    for name in ("my_judge", "my_engine"):
        sys.modules.pop(name)
        (recipe_file.parent / f"{name}.py").unlink()
    assert Run.open(run.path).recipe.judge.options == {"word": "birds"}


def test_options_that_are_not_given_are_not_stored() -> None:
    assert "options" not in JudgeSettings().model_dump()
    assert (
        "options"
        in JudgeSettings.model_validate({"name": "additive", "options": {}}, context={"stored": True}).model_dump()
    )


# What a built-in judge is: one file, here with a template beside it ...
BUILT_IN = '''
import asyncio
import os
import signal
from pathlib import Path

from pydantic import BaseModel

from selfreward.engines import SamplingParams
from selfreward.engines.model_requests import Requests
from selfreward.judges import Judge, JudgeFacts, make_judgement
from selfreward.records import derive_seed
from selfreward.text.prompt_template import Template


class PassOptions(BaseModel):
    """Settings of the judge that passes."""

    word: str = "facts"


class PassJudge(Judge):
    """Asks once whether a response passes."""

    uses = ()
    Options = PassOptions

    def __init__(self, settings):
        super().__init__(settings)
        path = settings.template or Path(__file__).with_name("pass.txt")
        self._template = Template.read(path, ("prompt", "response"))

    @classmethod
    def facts(cls, settings):
        return JudgeFacts(lowest=-1.0, highest=1.0, makes_data=False)

    @classmethod
    def requests(cls, settings, num):
        return [Requests(num, 7, num, answers=1, instructions=1)]

    async def judge(self, engine, prompt, responses, seed):
        return [await self._one(engine, prompt, response, derive_seed(seed, response.id)) for response in responses]

    async def _one(self, engine, prompt, response, seed):
        await asyncio.sleep(0.05 * response.k)
        # Held-out responses are of no model.
        if response.model and Path("kill").exists():
            left = int(Path("kill").read_text())
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            Path("kill").write_text(str(left - 1))
        messages = self._template.fill(prompt=prompt.text, response=response.text)
        [said] = await engine.generate(messages, SamplingParams.of(self.settings), [seed])
        score = 1.0 if "yes" in said.text else -1.0
        return make_judgement(self.settings.name, [response], 0, seed, said, engine.model, score=score)
'''
# ... and one line of the registry.
LINE = "pass_judge:PassJudge"
OVERRIDES = ("judge={name: pass, votes: 1, options: {word: birds}}",)


@pytest.fixture
def built_in(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (recipe_file.parent / "pass_judge.py").write_text(BUILT_IN)
    (recipe_file.parent / "pass.txt").write_text("Review.\n\n{prompt}\n\n<response>\n{response}\n</response>")
    monkeypatch.setitem(registry.JUDGES, "pass", LINE)
    return recipe_file


def killed(recipe_file: Path, after: int) -> None:
    """Runs the recipe in a process that ends without a word after so many judgements."""
    (recipe_file.parent / "kill").write_text(str(after))
    code = f"""
import sys
sys.path[:0] = {[str(ROOT), str(recipe_file.parent)]!r}
from selfreward.cli import app
from selfreward.recipe import registry
registry.JUDGES["pass"] = {LINE!r}
app(["run", {str(recipe_file)!r}, {OVERRIDES[0]!r}])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == -9, result.stderr
    (recipe_file.parent / "kill").unlink()


def test_a_built_in_judge_is_one_file_and_one_line(built_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = selfreward.load_recipe(built_in, OVERRIDES)
    assert "judge      pass by M_t itself, 1 votes: 18 judgements an iteration" in command(
        "check", built_in, *OVERRIDES
    )
    assert "RUNNING pass_judge" not in describe(recipe)
    assert (panel_of(recipe).lowest, panel_of(recipe).highest) == (-1.0, 1.0)
    stages = {stage["stage"]: stage for stage in json.loads(command("plan", built_in, *OVERRIDES, "--json"))["stages"]}
    # Half of 7 tokens for each of 18 responses; and the most bytes of as many records.
    assert (stages["judgements"]["written"], stages["judgements"]["disk"]) == (63, 18 * 2 * (7 * 6 + 700))
    assert "## `judge.options of pass`" in reference_docs.markdown(Recipe)

    killed(built_in, after=7)
    path = recipe.run_dir / recipe.name
    assert not Run.open(path).stage("judgements", 1).done
    monkeypatch.delitem(registry.JUDGES, "pass")
    for words in (["check", built_in, *OVERRIDES], ["plan", built_in, *OVERRIDES], ["run", built_in, *OVERRIDES]):
        refused = CliRunner().invoke(app, [*map(str, words)])
        assert refused.exit_code != 0
        assert "no judge is called 'pass'" in refused.output + str(refused.exception)
    assert CliRunner().invoke(app, ["resume", str(path)]).exit_code != 0
    monkeypatch.setitem(registry.JUDGES, "pass", LINE)

    command("resume", path)
    run = Run.open(path)
    summary = run.stage("judgements", 1).summary
    assert (summary["judgements"], summary["parse_rate"]) == (18, 1.0)
    assert summary["resumed"] == 7
    judgements = run.records("judgements", 1, Judgement)
    assert {judgement.judge for judgement in judgements} == {"pass"}
    assert {judgement.score for judgement in judgements} == {-1.0, 1.0}
    assert "canary_accepted" in run.stage("evaluate", 1).summary
    command("verify", path)
    [pair, *_] = (path / "iter_1" / "pairs" / "records.jsonl").read_text().splitlines()
    assert "judge      pass" in command("trace", path, json.loads(pair)["id"])
    # Without its line the records are still there and whole; their scores can't be counted again, which is told.
    monkeypatch.delitem(registry.JUDGES, "pass")
    assert "no judge is called 'pass'" in command("verify", path)
    assert "judge      pass" in command("trace", path, json.loads(pair)["id"])
    assert "judge.options of pass" not in reference_docs.markdown(Recipe)
