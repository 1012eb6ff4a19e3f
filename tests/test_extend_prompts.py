"""Sources, filters, selectors, verifiers and scorers of a user's own, as the documentation has them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import selfreward
from selfreward.cli import app
from selfreward.recipe import reference_docs, registry
from selfreward.recipe.loader import RecipeError
from selfreward.recipe.prompt_settings import GenerationSettings, PromptSettings
from selfreward.recipe.recipe import Recipe
from selfreward.records import Judgement, Measurement, PreferencePair, Prompt, Removal
from selfreward.runs.run import Run
from selfreward.runs.stages import Step

ROOT = Path(__file__).parents[1]
FILES = {
    "my_prompts": ("Prompt source", "Filter"),
    "my_pairs": ("Selector",),
    "my_checks": ("Verifier", "Scorer"),
}


def example(heading: str) -> str:
    """The code under a heading of docs/extend.md."""
    sections = re.split(r"^## ", (ROOT / "docs" / "extend.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    [text] = [section for section in sections if section.startswith(f"{heading}\n")]
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return str(code)


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_random_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A recipe that names each example."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, headings in FILES.items():
        # Other tests have modules of these names.
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text("\n\n".join(map(example, headings)))
    (tmp_path / "judge.txt").write_text("Review this answer.\nTask: {prompt}\nAnswer: {response}")
    (tmp_path / "heldout.jsonl").write_text("".join(f'{{"prompt": "Name {n} foxes."}}\n' for n in range(3)))
    (tmp_path / "run.yaml").write_text(f"""
name: test
run_dir: {tmp_path}/runs
iterations: 1
model: {{path: {tiny_random_model}, dtype: float32}}
prompts:
  source: "my_prompts:Sums"
  num: 8
  options: {{largest: 4}}
  filters: {{use: ["my_prompts:Doubles", empty_output]}}
responses: {{n: 4}}
judge: {{name: verifier, votes: 1, verifier: {{function: "my_checks:is_brief", options: {{most: 2}}}}}}
selection: {{name: "my_pairs:best_failing", pass_score: 1.0}}
training: {{dpo: {{max_steps: 1, per_device_train_batch_size: 2, gradient_checkpointing: false}}}}
engine: {{name: "scripts:Numbers"}}
evaluation: {{prompts: heldout.jsonl, scorer: "my_checks:overlap", n: 1, canaries: 0}}
""")
    yield tmp_path / "run.yaml"
    for name in (*FILES, "counting"):
        sys.modules.pop(name, None)


def command(*words: object) -> str:
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code == 0, f"{result.output} {result.exception!r}"
    return result.output


def test_the_parts_of_the_documentation_run(recipe_file: Path) -> None:
    # Without an output there is nothing for a filter of instances to see.
    assert "prompts    8 an iteration, from my_prompts:Sums, filtered by my_prompts:Doubles\n" in command(
        "check", recipe_file
    )
    assert json.loads(command("plan", recipe_file, "--json"))
    run = selfreward.run(selfreward.load_recipe(recipe_file))
    prompts = run.records("prompts", 1, Prompt)
    assert len(prompts) == 8
    assert all(re.fullmatch(r"What is [0-4] plus [0-4]\?", prompt.text) and prompt.reference for prompt in prompts)
    assert {removal.filter for removal in run.records("removed_prompts", 1, Removal)} == {"my_prompts:Doubles"}
    assert {judgement.score for judgement in run.records("judgements", 1, Judgement)} <= {1.0, 2 / 3, 2 / 4, 2 / 5}
    pairs = run.records("pairs", 1, PreferencePair)
    assert all(pair.score_chosen == 1.0 > pair.score_rejected for pair in pairs)
    assert {measurement.gold for measurement in run.records("measurements", 1, Measurement)} == {0.0}
    settings = run.reads(Step("prompts", 1))["settings"]
    # It asks no model, so none decides what it gives.
    assert settings["prompts.options"] == {"largest": 4}
    assert not {"engine.name", "model.path"} & settings.keys()
    command("verify", run.path)


def test_a_class_that_says_nothing_of_itself_is_taken_to_ask_a_model(recipe_file: Path) -> None:
    with (recipe_file.parent / "my_prompts.py").open("a") as file:
        file.write("\n\nclass Bare:\n    def check(self): ...\n    def tasks(self, context): return []\n")
    prompts = selfreward.load_recipe(recipe_file, ["prompts={source: 'my_prompts:Bare', options: null}"]).prompts
    assert (prompts.needs_model, prompts.reads_past, prompts.writes, prompts.reads_difficulty) == (
        True,
        True,
        True,
        False,
    )
    assert prompts.source_class(prompts).seeds() == []
    said = command("check", recipe_file, "prompts={source: 'my_prompts:Bare', options: null}")
    # Whether it shows anything to the filters nobody knows.
    assert "from my_prompts:Bare by M_t\n" in said


WRONG = """

