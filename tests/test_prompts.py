"""Prompts from rows and mixtures: each iteration takes the next ones, and none is lost or doubled."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from selfreward.prompts.base import SourceContext
from selfreward.prompts.dataset import DatasetSource, read_held_out
from selfreward.prompts.filters.base import Filters
from selfreward.prompts.mixture import MixtureSource, shares
from selfreward.recipe.filter_settings import FilterSettings
from selfreward.recipe.prompt_settings import PromptSettings
from selfreward.recipe.recipe import load_recipe
from selfreward.records import Prompt, Removal, Task, read_records
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.serving.engines import Engines
from selfreward.stages import prompts as prompts_stage

TINY = Path(__file__).parents[1] / "selfreward" / "tiny" / "model"


def write(path, rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def numbered(tmp_path, count, name="prompts"):
    return write(tmp_path / f"{name}.jsonl", [{"prompt": f"{name} {n}"} for n in range(count)])


def no_engine(_):
    raise AssertionError("no model is asked")


def source_context(iteration, num, filters=(), seed=0, **settings):
    return SourceContext(
        iteration=iteration,
        num=num,
        seed=seed,
        filters=Filters(FilterSettings(**settings), filters),
        engine_of=no_engine,
        limit=1,
    )


def texts(tasks):
    return [task.instruction for task in tasks]


def taken(settings, iterations, **other):
    source = DatasetSource(settings)
    return [texts(source.tasks(source_context(t, settings.num, **other))) for t in iterations]


# Rows


@pytest.mark.parametrize("streaming", [False, True])
def test_each_iteration_takes_the_next_prompts_and_starts_over_at_the_end(tmp_path, streaming):
    settings = PromptSettings(path=numbered(tmp_path, 7), num=3, streaming=streaming)
    wanted = [[f"prompts {n % 7}" for n in range(start, start + 3)] for start in range(0, 30, 3)]
    assert taken(settings, range(1, 11)) == wanted


def test_no_prompt_is_lost_without_a_number(tmp_path):
    settings = PromptSettings(path=numbered(tmp_path, 7))
    at = source_context(2, None)
    assert len({task.id for task in DatasetSource(settings).tasks(at)}) == 7
    assert at.figures == {}


@pytest.mark.parametrize("streaming", [False, True])
def test_more_prompts_than_there_are_is_an_error(tmp_path, streaming):
    settings = PromptSettings(path=numbered(tmp_path, 7), num=8, streaming=streaming)
    with pytest.raises(ValueError, match=r"asks for 8 prompts of .*prompts.jsonl, which has 7\. Lower num"):
        taken(settings, [1])


def test_too_few_rows_come_out_beforehand(tmp_path):
    settings = PromptSettings(path=numbered(tmp_path, 7), num=8)
    with pytest.raises(ValueError, match="which has 7"):
        DatasetSource(settings).check()


def test_bad_rows_are_counted(tmp_path):
    path = write(tmp_path / "p.jsonl", ['{"prompt": "a"}', "", "no", '{"prompt": "a"}', '{"prompt": "b"}'])
    at = source_context(1, None)
    assert texts(DatasetSource(PromptSettings(path=path, on_bad_line="skip")).tasks(at)) == ["a", "b"]
    assert at.figures == {"skipped_empty": 1, "skipped_malformed": 1, "skipped_duplicate": 1}


def test_a_source_is_named_by_the_file_or_by_the_row(tmp_path):
    path = write(
        tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b", "source": "forum"}, {"prompt": "c", "source": 3}]
    )
    assert [task.source for task in DatasetSource(PromptSettings(path=path)).tasks(source_context(1, None))] == [
        "p.jsonl",
        "forum",
        "p.jsonl",
    ]


# Streaming


def test_streaming_reads_no_further_than_an_iteration_needs(tmp_path):
    rows = [{"prompt": f"{n}"} for n in range(200)]
    settings = PromptSettings(path=write(tmp_path / "p.jsonl", [*rows, "no JSON"]), num=60, streaming=True)
    DatasetSource(settings).check()
    assert taken(settings, [1, 3]) == [[f"{n}" for n in range(60)], [f"{n}" for n in range(120, 180)]]
    with pytest.raises(ValueError, match=r"p.jsonl:201: not JSON"):
        taken(settings, [4])


def test_what_is_streamed_and_begins_badly_is_refused_beforehand(tmp_path):
    path = write(tmp_path / "p.jsonl", ['{"prompt": "a"}', "no JSON", '{"prompt": "b"}'])
    with pytest.raises(ValueError, match=r"p.jsonl:2: not JSON"):
        DatasetSource(PromptSettings(path=path, num=1, streaming=True)).check()


def test_a_repeated_prompt_is_streamed_again_in_another_iteration_alone(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"prompt": each} for each in "aabcda"])
    settings = PromptSettings(path=path, num=2, streaming=True, on_bad_line="skip")
    source, contexts = DatasetSource(settings), [source_context(t, 2) for t in (1, 2, 3, 4)]
    # The third window begins at the end and goes on at the beginning, where its own prompt stands twice.
    assert ["".join(texts(source.tasks(each))) for each in contexts] == ["ab", "cd", "ab", "cd"]
    assert [each.figures for each in contexts] == [{"skipped_duplicate": 1}, {}, {"skipped_duplicate": 2}, {}]


def test_windows_of_different_sizes_follow_one_another(tmp_path):
    path = numbered(tmp_path, 10, "p")
    for streaming in (False, True):
        source = DatasetSource(PromptSettings(path=path, num=1, streaming=streaming))
        last = [source.tasks(replace(source_context(len(nums) + 1, 3), nums=nums)) for nums in ([4], [4, 0], [4, 0, 5])]
        assert [texts(each) for each in last] == [
            ["p 4", "p 5", "p 6"],
            ["p 4", "p 5", "p 6"],
            ["p 9", "p 0", "p 1"],
        ]


# Filters


LONG = "one two three four five six"


def filtered_file(tmp_path):
    """Of 12 rows those that stay have an even number."""
    rows = [f"{LONG} {n}" if n % 2 == 0 else f"{n}" for n in range(12)]
    return write(tmp_path / "p.jsonl", [{"prompt": text} for text in rows])


def numbers(items):
    return [int(item.instruction.split()[-1]) for item in items]


@pytest.mark.parametrize("num", [1, 2, 4, 5, 6])
def test_filters_see_the_rows_in_order_and_each_removal_is_told_once_a_round(tmp_path, num):
    source = DatasetSource(PromptSettings(path=filtered_file(tmp_path), num=num))
    every, removed = [], []
    for t in range(1, 13):  # num whole rounds of two iterations each, at least
        at = source_context(t, num, ["length"])
        tasks = source.tasks(at)
        assert numbers(tasks) == [2 * (n % 6) for n in range((t - 1) * num, t * num)]
        every += tasks
        removed += numbers(at.filters.removed)
    # What is removed stands between what stays, so the two together are the rows in their order.
    assert removed == [n for n in (list(range(12)) * 20)[: 2 * 12 * num - 1] if n % 2]


def test_all_that_filters_remove_is_told_without_a_number(tmp_path):
    at = source_context(1, None, ["length"])
    tasks = DatasetSource(PromptSettings(path=filtered_file(tmp_path))).tasks(at)
    assert (numbers(tasks), numbers(at.filters.removed)) == ([0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11])
    assert {removal.filter for removal in at.filters.removed} == {"length"}


def test_too_few_rows_that_pass_filters_is_an_error(tmp_path):
    settings = PromptSettings(path=filtered_file(tmp_path), num=7)
    with pytest.raises(ValueError, match=r"which has 6 that pass prompts.filters"):
        taken(settings, [1], filters=["length"])


def loop_over(tmp_path, prompts, iterations, one_process):
    """The prompts and the removals of each iteration of a run."""
    lines = {"name": f"run-{one_process}", "run_dir": str(tmp_path), "iterations": iterations}
    recipe = {**lines, "model": {"path": str(TINY)}, "prompts": prompts}
    (tmp_path / "run.yaml").write_text(json.dumps(recipe))
    run = Run.create(load_recipe(tmp_path / "run.yaml"))
    found = []
    for t in range(1, iterations + 1):
        run = run if one_process else Run.open(run.path)
        run.begin(Step("prompts", t))
        summary = prompts_stage.stage(run, Step("prompts", t), Engines(run))
        run.commit(Step("prompts", t), summary)
        folder = run.stage("prompts", t).path
        texts = [prompt.text for prompt in read_records(folder / "records.jsonl", Prompt)]
        removed = [each.instruction for each in read_records(folder / "removed.jsonl", Removal)]
        found.append((texts, removed, summary["prompts"], summary.get("removed_rouge_l", 0)))
    return found


@pytest.mark.parametrize("one_process", [True, False])
def test_rows_that_come_again_in_a_run_are_neither_duplicates_nor_lost(tmp_path, one_process):
    kept = ["Name five birds of the sea.", "Why is the sky blue at noon?", "Translate this sentence into Dutch."]
    rows = [kept[0], "Name five birds of the sea!", kept[1], kept[2]]
    path = write(tmp_path / "p.jsonl", [{"prompt": row} for row in rows])
    prompts = {"path": str(path), "num": 2, "filters": {"use": ["rouge_l"]}}
    found = loop_over(tmp_path, prompts, 3, one_process)
    assert found == [
        ([kept[0], kept[1]], [rows[1]], 2, 1),
        ([kept[2], kept[0]], [], 2, 0),
        ([kept[1], kept[2]], [rows[1]], 2, 1),
    ]


# Mixtures


@pytest.mark.parametrize(
    ("num", "weights", "wanted"),
    [
        (10, [1, 1, 1], [4, 3, 3]),
        (10, [0.5, 0.25, 0.25], [5, 3, 2]),
        (7, [3, 0, 1], [5, 0, 2]),
        (1, [0.1, 0.2], [0, 1]),
        (100, [0.7, 0.2, 0.1], [70, 20, 10]),
        (3, [0, 0, 5], [0, 0, 3]),
    ],
)
def test_shares_by_largest_remainders(num, weights, wanted):
    assert shares(num, weights) == wanted


def test_shares_add_up_and_are_less_than_one_off():
    for num in range(40):
        for weights in ([1, 2, 3.3], [0.1] * 7, [1e-9, 1, 1e9], [0, 1, 0, 2]):
            got = shares(num, weights)
            assert sum(got) == num
            assert all(abs(n - num * w / sum(weights)) < 1 for n, w in zip(got, weights, strict=True))
            assert all(n == 0 for n, w in zip(got, weights, strict=True) if w == 0)


class Writer:
    """Stands for a source that asks a model: it makes the same tasks again and again, and tells its contexts."""

    made = ("Write a poem about the sea.", "a 0", "List all the moons of Mars.", "Explain how a kite can fly.")
    contexts: list[SourceContext] = []  # noqa: RUF012

    def __init__(self, settings):
        pass

    def check(self):
        raise ValueError("the writer was checked")

    def tasks(self, context):
        self.contexts.append(context)
        return context.filters.filter([Task.make(text, "writer") for text in self.made], context.wanted)


WRITER = {"source": f"{__name__}:Writer"}


def mixture(tmp_path, *parts, num, **other):
    rows = {name: numbered(tmp_path, 10, name) for name in "ab"}
    every = [{**part, "path": rows[part["path"]]} if part.get("path") in rows else part for part in parts]
    return PromptSettings.model_validate({"source": "mixture", "num": num, "parts": every, **other})


def test_a_mixture_takes_its_shares_and_each_part_goes_on_where_it_was(tmp_path):
    settings = mixture(tmp_path, {"path": "a", "weight": [3.0, 1.0, 0.0, 1.0]}, {"path": "b"}, num=4)
    source = MixtureSource(settings)
    found = [sorted(texts(source.tasks(source_context(t, 4)))) for t in range(1, 6)]
    assert found == [
        ["a 0", "a 1", "a 2", "b 0"],
        ["a 3", "a 4", "b 1", "b 2"],
        ["b 3", "b 4", "b 5", "b 6"],
        ["a 5", "a 6", "b 7", "b 8"],
        ["a 7", "a 8", "b 0", "b 9"],
    ]


def test_the_order_of_a_mixture_is_the_seeds(tmp_path):
    source = MixtureSource(mixture(tmp_path, {"path": "a"}, {"path": "b"}, num=20))
    orders = {seed: texts(source.tasks(source_context(1, 20, seed=seed))) for seed in (0, 1)}
    assert orders[0] == texts(source.tasks(source_context(1, 20, seed=0)))
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(f"{name} {n}" for name in "ab" for n in range(10))
    assert orders[0] != sorted(orders[0])


def test_a_prompt_of_two_parts_is_there_once_and_counted(tmp_path):
    at = source_context(1, 8)
    tasks = MixtureSource(mixture(tmp_path, {"path": "a"}, {"path": "a"}, num=8)).tasks(at)
    assert sorted(texts(tasks)) == ["a 0", "a 1", "a 2", "a 3"]
    assert at.figures == {"from_part_1": 4, "from_part_2": 4, "in_several_parts": 4}


def test_the_source_of_a_task_in_a_mixture_is_that_of_its_rows(tmp_path):
    tasks = MixtureSource(mixture(tmp_path, {"path": "a"}, {"path": "b"}, num=4)).tasks(source_context(1, 4))
    assert Counter(task.source for task in tasks) == {"a.jsonl": 2, "b.jsonl": 2}


def test_what_a_model_writes_is_compared_with_the_rows_of_a_mixture(tmp_path):
    Writer.contexts.clear()
    settings = mixture(tmp_path, WRITER, WRITER, {"path": "a"}, num=6)
    at = source_context(1, 6, ["rouge_l"])
    tasks = MixtureSource(settings).tasks(at)
    # The rows alone are not filtered, as the recipe says nothing of filters.
    assert sorted(texts(tasks)) == sorted(["a 0", "a 1", *Writer.made[:1], *Writer.made[2:]])
    assert [each.num for each in Writer.contexts] == [2, 2]
    assert Writer.contexts[0].seed != Writer.contexts[1].seed
    assert {removal.instruction: removal.filter for removal in at.filters.removed} == {
        "a 0": "duplicate",
        Writer.made[0]: "duplicate",
        Writer.made[2]: "duplicate",
    }


def test_rows_of_a_mixture_are_filtered_where_the_recipe_says_so(tmp_path):
    settings = mixture(tmp_path, {"path": "a"}, WRITER, num=2, filters={"use": ["length"]})
    with pytest.raises(ValueError, match=r"0 that pass prompts.filters"):
        MixtureSource(settings).tasks(source_context(1, 2, ["length"]))


def test_a_part_without_weight_is_not_asked(tmp_path):
    Writer.contexts.clear()
    source = MixtureSource(mixture(tmp_path, {**WRITER, "weight": [0.0, 1.0]}, {"path": "a"}, num=2))
    assert sorted(texts(source.tasks(source_context(1, 2)))) == ["a 0", "a 1"]
    assert Writer.contexts == []
    assert sorted(texts(source.tasks(source_context(2, 2)))) == ["Write a poem about the sea.", "a 2"]
    assert [(each.num, list(each.nums)) for each in Writer.contexts] == [(1, [0])]


def test_all_parts_are_checked_beforehand(tmp_path):
    with pytest.raises(ValueError, match="the writer was checked"):
        MixtureSource(mixture(tmp_path, {"path": "a"}, WRITER, num=2)).check()
    most = mixture(tmp_path, {"path": "a", "weight": [1.0, 3.0]}, {"path": "b"}, num=16)
    with pytest.raises(ValueError, match=r"asks for 12 prompts of .*a.jsonl, which has 10"):
        MixtureSource(most).check()


def test_a_mixture_has_no_rows_of_its_own(tmp_path):
    path = numbered(tmp_path, 1, "c")
    with pytest.raises(ValueError, match="whose parts have rows, a model"):
        mixture(tmp_path, {"path": "a"}, num=1, path=path)


# Held-out prompts


def test_held_out_prompts_have_the_columns_of_the_recipe_or_their_own(tmp_path):
    rows = write(tmp_path / "p.jsonl", [{"question": "a"}])
    held_out = write(tmp_path / "h.jsonl", [{"prompt": "b"}, {"question": "c", "prompt": "not this"}])
    recipe = {
        "name": "r",
        "model": {"path": str(TINY)},
        "prompts": {"path": str(rows), "columns": {"prompt": "question"}},
        "evaluation": {"prompts": str(held_out)},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(recipe))
    recipe = load_recipe(tmp_path / "run.yaml")
    assert [prompt.text for prompt in read_held_out(recipe.evaluation, recipe.prompts)] == ["b", "c"]
