"""Recipes of judges: what an ensemble shares, and what is refused before anything runs."""

import json
from pathlib import Path

import pytest

import selfreward
from selfreward.estimates.disk import estimate
from selfreward.judges import Panel
from selfreward.preflight import preflight
from selfreward.recipe.loader import RecipeError
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.text.prompt_template import Template

ADDITIVE, YES_NO = "{name: additive, template: judge.txt}", "{name: yes_no, votes: 1, temperature: 0.5}"


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_random_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Name one bird."}\n')
    row = {"prompt": "Name one bird.", "response": "owl", "judgement": "Score: 4"}
    (tmp_path / "graded.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "judge.txt").write_text("Review this.\n{prompt}\n{response}")
    (tmp_path / "criteria.yaml").write_text("- {name: true, description: It is true.}\n".replace("true,", "right,"))
    (tmp_path / "run.yaml").write_text(f"""
name: test
run_dir: {tmp_path}/runs
model: {{path: {tiny_random_model}, dtype: float32}}
prompts: {{path: prompts.jsonl}}
engine: {{name: "scripts:Numbers"}}
""")
    return tmp_path / "run.yaml"


def test_members_have_what_they_do_not_say_themselves_from_the_ensemble(recipe_file: Path) -> None:
    shared = ["judge.votes=7", "judge.temperature=0.1", "judge.max_score=9", "judge.min_parse_rate=0.9"]
    members = f"judge.members=[{ADDITIVE}, {YES_NO}]"
    judge = selfreward.load_recipe(recipe_file, ["judge.name=ensemble", *shared, members]).judge
    first, second = judge.members
    assert (first.votes, first.temperature, first.max_score, first.min_parse_rate) == (7, 0.1, 9, 0.9)
    assert (second.votes, second.temperature, second.max_score) == (1, 0.5, 9)
    server = ["judge.engine.name=openai", "judge.engine.openai.base_url=http://localhost/v1"]
    server += ["judge.engine.openai.model=m"]
    external = selfreward.load_recipe(recipe_file, ["judge.name=ensemble", *server, members]).judge
    assert not any(seat.is_policy for seat in Panel(external).judges)


SERVER = ["judge.engine.name=openai", "judge.engine.openai.base_url=http://localhost/v1", "judge.engine.openai.model=m"]
SEED = ["seed_data={ift: graded.jsonl, eft: graded.jsonl}", "training.rehearsal=1.0", "training.dpo.loss_type=[sft]"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["judge.name=ensemble"], "there are 0 members. An ensemble has members"),
        (["judge.name=ensemble", "judge.members=[{name: ensemble}]"], "an ensemble can't be a member of one"),
        (["judge.name=ensemble", "judge.template=judge.txt", f"judge.members=[{YES_NO}]"], "give each of its members"),
        (["judge.name=rubric"], "criteria is missing. Name the file"),
        (["judge.criteria=criteria.yaml"], "criteria are for rubric and pairwise, and name is additive"),
        (["judge.pairwise.matches=swiss"], "pairwise is for the judge pairwise, and name is additive"),
        (["judge.name=reward_model"], "the judge reward_model and the engine classifier go together"),
        (["judge.name=expected_score", *SERVER], "a server can't tell how a begun answer goes on"),
        (["selection.name=correct_incorrect"], "correct_incorrect and pass_score go together"),
        (["selection.name=revision"], "there are no responses.principles to revise by"),
        (["meta={}", "judge.votes=1"], "Use additive with at least 2 votes"),
        (["judge.name=verifier", *SEED], "judging data teaches verifier nothing. Set training.rehearsal to 0"),
        (["training.consistency=pair", *SERVER], "additive judges the same whatever M_t is"),
        (["engine.name=classifier"], "engine.name is classifier, which generates nothing"),
    ],
)
def test_what_nothing_would_come_of_is_refused_with_the_recipe(
    recipe_file: Path, settings: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        selfreward.load_recipe(recipe_file, settings)


def test_templates_and_labels_are_looked_at_before_a_run_begins(recipe_file: Path) -> None:
    with pytest.raises(ValueError, match=r"template .*judge.txt has no \{first\} and no \{second\}"):
        preflight(selfreward.load_recipe(recipe_file, ["meta={template: judge.txt}"]))
    labelled = ["evaluation.judging=graded.jsonl", "judge.max_score=3"]
    with pytest.raises(ValueError, match="judging data, example 1: no label, out_of_range in 'Score: 4'"):
        preflight(selfreward.load_recipe(recipe_file, labelled))


def test_a_place_that_may_be_empty_has_a_paragraph_of_its_own(tmp_path: Path) -> None:
    """Left out with its paragraph, it would take the response along."""
    path = tmp_path / "judge.txt"
    path.write_text("{prompt}\nReference: {reference}\nAnswer: {response}\n\nScore it.")
    with pytest.raises(ValueError, match="in one paragraph, which is left out where there is no text"):
        Template.read(path, ("prompt", "response", "reference"))
    path.write_text("{prompt}\n\nReference: {reference}\n\nAnswer: {response}\n\nScore it.")
    [message] = Template.read(path, ("prompt", "response", "reference")).fill(prompt="p", response="r", reference=None)
    assert message["content"] == "p\n\nAnswer: r\n\nScore it."


@pytest.mark.parametrize(
    ("settings", "stage", "texts"),
    [
        ([], "judgements", 4 * 3),
        (["judge.name=pairwise"], "judgements", 4 * 3 * 3),
        (["judge.name=pairwise", "judge.pairwise.matches=swiss", "judge.pairwise.rounds=2"], "judgements", 2 * 4 * 3),
        (["judge.name=rubric", "judge.criteria=criteria.yaml"], "judgements", 4 * 3),
        (["responses.principles=judge.txt", "responses.revisions=2"], "judgements", 8 * 3),
        (["selection.anchored=true"], "judgements", 8 * 3),
        (["judge.reference=answer"], "judgements", 4 * 3 + 1),
    ],
)
def test_the_disk_is_asked_for_all_that_a_judge_may_write(
    recipe_file: Path, settings: list[str], stage: str, texts: int
) -> None:
    run = Run.create(selfreward.load_recipe(recipe_file, [*settings, "iterations=2"]))
    run.begin(Step("prompts", 2))
    run.commit(Step("prompts", 2), {"prompts": 10})
    each = 2 * (run.recipe.judge.max_tokens * 6 + 700)
    assert estimate(run, Step(stage, 2)) == 10 * texts * each
