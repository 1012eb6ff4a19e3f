"""Outputs that refuse, told by English phrases at their beginning.

There are two patterns, as a wrong guess costs differently. Where a list or a prompt was asked for, nothing good begins
with an apology. An answer may: "Sorry, we're closed" is what a task asked for, and only what an assistant says of the
request itself is a refusal.
"""

from __future__ import annotations

import re

from selfreward.text.lists import has_list

_LOOSE = re.compile(
    r"\W*(?:(?:(?:i|we) ?'?(?:am|m|are|re) )?(?:very |so |truly )?sorry\b|i apologi[sz]e\b|"
    r"as an? (?:ai|large|language)\b|(?:unfortunately,? )?i (?:can ?'?t|can ?not|won't|am (?:unable|not able)|"
    r"must decline)\b|i'm (?:unable|not able)\b)",
    re.IGNORECASE,
)
# What may stand before a refusal, and apologies.
_OPENING = (
    r"""[\s"'*_>#(-]*(?:(?:hello|hi|hey|well|oh|unfortunately|regrettably|thank(?:s| you)[^.!?\n]{0,60}"""
    r"|I (?:understand|appreciate|see)\b[^.!?,\n]{0,80})[,.!]*\s+(?:but\s+|however,?\s+)?){0,3}"
)
_SORRY = (
    r"(?:(?:(?:I am|I'm)(?: so| very| really| truly| deeply)? sorry|sorry|(?:my )?(?:sincere(?:st)? )?apologies"
    r"|I (?:must |do |sincerely )?apologi[sz]e|I regret(?: to (?:say|inform you))?)"
    r"(?: about that| for (?:the|any) (?:confusion|inconvenience|misunderstanding))?(?: that)?[,.;:!\u2014-]*\s*"
    r"(?:(?:but|however|unfortunately)\b,?\s*)?)?"
)
_CANNOT = r"I(?: (?:cannot|can not|can't|could not|will not|won't|would not)|(?: am|'m) (?:not able|unable) to)"
_REQUEST = r"(?:this|that|the|your|such|these|those)(?: \w+)? (?:request|question|prompt|query|task|instruction)s?"
# Verbs of an assistant: "I can't give you a refund" and "I can't help falling in love" are answers.
_VERB = (
    r"(?:(?:assist|comply|fulfil|fulfill|answer|respond|engage|discuss|generate|create|write|complete|process|perform"
    r"|execute|access|browse|provide|produce|participate|predict|promote|support|condone|endorse|disclose)\b"
    r"|help (?:you|with|anyone|people)\b|help(?=[.,!]|\s*$)|do (?:that|this|so)(?=[.,!;]|\s*$)"
    rf"|open (?:links?|files?|attachments?|urls?|the (?:link|file|attachment|url))\b|\w+ (?:to )?{_REQUEST})"
)
_MACHINE = (
    r"(?:[\w-]+ ){0,3}?(?:(?:AI|A\.I\.|artificial intelligence)"
    r"(?:[ -](?:language|text|chat|based|powered|assistant|model|bot|chatbot|program|system)s?)*|language model"
    r"|chatbot|virtual assistant)"
    r"(?=[,.:;]| I\b|\s+(?:trained|developed|created|designed|made|without|my|and|so|that)\b)"
)
_STRICT = re.compile(
    rf"{_OPENING}{_SORRY}(?:"
    rf"as an? {_MACHINE}"
    rf"|(?:I am|I'm)(?: just| only| merely| simply)? an? {_MACHINE}[^.!?\n]{{0,80}}?"
    r"\b(?:can't|cannot|can not|don't|do not|unable|not able|incapable|not capable)\b"
    rf"|{_CANNOT} (?:in good conscience |directly |really |actually )?{_VERB}"
    r"|I (?:do not|don't) (?:have|possess) (?:the |any )?(?:ability|capability|capabilities|capacity|access)\b"
    r"|I (?:do not|don't) have (?:any )?personal (?:opinions?|beliefs?|feelings?|experiences?|preferences?)\b"
    r"|(?:I am|I'm) not (?:comfortable|programmed|allowed|permitted|designed) (?:to|with)\b"
    rf"|I (?:must|have to|will have to) (?:respectfully )?decline (?:to\b|{_REQUEST})"
    r"|it(?: is|'s) (?:not possible for me to|against my (?:programming|guidelines|policy|policies|principles))\b"
    r"|(?:this|your) (?:request|question|prompt) (?:violates|goes against)\b"
    r")"
    rf"|{_OPENING}(?:I'm sorry|I am sorry|sorry|my apologies|I can't|I cannot)[\s.!\"']*\Z",
    re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Whether an output that was to hold a list or a prompt begins with an apology or a refusal, and holds no list."""
    return _LOOSE.match(_straight(text)) is not None and not has_list(text)


def find_refusal(text: str) -> str | None:
    """The refusal that an answer begins with, a greeting or an apology before it included, if there is one."""
    found = _STRICT.match(_straight(text))
    return None if found is None else found[0].strip()


def _straight(text: str) -> str:
    return text.replace("\u2019", "'")
