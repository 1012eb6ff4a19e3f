"""The curriculum: what models find informative is asked again or evolved, beside fresh rows."""

import json

import numpy as np
import pytest
from source_contexts import Model, settings, source_context

import selfreward
from selfreward.prompts.curriculum import CurriculumSource, informative
from selfreward.recipe.prompt_settings import CurriculumSettings, PromptSettings
from selfreward.records import Difficulty, Judgement, Prompt, Removal, Response, Task
from selfreward.report.verify import verify
from selfreward.runs.run import Run
from selfreward.stages.prompts import difficulty

ROWS = [{"prompt": f"Row {place}."} for place in range(8)]
TASKS = [Task.make(row["prompt"], "rows.jsonl") for row in ROWS]


def tried(place, iteration, spread, solved=0.5, num=4):
    return Difficulty(TASKS[place].id, iteration, num, None if spread is None else 2.0, spread, solved)


def test_what_is_informative():
    records = [
        tried(0, 1, 0.5),
        tried(1, 1, 0.24),  # too little spread
        tried(2, 1, 1.5),
        tried(3, 1, 0.9, solved=1.0),
        tried(4, 1, 0.9, solved=0.0),
        tried(5, 1, 0.7, solved=None),  # no score is known to be the best
        tried(6, 1, None, solved=None, num=0),  # nothing was scored
        tried(7, 1, 0.25),
    ]
    found = informative(TASKS, records, CurriculumSettings(solved=5.0))
    assert [task.instruction for task in found] == ["Row 2.", "Row 5.", "Row 0.", "Row 7."]
    # Where no score was named that solves a prompt, no response may have reached the judge's best one.
    found = informative(TASKS, records, CurriculumSettings())
    assert [task.instruction for task in found] == ["Row 2.", "Row 4.", "Row 5.", "Row 0.", "Row 7."]


def test_the_last_time_that_a_prompt_was_asked_counts():
    records = [tried(0, 1, 0.9), tried(1, 1, 0.1), tried(2, 1, 0.8), tried(0, 2, 0.0), tried(1, 2, 0.5)]
    found = informative([*TASKS[:3], *TASKS[:2]], records, CurriculumSettings())
    assert [task.instruction for task in found] == ["Row 2.", "Row 1."]


def test_what_earlier_iterations_did_not_ask_is_not_asked_again():
    assert informative([TASKS[1]], [tried(0, 1, 0.9)], CurriculumSettings()) == []


def choose(tmp_path, num, iteration=1, earlier=(), tried=(), filters=(), model=None, rows=ROWS, **block):
    source = CurriculumSource(settings(tmp_path, rows, source="curriculum", curriculum=block))
    model = model or Model(lambda text: pytest.fail("a model was asked"))
    with source_context(tmp_path / "journals", model, num, iteration, filters, earlier=earlier, tried=tried) as at:
        tasks = source.tasks(at)
    return [task.instruction for task in tasks], at, tasks


def test_in_the_first_iteration_everything_is_fresh(tmp_path):
    chosen, at, _ = choose(tmp_path, 4)
    assert chosen == ["Row 0.", "Row 1.", "Row 2.", "Row 3."]
    assert at.figures == {"informative": 0, "again": 0, "fresh": 4}


@pytest.mark.parametrize(("share", "again"), [(0.0, 0), (0.25, 1), (0.5, 2), (1.0, 4)])
def test_a_share_is_asked_again_the_most_informative_first(tmp_path, share, again):
    records = [tried(place, 1, spread) for place, spread in enumerate((0.3, 0.6, 0.5, 0.9))]
    chosen, at, tasks = choose(tmp_path, 4, 2, TASKS[:4], records, again=share)
    assert chosen == ["Row 3.", "Row 1.", "Row 2.", "Row 0."][:again] + [f"Row {4 + n}." for n in range(4 - again)]
    assert len({task.id for task in tasks}) == 4
    assert at.filters.removed == []
    assert at.figures == {"informative": 4, "again": again, "fresh": 4 - again}


def test_where_too_few_are_informative_more_rows_are_taken(tmp_path):
    records = [tried(0, 1, 0.5), *(tried(place, 1, 0.0) for place in (1, 2, 3))]
    assert choose(tmp_path, 4, 2, TASKS[:4], records)[0] == ["Row 0.", "Row 4.", "Row 5.", "Row 6."]


