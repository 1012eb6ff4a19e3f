"""A row to tasks, by the columns that it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfreward.prompts.row_files import BadRow, Row
from selfreward.prompts.rows import brief, mapped, named, optional_text, text_of
from selfreward.recipe.prompt_settings import RowSettings
from selfreward.records import Message, Task

# Those that say what is asked; the first of them that a row has.
ASKING = ("messages", "conversations", "prompt", "instruction")
ANSWERS = ("output", "completion", "response")
# ShareGPT's names beside those of chat templates.
ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
}


def tasks_of(row: Row, settings: RowSettings, source: str, lenient: bool = False) -> list[Task]:
    """What a row asks: one task, or one for each of Self-Instruct's ``instances``.

    Args:
        row: as it stands in the data.
        settings: which columns have other names, and the licence of rows without one.
        source: the name of the data, for rows that don't name their own.
        lenient: as for :func:`~selfreward.prompts.rows.mapped`.

    Raises:
        BadRow: the row fits no format, or holds what no format allows.
    """
    view = mapped(row, settings.columns, lenient)
    chosen = [name for name in ASKING if name in settings.columns and (name in view or not lenient)]
    beside = _beside(view, settings)
    own = view.get("source")
    source = own if isinstance(own, str) and own.strip() else source
    name = next((name for name in chosen or ASKING if name in view), None)
    if name is None:
        raise BadRow("malformed", _unfit(row, [settings.columns[name] for name in chosen] or ASKING))
    if name in ("messages", "conversations") or (name == "prompt" and isinstance(view[name], list)):
        return [_of_conversation(view, name, source, beside)]
    if name == "instruction" and "instances" in view:
        return _of_instances(view, source, beside)
    input = _input(view) if name == "instruction" else ""
    return [Task.make(text_of(view, name), source, input, output=_output(view), context=_system(view), **beside)]


def _unfit(row: Row, asking: Sequence[str]) -> str:
    null = next((name for name in asking if name in row), None)
    if null is not None:
        return f"`{null}` is null"
    hint = f", such as columns: {{prompt: {brief(next(iter(row)))}}}" if row else ""
    return f"none of {', '.join(ASKING)} is among its columns ({named(row)}). Name where they are{hint}"


def _beside(view: Row, settings: RowSettings) -> dict[str, Any]:
    """What every format can have beside a question and its answer."""
    is_classification = view.get("is_classification")
    if not isinstance(is_classification, bool | None):
        raise BadRow("malformed", f"`is_classification` is {brief(is_classification)}, and true or false is wanted")
    return {
        "reference": optional_text(view, "reference"),
        "license": optional_text(view, "license") or settings.license,
        "parent_id": optional_text(view, "parent_id"),
        "is_classification": is_classification,
    }


def _of_conversation(view: Row, name: str, source: str, beside: dict[str, Any]) -> Task:
    """A conversation up to its last user message; what follows that is its answer."""
    messages = _messages(view[name], name)
    if messages and messages[0]["role"] != "system":
        messages = _system(view) + messages
    users = [place for place, message in enumerate(messages) if message["role"] == "user"]
    if not users:
        raise BadRow("malformed", f"`{name}` has no message of the user")
    if next(message["role"] for message in messages if message["role"] != "system") != "user":
        raise BadRow("malformed", f"`{name}` begins with the assistant, and no chat template takes that")
    context, asked, after = messages[: users[-1]], messages[users[-1]]["content"], messages[users[-1] + 1 :]
    if any(message["role"] == "system" for message in after):
        raise BadRow("malformed", f"`{name}` ends with a system message, which is no answer")
    output = _output(view)
    if output is None and after:
        output = "\n\n".join(message["content"] for message in after)
    instruction, input = _parts(view, asked)
    return Task.make(instruction, source, input, output=output, context=context, **beside)


def _parts(view: Row, asked: str) -> tuple[str, str]:
    """Instruction and input, where the row has them too and what is asked is made of them."""
    instruction, input = view.get("instruction"), view.get("input", "")
    if isinstance(instruction, str) and isinstance(input, str):
        task = Task.make(instruction, "", input)
        if task.messages[-1]["content"] == asked:
            return instruction, input
    return asked, ""


def _of_instances(view: Row, source: str, beside: dict[str, Any]) -> list[Task]:
    instruction, instances = text_of(view, "instruction"), view["instances"]
    if not isinstance(instances, list) or not all(isinstance(each, dict) for each in instances):
        raise BadRow("malformed", f"`instances` is {brief(instances)}, and a list of objects is wanted")
    if not instances:
        raise BadRow("empty", "`instances` is empty")
    context = _system(view)
    return [
        Task.make(instruction, source, _input(each), output=_output(each), context=context, **beside)
        for each in instances
    ]


def _system(view: Row) -> list[Message]:
    system = view.get("system")
    if system is None or system == "":
        return []
    return [{"role": "system", "content": text_of(view, "system")}]


def _input(row: Row) -> str:
    value = row.get("input")
    if not isinstance(value, str | None):
        raise BadRow("malformed", f"`input` is {brief(value)}, and a text is wanted")
    return "" if value is None or not value.strip() else value


def _output(row: Row) -> str | None:
    """The answer, which can be an empty one; None where there is none."""
    name = next((name for name in ANSWERS if row.get(name) is not None), None)
    if name is None:
        return None
    value = row[name]
    if isinstance(value, list):
        messages = _messages(value, name)
        if not messages or any(message["role"] != "assistant" for message in messages):
            raise BadRow("malformed", f"`{name}` is {brief(value)}, and the assistant's messages are wanted")
        return "\n\n".join(message["content"] for message in messages)
    if not isinstance(value, str):
        raise BadRow("malformed", f"`{name}` is {brief(value)}, and a text is wanted")
    return value


def _messages(value: Any, name: str) -> list[Message]:
    """Messages as chat templates take them; system messages without text are left out."""
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise BadRow("malformed", f"`{name}` is {brief(value)}, and a list of messages is wanted")
    messages = [_message(item) for item in value]
    return [message for message in messages if message is not None]


def _message(item: Row) -> Message | None:
    # Arrow gives a message that was {from, value} among others {role, content} all four, some of them null.
    role, content = ("from", "value") if item.get("role") is None and "from" in item else ("role", "content")
    name = text_of(item, role)
    if name not in ROLES:
        raise BadRow("malformed", f"{role} {brief(name)} is none of {', '.join(ROLES)}")
    if ROLES[name] == "system" and item.get(content) in (None, ""):
        return None
    return {"role": ROLES[name], "content": text_of(item, content)}