class NoTasks:
    def check(self): ...


class NoContext:
    def check(self): ...
    def tasks(self): return []


class NoHeldOut(Doubles):
    def __init__(self, settings): ...


class NoLook:
    of = "text"
    def prepare(self, tasks): ...
    def add(self, task): ...


class Sideways(Doubles):
    of = "side"


def one(a, *, b): ...
"""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["prompts.source=my_prompts:NoTasks"],
            r"has no tasks\. Its class needs check\(self\), tasks\(self, context\)",
        ),
        (["prompts.source=my_prompts:NoContext"], r"its tasks can't be called with \(self, context\)"),
        (["prompts.source=my_prompts:one"], "it is a function, and a class is wanted"),
        (["prompts.source=my_prompts:Nothing"], "the module my_prompts has no 'Nothing'"),
        (["prompts.options={largst: 3}"], "prompts.options.largst: unknown key. Did you mean largest"),
        (["prompts.options={largest: 1}"], "prompts.options.largest: input should be greater than or equal to 2"),
        (["prompts.source=dataset"], "prompts.options: dataset has no settings of its own. Take options out"),
        (["prompts.num=null"], "num is missing: say how many prompts"),
        (["prompts.filters.use=['my_prompts:NoLook']"], r"'my_prompts:NoLook': it has no look\. .* look\(self, t"),
        (["prompts.filters.use=['my_prompts:NoHeldOut']"], r"its __init__ can't be called with \(self, settings, h"),
        (
            ["prompts.filters.use=['my_prompts:Sideways']"],
            "of is 'side', and a filter looks at instruction or instance or",
        ),
        (["prompts.filters.use=[lenght]"], "no filter is called 'lenght'. Did you mean length"),
        (
            ["prompts.filters.use=[toxicity]", "prompts.filters.toxicity.function=my_prompts:one"],
            r"toxicity function 'my_prompts:one' can't be called with \(text\)",
        ),
        (["prompts.filters.use=[embedding]"], "embedding.model is missing: name the model that embeds"),
        (["selection.name=my_prompts:one"], r"can't be called with \(prompt, responses, scores, rules\)"),
        (["selection.pass_score=null"], "my_pairs:best_failing and pass_score go together"),
        (["selection.name=best_worst"], "correct_incorrect and pass_score go together"),
        (["evaluation.scorer=my_prompts:one"], r"scorer 'my_prompts:one' can't be called with \(prompt, response\)"),
        (["evaluation.scorer=regex"], "missing a required argument: 'pattern'"),
        (["judge.verifier.options={least: 3}"], "judge.verifier.options: .*Its options: most"),
        (["judge.verifier.function=my_prompts:one"], "judge.verifier.options: too many positional arguments"),
    ],
)
def test_what_cannot_work_is_refused_with_the_recipe(recipe_file: Path, overrides: list[str], message: str) -> None:
    with (recipe_file.parent / "my_prompts.py").open("a") as file:
        file.write(WRONG)
    with pytest.raises(RecipeError, match=message):
        selfreward.load_recipe(recipe_file, overrides)


def test_a_stored_recipe_needs_no_module_of_the_users(recipe_file: Path) -> None:
    run = Run.create(selfreward.load_recipe(recipe_file))
    for name in FILES:
        sys.modules.pop(name, None)
        (recipe_file.parent / f"{name}.py").unlink()
    recipe = Run.open(run.path).recipe
    assert recipe.prompts.options == {"largest": 4}
    assert recipe.prompts.needs_model
    command("status", run.path)


def test_options_that_are_not_given_are_not_stored() -> None:
    assert "options" not in PromptSettings().model_dump()


def test_a_verifier_is_a_scorer_too(recipe_file: Path) -> None:
    recipe = selfreward.load_recipe(recipe_file, ["evaluation.scorer=exact_match"])
    assert recipe.evaluation.scorer == "exact_match"


def test_a_mixture_says_which_filters_see_which_part(recipe_file: Path) -> None:
    parts = "[{source: dataset, path: heldout.jsonl}, {source: self_instruct, path: heldout.jsonl, "
    parts += "self_instruct: {human: 2, instances: 0}}]"
    mixture = f"prompts={{source: mixture, num: 4, options: null, filters: {{use: null}}, parts: {parts}}}"
    said = command("check", recipe_file, mixture)
    assert "from dataset, self_instruct by M_t, filtered by length, keywords, first_character, rouge_l\n" in said


# What a built-in source is: one file ...
BUILT_IN = '''
import os
import signal
from pathlib import Path

from pydantic import BaseModel

from selfreward.engines import SamplingParams
from selfreward.prompts.base import CardText, DataCommand, PromptSource
from selfreward.prompts.filters.base import KINDS
from selfreward.records import Task


class CountOptions(BaseModel):
    """Settings of the source that counts."""

    animal: str = "fox"


class CountingSource(PromptSource):
    """Has the model write how many there are."""

    Options = CountOptions
    command = DataCommand("count", "Animals, counted.")
    card = CardText("Animals, counted by a model.")

    @classmethod
    def filtered(cls, settings):
        return KINDS

    @classmethod
    def requests(cls, settings, num):
        return [each.times(2) for each in super().requests(settings, num)]

    def check(self):
        pass

    def tasks(self, context):
        engine, params = context.engine_of(self.settings), SamplingParams.of(self.settings.generation)

        async def one(number):
            if Path("kill").exists() and (left := int(Path("kill").read_text())) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            elif Path("kill").exists():
                Path("kill").write_text(str(left - 1))
            asked = [{"role": "user", "content": f"Count {self.options.animal} {number}."}]
            [said] = await engine.generate(asked, params, [context.derive("count", number)])
            return Task.make(f"Is {len(said.text.split())} more than {number}?", "counting", output="yes")

        start = len(context.earlier)
        return context.filters.filter(context.run_concurrently("count", range(start, start + context.wanted), one))
'''
# ... and one line of the registry.
LINE = "counting:CountingSource"
OVERRIDES = (
    "prompts={source: counting, num: 6, options: {animal: owl}, filters: {use: [length]}}",
    "selection={name: best_worst, pass_score: null}",
    "iterations=2",
    "engine.max_in_flight=1",
)


def killed(recipe_file: Path, after: int) -> None:
    """Runs the recipe in a process that ends without a word after so many requests for prompts."""
    (recipe_file.parent / "kill").write_text(str(after))
    code = f"""
