"""Reading a score from a judge's own text."""

from __future__ import annotations

import re

# A line that announces a score, whatever Markdown surrounds the word; a block quote announces nothing. Only ASCII:
# letters and digits of other alphabets that look like these are no score.
SCORE_LINE = re.compile(
    r"^[ \t*_#-]*((total|final) )?score[ \t*_]*:(?P<rest>.*)$", re.ASCII | re.IGNORECASE | re.MULTILINE
)
_NUMBER = re.compile(r"(?P<score>-?[0-9]+(\.[0-9]+)?)(\s*(/|out of)\s*(?P<best>[0-9]+))?( points?)?\.?", re.ASCII)
# What begins or ends a quotation, code, or text between tags; an apostrophe within a word does not.
_QUOTING = re.compile(r"[\"“”„«»‹›「」『』`]|~~~|</?[a-z]|(?<!\w)['‘]|['’](?!\w)", re.IGNORECASE)  # noqa: RUF001


def read_score(text: str, lowest: float, highest: float, cut: bool = False) -> tuple[float | None, str | None]:
    """The score on the last line that announces one, or the name of an error.

    Errors are ``no_score``, ``malformed_score``, ``out_of_range``, and those of :func:`announced`.
    """
    line, error = announced(SCORE_LINE, text, cut)
    if line is None:
        return None, error or "no_score"
    number = _NUMBER.fullmatch(line["rest"].strip(" \t\r*_`<>[]"))
    if number is None or number["best"] not in (None, str(highest)):
        return None, "malformed_score"
    score = float(number["score"])
    if not lowest <= score <= highest:
        return None, "out_of_range"
    return score, None


def announced(pattern: re.Pattern[str], text: str, cut: bool = False) -> tuple[re.Match[str] | None, str | None]:
    """The last line of a judge's text that matches, if it is the judge's own.

    A judge may repeat what it read, announcements of the response's included. A line that stands between quotation
    marks, or between those of code or tags, may be such a repetition (``quoted``); so may one in a text that was cut
    off, unless it is whole, the last, and nothing before it began a quotation (``cut_off``).

    Args:
        pattern: matches whole lines.
        text: the judge's own.
        cut: it ended at ``max_tokens``.

    Returns:
        The line, or None with the name of an error; None and None if no line matches.
    """
    lines = list(pattern.finditer(text))
    if not lines:
        return None, "cut_off" if cut else None
    line = lines[-1]
    within = _QUOTING.search(text, 0, line.start()) is not None
    if cut and (within or text[line.end() :].strip() or line.end() == len(text)):
        return None, "cut_off"
    if within and _QUOTING.search(text, line.end()):
        return None, "quoted"
    return line, None
