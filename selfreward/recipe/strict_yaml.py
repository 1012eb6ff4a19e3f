"""YAML without its surprises: what runs code, what expands without bound, and what reads as another type. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

import yaml
from yaml.events import AliasEvent, Event, ScalarEvent

MAX_DEPTH = 32
MAX_VALUES = 10_000
MAX_TEXT = 10_000  # characters of one value
# Anything else in ${...} could read the environment, which may hold secrets, or multiply a value.
REFERENCE = re.compile(r"\$\{\s*([A-Za-z_]\w*(?:\.\w+)*)\s*\}")
# Python's strings can hold them, and no file name and no UTF-8 file can.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_INT, _FLOAT, _STR = (f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "str"))


class Refused(yaml.MarkedYAMLError):
    """Good YAML that is not read here; ``problem`` says why, and never holds a value."""


def _refused(problem: str, mark: Any) -> Refused:
    return Refused(problem=problem, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._num_values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # Before the node is made: a bomb must not be unfolded to be found.
        self._check(cast(Callable[[], Event], self.peek_event)())
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _check(self, event: Event) -> None:
        self._num_values += 1
        problem = None
        if isinstance(event, AliasEvent):
            problem = "an alias (*) is not read: write the value out, or repeat a key of the recipe as ${seed}"
        elif getattr(event, "tag", None) is not None:
            problem = "a tag (!) is not read: a recipe is texts, numbers, lists and mappings"
        elif self._depth >= MAX_DEPTH:
            problem = f"more than {MAX_DEPTH} blocks within each other"
        elif self._num_values > MAX_VALUES:
            problem = f"more than {MAX_VALUES} values"
        elif isinstance(event, ScalarEvent):
            problem = _text_problem(event.value)
        if problem:
            raise _refused(problem, event.start_mark)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            problem = _key_problem(key, seen)
            if problem:
                raise _refused(problem, key.start_mark)
            seen.add(key.value)
        return node

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        try:
            value = self.construct_yaml_int(node) if node.tag == _INT else self.construct_yaml_float(node)
        except (ValueError, OverflowError):  # Python's own, for `0x_` or thousands of digits
            value = 2**63
        if isinstance(value, int) and abs(value) >= 2**63:
            raise _refused("a number that is too large, or that is none", node.start_mark)
        return value


# A date is a text here: no setting is a date, and a name may look like one.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1 takes `5e-7` for a text.
_EXPONENT = re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+.0123456789"))
for _tag in (_INT, _FLOAT):
    _Loader.add_constructor(_tag, _Loader.construct_number)


def _text_problem(text: str) -> str | None:
    if len(text) > MAX_TEXT:
        return f"a value of {len(text)} characters, more than {MAX_TEXT}"
    if found := _NO_TEXT.search(text):
        return f"the character {found.group()!r} can't stand in a setting"
    if "${" in REFERENCE.sub("", text):
        return "only keys of the recipe itself can be interpolated, as ${seed}"
    return None


def _key_problem(key: yaml.Node, seen: set[str]) -> str | None:
    if not isinstance(key, yaml.ScalarNode):
        return "a key is a plain word, and here stands a whole list or mapping"
    if key.tag != _STR:
        return f"the key {key.value!r} is no word to YAML: put it in quotes"
    # YAML lets the last of two equal keys win in silence.
    return f"the key {key.value!r} stands here a second time" if key.value in seen else None


def load(text: str) -> tuple[yaml.Node | None, Any]:
    """The nodes of a YAML document, which know their lines, and its value.

    Raises:
        Refused: an alias, a tag, two equal keys, a key that is no text, too much of anything.
        yaml.YAMLError: not YAML.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return node, None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def explain(error: yaml.YAMLError) -> tuple[int, str]:
    """The line of an error, counted from 1, and what is wrong, without the text of that line: it may hold a secret."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return 1, f"not YAML: {str(error).splitlines()[0]}"
    mark = error.problem_mark or error.context_mark
    words = ", ".join(part for part in (error.context, error.problem) if part)
    return (mark.line if mark else 0) + 1, words if isinstance(error, Refused) else f"not YAML: {words}"
