"""What should be in no training data: hateful or violent text, and data of persons."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import ClassVar

from selfreward.prompts.filters.base import BuiltInFilter, Finding, Kind
from selfreward.recipe import registry
from selfreward.recipe.filter_settings import FilterSettings, PersonalDataSettings, ToxicitySettings
from selfreward.records import Task
from selfreward.runtime.extras import optional
from selfreward.text.words import phrase_finder


class _OfText(BuiltInFilter):
    of: ClassVar[Kind] = "text"


def _parts(task: Task) -> list[tuple[str, str]]:
    """The texts of a task that are not empty, each with what it is."""
    every = [
        *(("earlier message", message["content"]) for message in task.context),
        ("instruction", task.instruction),
        ("input", task.input),
        ("output", task.output or ""),
        ("reference", task.reference or ""),
    ]
    return [(name, text) for name, text in every if text.strip()]


class Toxicity(_OfText):
    """Tasks with a word or phrase of a list, or that a function of the user's finds toxic, in any of their texts.

    The list that comes with it is short, English, and of profanity, slurs and threats, as whole words in any case. It
    misses what is meant but not said, words with letters replaced, and all other languages, and it takes out a
    text that quotes such a word to speak against it. To do better, name a function that asks a classifier.
    """

    block: ClassVar[str | None] = "toxicity"

    @classmethod
    def check_settings(cls, settings: FilterSettings) -> None:
        if settings.toxicity.function is not None:
            registry.load_function(settings.toxicity.function, {}, "toxicity function", ("text",))

    @classmethod
    def describe(cls, settings: FilterSettings) -> str | None:
        function = settings.toxicity.function
        return None if function is None else f"RUNNING {function} on each"

    def __init__(self, settings: FilterSettings, held_out: Path | None) -> None:
        self._find = _scored(settings.toxicity) if settings.toxicity.function else _listed(settings.toxicity)

    def look(self, task: Task) -> Finding | None:
        for name, text in _parts(task):
            if (found := self._find(text)) is not None:
                return Finding(f"the {name} {found}")
        return None


def _listed(settings: ToxicitySettings) -> Callable[[str], str | None]:
    path = settings.words or Path(__file__).with_name("toxic.txt")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}. Save it as UTF-8") from None
    phrases = [line for line in lines if line and not line.startswith("#")]
    if not phrases:
        raise ValueError(f"{path} has no word. Write a word or phrase a line, or leave filters.toxicity.words empty")
    listed = phrase_finder(phrases)

    def find(text: str) -> str | None:
        found = listed(text)
        return None if found is None else f'has "{found}"'

    return find


def _scored(settings: ToxicitySettings) -> Callable[[str], str | None]:
    name = settings.function or ""
    function: Callable[[str], float] = registry.load(name, {}, "toxicity function")

    def find(text: str) -> str | None:
        value = function(text)
        if not isinstance(value, int | float) or math.isnan(value):
            raise ValueError(f"toxicity function {name!r} gave {value!r} for a text, and a number is wanted. Mend it")
        return f"is toxic by {value:.2f}" if value >= settings.threshold else None

    return find


class PersonalData(_OfText):
    """Tasks with data by which a person can be reached or robbed, in any of their texts.

    Told by form, check digits and numbering plans: names, street addresses and what is written out in words stay.
    Left alone is what belongs to nobody: domains for examples (RFC 2606), addresses within a network or for
    documentation, and numbers that no plan knows. A number of four parts after a word such as "version" is no address.
    Phone numbers are looked for with an international prefix, and, where there is a ``region``, as they are written
    there; digits without any space or sign between are one only after a word such as "phone".
    """

    block: ClassVar[str | None] = "personal_data"

    def __init__(self, settings: FilterSettings, held_out: Path | None) -> None:
        finders = {
            "email": _emails,
            "ip_address": _ip_addresses,
            "credit_card": _cards,
            "iban": _ibans,
            "phone": _phones,
        }
        self._finders = [(_NAMES[kind], finders[kind](settings.personal_data)) for kind in settings.personal_data.kinds]

    def look(self, task: Task) -> Finding | None:
        for name, text in _parts(task):
            for kind, find in self._finders:
                if (found := next(find(text), None)) is not None:
                    return Finding(f"the {name} has {kind}: {found}")
        return None


Finder = Callable[[str], Iterator[str]]
_NAMES = {
    "email": "an e-mail address",
    "ip_address": "an IP address",
    "credit_card": "a credit card number",
    "iban": "an IBAN",
    "phone": "a phone number",
}
# No address has a longer part; a bound keeps long texts without an @ quick.
_EMAIL = re.compile(
    r"(?<![\w.%+-])[\w%+-](?:[\w.%+-]{0,62}[\w%+-])?@((?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24})(?![\w@-])"
)
_EXAMPLE = re.compile(r"(?:^|\.)(?:example\.(?:com|net|org)|example|test|invalid|localhost)$", re.IGNORECASE)


def _emails(settings: PersonalDataSettings) -> Finder:
    def find(text: str) -> Iterator[str]:
        return (found[0] for found in _EMAIL.finditer(text) if not _EXAMPLE.search(found[1]))

    return find


_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9a-f]{4}:[0-9a-f:]{2,34}(?![\w:.])", re.IGNORECASE)
_NUMBERED = re.compile(
    r"(?:\b(?:v|ver|version|release|build|section|chapter|clause|article)|§)[\s.:]*\Z", re.IGNORECASE
)
_ASSIGNED = IPv6Network("2000::/3")  # all that has been given out


def _ip_addresses(settings: PersonalDataSettings) -> Finder:
    def find(text: str) -> Iterator[str]:
        for found in (*_IPV4.finditer(text), *_IPV6.finditer(text)):
            address = _address(found[0])
            if address is None or _NUMBERED.search(text[max(0, found.start() - 12) : found.start()]):
                continue
            if address.is_global and not address.is_multicast:
                yield found[0]

    return find


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return address if address.version == 4 or address in _ASSIGNED else None


# Bare, or in the groups that are printed on a card. Looked ahead at, so that one may begin within another.
_CARD = re.compile(
    r"(?<![\w.,-])(?=((?:\d{13,19}|\d{4}([ -])\d{4}\2\d{4}\2\d{4}(?:\2\d{3})?|\d{4}([ -])\d{6}\3\d{4,5})"
    r"(?![\w-]|[.,]\d)))"
)
# Visa, Mastercard, American Express, Discover, Diners Club, JCB, UnionPay: their prefixes and lengths.
_ISSUED = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|(?:6011|64[4-9]\d|65\d\d)\d{12}(?:\d{3})?|3(?:0[0-5]|[68]\d|9\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
)


def _cards(settings: PersonalDataSettings) -> Finder:
    with optional("filter personal_data", "data"):
        from stdnum import luhn

    def find(text: str) -> Iterator[str]:
        for found in _CARD.finditer(text):
            digits = re.sub("[ -]", "", found[1])
            if _ISSUED.fullmatch(digits) and luhn.is_valid(digits):
                yield found[1]

    return find


_IBAN = re.compile(r"(?<![^\W_])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}")


def _ibans(settings: PersonalDataSettings) -> Finder:
    with optional("filter personal_data", "data"):
        from stdnum import iban

    def find(text: str) -> Iterator[str]:
        for found in _IBAN.finditer(text):
            # What follows in capitals may have been taken along.
            for end in range(len(found[0]), 14, -1):
                follows = text[found.start() + end : found.start() + end + 1]
                if not follows.isalnum() and iban.is_valid(found[0][:end]):
                    yield found[0][:end]
                    break

    return find


_CALLED = re.compile(
    r"\b(?:call|cell|fax|mobile|phone|sms|tel|telephone|text|whatsapp)\b\W*(?:\w+\W+){0,2}\Z", re.IGNORECASE
)


def _phones(settings: PersonalDataSettings) -> Finder:
    with optional("filter personal_data", "data"):
        import phonenumbers
    region = settings.region
    if region is not None and region not in phonenumbers.SUPPORTED_REGIONS:
        raise ValueError(
            f"filters.personal_data.region is {region}, which is no country that phonenumbers knows. Give its two "
            "letters in capitals, such as US"
        )
    # The matcher is slow, and most texts have nothing for it.
    needed = re.compile(r"[+\uff0b]\D{0,3}\d" if region is None else r"\d(?:\D{0,4}\d){4}")

    def find(text: str) -> Iterator[str]:
        for match in phonenumbers.PhoneNumberMatcher(text, region) if needed.search(text) else ():
            if _is_phone(match.raw_string, text[max(0, match.start - 20) : match.start]):
                yield match.raw_string

    return find


def _is_phone(number: str, before: str) -> bool:
    groups = re.findall(r"\d+", number)
    if len(groups) == 1 and number.isdigit():
        return _CALLED.search(before) is not None
    # More than a prefix of one digit is a sequence, such as 1 2 3.
    return sum(len(group) == 1 for group in groups) <= 1