import sys
sys.path[:0] = {[str(ROOT), str(ROOT / "tests"), str(recipe_file.parent)]!r}
from selfreward.cli import app
from selfreward.recipe import registry
registry.PROMPT_SOURCES["counting"] = {LINE!r}
app(["run", {str(recipe_file)!r}, *{[*OVERRIDES]!r}])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == -9, result.stderr
    (recipe_file.parent / "kill").unlink()


def tokens_planned(*words: object) -> int:
    """The tokens that the plan has for the prompts of the first iteration."""
    stages = json.loads(command("plan", *words, "--json"))["stages"]
    return int(next(each["written"] for each in stages if (each["stage"], each["iteration"]) == ("prompts", 1)))


def test_a_built_in_source_is_one_file_and_one_line(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (recipe_file.parent / "counting.py").write_text(BUILT_IN)
    judge = "judge: {template: judge.txt, votes: 1}"
    recipe_file.write_text(re.sub(r"^judge: .*$", judge, recipe_file.read_text(), flags=re.MULTILINE))
    monkeypatch.setitem(registry.PROMPT_SOURCES, "counting", LINE)
    said = command("check", recipe_file, *OVERRIDES)
    assert "prompts    6 an iteration, from counting by M_t, filtered by length\n" in said
    assert "RUNNING counting" not in said
    bare = "prompts={source: 'my_prompts:Sums', options: {largest: 9}}"
    # Twice the five requests of a class that says nothing, each taken to be half as long as it may be; and none where
    # no model is asked.
    assert tokens_planned(recipe_file, *OVERRIDES) == 5 * 6 * GenerationSettings().max_tokens
    assert tokens_planned(recipe_file, bare) == 0
    reference = reference_docs.markdown(Recipe)
    assert "## `prompts.options of counting`" in reference
    assert "curriculum, counting, or MODULE:CLASS" in reference

    killed(recipe_file, after=8)
    path = recipe_file.parent / "runs" / "test"
    assert (path / "iter_1" / "prompts" / "stage.json").exists()
    assert not (path / "iter_2" / "prompts" / "stage.json").exists()
    monkeypatch.delitem(registry.PROMPT_SOURCES, "counting")
    given = [str(recipe_file), *OVERRIDES]
    for words in (["check", *given], ["plan", *given], ["run", *given], ["resume", str(path)]):
        refused = CliRunner().invoke(app, words)
        assert refused.exit_code != 0
        assert "no prompt source is called 'counting'" in refused.output + str(refused.exception)
    assert "counting" not in reference_docs.markdown(Recipe)
    monkeypatch.setitem(registry.PROMPT_SOURCES, "counting", LINE)

    command("resume", path)
    run = Run.open(path)
    assert run.stage("prompts", 2).summary["resumed"] >= 1
    assert {prompt.source for t in (1, 2) for prompt in run.records("prompts", t, Prompt)} == {"counting"}
    command("verify", path)
    pair = run.records("pairs", 1, PreferencePair)[0]
    assert "more than" in command("trace", path, pair.id)