def test_rows_start_over_with_those_that_were_asked_least_often(tmp_path):
    earlier = [*TASKS[:5], TASKS[1], *TASKS[5:7]]
    chosen, at, _ = choose(tmp_path, 6, 3, earlier, [tried(1, 2, 0.5)], again=0.17)
    assert chosen == ["Row 1.", "Row 7.", "Row 0.", "Row 2.", "Row 3.", "Row 4."]
    assert at.filters.removed == []


def test_what_a_filter_takes_out_is_taken_out_once(tmp_path):
    rows = [{"prompt": "Draw a bird."}, *ROWS]
    chosen, first, tasks = choose(tmp_path, 3, filters=["keywords"], rows=rows)
    assert (chosen, len(first.filters.removed)) == (["Row 0.", "Row 1.", "Row 2."], 1)
    chosen, second, _ = choose(tmp_path, 3, 2, tasks, filters=["keywords"], rows=rows)
    assert (chosen, second.filters.removed) == (["Row 3.", "Row 4.", "Row 5."], [])


def test_more_prompts_than_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"curriculum wants 9 prompts, and there are 8 rows\. Lower num or add rows"):
        choose(tmp_path, 9)


def evolving(text):
    if text.startswith("Below are two prompts"):
        return "Not equal"
    if "<given-prompt>" not in text:
        return "It is rather large."
    given = text.partition("<given-prompt>\n")[2].partition("\n</given-prompt>")[0]
    return "" if "Row 3" in given else f"{given} Harder."


def test_the_informative_evolve_and_what_has_evolved_is_left_to_its_child(tmp_path):
    records = [tried(place, 1, spread) for place, spread in enumerate((0.3, 0.6, 0.5, 0.9))]
    chosen, at, tasks = choose(tmp_path, 4, 2, TASKS[:4], records, model=Model(evolving), evolve=True)
    # Row 3 has the greatest spread, and its evolution fails.
    assert chosen == ["Row 1. Harder.", "Row 2. Harder.", "Row 4.", "Row 5."]
    assert [task.parent_id for task in tasks] == [TASKS[1].id, TASKS[2].id, None, None]
    assert at.figures["again"] == 2
    records += [Difficulty(tasks[0].id, 2, 4, 2.0, 1.2, 0.5)]
    chosen, _, _ = choose(tmp_path, 4, 3, [*TASKS[:4], *tasks], records, model=Model(evolving), evolve=True)
    assert chosen[:2] == ["Row 1. Harder. Harder.", "Row 0. Harder."]


def test_rows_that_name_each_other_as_parents_evolve_all_the_same(tmp_path):
    rows = [{"prompt": "Row 0."}, {"prompt": "Row 1.", "parent_id": TASKS[0].id}]
    first = choose(tmp_path, 2, rows=rows)[2]
    records = [tried(0, 1, 0.9), tried(1, 1, 0.5)]
    chosen, _, _ = choose(tmp_path, 2, 2, first, records, model=Model(evolving), rows=rows, evolve=True)
    assert chosen == ["Row 0. Harder.", "Row 0."]


def test_a_model_has_a_part_in_it_where_prompts_evolve():
    def curriculum(evolve):
        return PromptSettings(source="curriculum", num=4, curriculum={"evolve": evolve})

    assert [curriculum(evolve).needs_model for evolve in (True, False)] == [True, False]
    assert all(curriculum(evolve).asks_a_model and not curriculum(evolve).writes for evolve in (True, False))


KINDS = ["Easy 1 a", "Hard 1 b", "Mixed 1 c", "Mixed 3 d", "Learned 2 e", "Even 1 f"]
KINDS += ["Easy 1 g", "Mixed 2 h", "Hard 1 i", "Easy 1 j", "Easy 1 k", "Hard 1 l", "Even 1 m"]


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, tiny_random_model):
    folder = tmp_path_factory.mktemp("curriculum")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": kind}) + "\n" for kind in KINDS))
    (folder / "judge.txt").write_text("Review this answer.\nTask: {prompt}\nAnswer: {response}")
    path = folder / "run.yaml"
    path.write_text(f"""
name: whole
run_dir: {folder}/runs
iterations: 3
model: {{path: {tiny_random_model}, dtype: float32}}
prompts: {{source: curriculum, path: prompts.jsonl, num: 6}}
responses: {{n: 8}}
judge: {{template: judge.txt, votes: 1}}
training: {{dpo: {{max_steps: 1, per_device_train_batch_size: 2, gradient_checkpointing: false}}}}
engine: {{name: "scripts:Pupil"}}
""")
    return path


