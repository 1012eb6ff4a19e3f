"""Answers of a teacher under system messages that ask for explanations."""

from collections import Counter

import pytest
from source_contexts import Model, settings, source_context

from selfreward.engines import Completion
from selfreward.errors import EngineDied
from selfreward.prompts.explain import ExplainSource, read_system_messages
from selfreward.prompts.replies import TEMPLATES
from selfreward.records import Task

MESSAGES = read_system_messages(TEMPLATES / "explain.txt")


def rows(num):
    return [{"instruction": "Double the number.", "input": f"{place}", "license": "mit"} for place in range(num)]


def answer(text):
    return f"Twice {text.split()[-1]} is what one asks for."


def explain(tmp_path, model, num, rows, iteration=1, earlier=(), **block):
    source = ExplainSource(settings(tmp_path, rows, source="explain", explain=block))
    with source_context(tmp_path / "journals", model, num, iteration, earlier=earlier) as at:
        return source.tasks(at), at


def test_there_are_sixteen_ways_to_ask_for_an_explanation():
    assert len(set(MESSAGES)) == len(MESSAGES) == 16


def test_a_row_is_answered_under_one_of_the_system_messages(tmp_path):
    model = Model(answer)
    tasks, _ = explain(tmp_path, model, 160, rows(160))
    for place, task in enumerate(tasks):
        assert (task.instruction, task.input, task.output) == (
            "Double the number.",
            f"{place}",
            f"Twice {place} is what one asks for.",
        )
        assert (task.source, task.license) == ("explain", "mit")
        assert task.parent_id == Task.make("Double the number.", "", f"{place}").id
        [system] = task.context
        assert system["role"] == "system"
        assert task.messages in model.asked
    drawn = Counter(task.context[0]["content"] for task in tasks)
    # Ten each in the mean, with five standard deviations.
    assert set(drawn) == set(MESSAGES)
    assert max(drawn.values()) < 10 + 5 * (160 * 15 / 256) ** 0.5


def test_iterations_take_the_next_rows_and_draw_anew(tmp_path):
    taken, earlier = [], []
    for iteration in (1, 2, 3):
        taken.append(explain(tmp_path, Model(answer), 3, rows(5), iteration, earlier=earlier)[0])
        earlier = [*earlier, *taken[-1]]
    assert [[task.input for task in tasks] for tasks in taken] == [
        ["0", "1", "2"],
        ["3", "4", "0"],
        ["1", "2", "3"],
    ]
    assert taken[0][0].context != taken[1][2].context


def test_useless_answers_are_counted_and_further_rows_take_their_place(tmp_path):
    bad = {"0": "", "2": Completion("Twice 2", "length", 2), "3": Completion("", "prompt_too_long", 0)}
    model = Model(lambda text: bad.get(text.split()[-1]) if text.split()[-1] in bad else answer(text))
    tasks, at = explain(tmp_path, model, 3, rows(6))
    assert [task.input for task in tasks] == ["1", "4", "5"]
    assert at.figures == {"failed_empty": 1, "failed_truncated": 1, "failed_prompt_too_long": 1}
    assert [(each.filter, each.input) for each in at.filters.removed] == [
        ("unanswered", "0"),
        ("unanswered", "2"),
        ("unanswered", "3"),
    ]
    assert len(explain(tmp_path / "few", model, 9, rows(6))[0]) == 3


def test_the_message_takes_the_place_of_the_rows_own_and_earlier_turns_stay(tmp_path):
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Double 4."},
    ]
    (tmp_path / "own.txt").write_text("Explain it\nto a cat.\n\n\n \n")
    [task], _ = explain(tmp_path, Model(answer), 1, [{"messages": chat}], messages=tmp_path / "own.txt")
    assert task.context == [{"role": "system", "content": "Explain it\nto a cat."}, *chat[1:3]]


@pytest.mark.parametrize(
    ("content", "message"), [(b" \n\n", "is empty. Write system messages"), (b"\xff", "not UTF-8")]
)
def test_a_file_without_messages_is_refused(tmp_path, content, message):
    (tmp_path / "own.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_system_messages(tmp_path / "own.txt")


def test_an_interrupted_iteration_equals_an_undisturbed_one(tmp_path):
    def reply(text):
        return "" if int(text.split()[-1]) % 3 == 0 else answer(text)

    expected, at = explain(tmp_path / "undisturbed", Model(reply), 8, rows(20))
    folder, dying, second = tmp_path / "interrupted", Model(reply, 9), Model(reply, late=True)
    with pytest.raises(EngineDied):
        explain(folder, dying, 8, rows(20))
    tasks, resumed = explain(folder, second, 8, rows(20))
    assert (tasks, resumed.figures, resumed.filters.removed) == (expected, at.figures, at.filters.removed)
    assert len(dying.asked) + len(second.asked) == 12