def start(recipe_file, *overrides) -> Run:
    return selfreward.run(selfreward.load_recipe(recipe_file, list(overrides)))


@pytest.fixture(scope="module")
def run(recipe_file):
    return start(recipe_file)


def texts(run, iteration):
    return [prompt.text for prompt in run.records("prompts", iteration, Prompt)]


def test_the_loop_asks_again_what_its_model_can_learn_from(run):
    assert texts(run, 1) == KINDS[:6]
    assert texts(run, 2) == ["Mixed 1 c", "Learned 2 e", "Mixed 3 d", *KINDS[6:9]]
    # What the second model always solves is not asked a third time; what only it was asked comes in.
    again = texts(run, 3)[:3]
    assert sorted(again) == ["Mixed 1 c", "Mixed 2 h", "Mixed 3 d"]
    assert texts(run, 3)[3:] == KINDS[9:12]
    assert [run.stage("prompts", t).summary["again"] for t in (1, 2, 3)] == [0, 3, 3]
    assert not any(run.records("removed_prompts", t, Removal) for t in (1, 2, 3))
    assert verify(run.path).problems == []


def test_difficulty_is_that_of_the_scores_that_were_given(run):
    for iteration in (1, 2):
        records = run.records("difficulty", iteration + 1, Difficulty)
        prompts = run.records("prompts", iteration, Prompt)
        assert [record.prompt_id for record in records] == [prompt.id for prompt in prompts]
        score_of = {j.subject_ids[0]: j.score for j in run.records("judgements", iteration, Judgement)}
        responses = run.records("responses", iteration, Response)
        for record in records:
            scores = np.array([score_of[r.id] for r in responses if r.prompt_id == record.prompt_id])
            assert (record.iteration, record.num_scored) == (iteration, len(scores))
            assert record.mean == pytest.approx(scores.mean())
            assert record.spread == pytest.approx(scores.std())
            assert record.solved == pytest.approx((scores == 5).mean())
    assert run.records("difficulty", 1, Difficulty) == []


def test_unscored_responses_are_no_part_of_difficulty(recipe_file):
    # The judge of this engine never writes a score, and so there is nothing to train on.
    with pytest.raises(ValueError, match="no pair"):
        start(recipe_file, "name=mute", "iterations=1", "engine.name=scripts:Mute", "judge.min_parse_rate=0")
    records = difficulty(Run.open(recipe_file.parent / "runs" / "mute"), 1)
    assert len(records) == 6
    for record in records:
        assert (record.num_scored, record.mean, record.spread, record.solved) == (0, None, None, None)


def test_a_run_that_is_extended_iteration_by_iteration_is_the_same(recipe_file, run):
    for iterations in (1, 2, 3):
        extended = start(recipe_file, "name=extended", f"iterations={iterations}")
    for name in ("records", "tasks", "removed", "difficulty"):
        for iteration in (1, 2, 3):
            one, other = (each.stage("prompts", iteration).path / f"{name}.jsonl" for each in (run, extended))
            assert one.read_bytes() == other.read_bytes()


def test_in_the_loop_the_informative_evolve(recipe_file):
    evolved = start(recipe_file, "name=evolved", "prompts.curriculum.evolve=true")
    assert texts(evolved, 2) == ["Mixed 1 c Harder.", "Learned 2 e Harder.", "Mixed 3 d Harder.", *KINDS[6:9]]
    by_id = {task.id: task for t in (1, 2, 3) for task in evolved.records("tasks", t, Task)}
    third = [task for task in evolved.records("tasks", 3, Task) if task.parent_id]
    assert sorted(task.instruction for task in third) == [
        "Mixed 1 c Harder. Harder.",
        "Mixed 2 h Harder.",
        "Mixed 3 d Harder. Harder.",
    ]
    assert all(f"{by_id[task.parent_id].instruction} Harder." == task.instruction for task in third)
    prompts = {prompt.id: prompt.parent_id for prompt in evolved.records("prompts", 3, Prompt)}
    assert all(prompts[task.id] == task.parent_id for task in third)
