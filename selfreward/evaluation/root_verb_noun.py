"""The root verb and noun of an English instruction, by rule.

Figure 2 of arXiv 2212.10560 shows them as a parser found them, and every parser needs weights. The rules here know
lists of closed word classes and no grammar: they read "Write a poem about spring" as (write, poem). They are wrong
where the lists don't tell a noun from a verb or an adjective, and find nothing in questions and in other scripts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Where a root is looked for: what comes later are details.
MAX_SENTENCES, MAX_CHARACTERS = 3, 2000
_TOKEN = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*|\d[\w.,]*|\S")
_SENTENCE = re.compile(r"(?<=[.!?:])\s+|\n+")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# What may stand before the verb.
_OPENINGS = [
    tuple(opening.split())
    for opening in (
        "please|kindly|now|then|first|next|also|just|finally|hi|hello|hey|ok|okay|so|and|but|instead|let's|"
        "can you|could you|would you|will you|can i|could i|help me|help me to|help us|i want to|i want you to|"
        "i would like to|i would like you to|i'd like to|i'd like you to|i need to|i need you to|we need to|we want to|"
        "i am trying to|i'm trying to|you are to|you need to|you have to|you should|you must|you will|you'll|you can|"
        "you are asked to|you are expected to|you are required to|you are supposed to|your task is to|your job is to|"
        "your goal is to|your role is to|the task is to|the goal is to|try to|be sure to|make sure to|feel free to|"
        "do your best to|are you able to|is it possible to|would you mind"
    ).split("|")
]
# A sentence that begins so has its verb behind a comma: "Given a text, find ...".
_SUBORDINATE = _set(
    "to given based using in on for from with by as if when while after before imagine suppose assume assuming "
    "considering according without at under during because since although though once until unless about among "
    "between whenever"
)
# What stands before the words of a noun phrase, or is no direct object: "Give me at least the first five names".
_BEFORE = _set(
    "a an the this that these those some any each every all both either neither no another my your his her its our "
    "their one's me us him them you few several many much more most less least enough own other different same various "
    "one two three four five six seven eight nine ten at exactly out up down off over away following given provided "
    "above below first second third last next as such"
)
# What ends them.
_AFTER = _set(
    "of in on at by for from with about as into onto to than that which who whom whose where when why how what "
    "whether if and or but so because while between among through during before after against without within under "
    "above below over across along around behind beside beyond per via upon toward towards regarding concerning "
    "including involving containing using describing based like unlike until since is are was were be been being am "
    "has have had do does did can could will would shall should may might must i you he she it we they me us him "
    "them there then not also only e.g i.e etc given provided"
)
_OTHER = _set(
    "yes no not never very too let here there here's there's i'm i've i'd you're he's she's it's we're they're"
)
_CLOSED = _BEFORE | _AFTER | _OTHER
# What makes the word before it a subject: "Tom has three apples".
_FINITE = _set("is are was were has have had can could will would shall should may might must does did")
_ARTICLES = _set("a an the my your his her its our their")
_DEGREES = _set("more most less least very so too")
# Adjectives that can stand behind their noun.
_BEHIND = _set("appropriate suitable similar related available possible necessary correct online")
_NO_ADVERBS = _set("family reply apply supply multiply imply comply assembly anomaly monopoly italy")
# Marks that a phrase can begin with.
_TEXT = "\"'\u2018\u2019\u201c\u201d([{<*`"


def root_verb_noun(text: str) -> tuple[str, str] | None:
    """The root verb and its object, a noun in the singular, in lower case; None where one of them is not found."""
    for sentence in _SENTENCE.split(text[:MAX_CHARACTERS].strip(), maxsplit=MAX_SENTENCES)[:MAX_SENTENCES]:
        tokens = _opened(_TOKEN.findall(sentence.casefold().replace("\u2019", "'")))
        if not tokens or not _is_verb(*tokens[:2]):
            continue
        noun = _object(tokens[1:])
        if noun is not None:
            return tokens[0], noun
    return None


def _opened(tokens: list[str]) -> list[str]:
    """Tokens from the verb on, where there is one: without politeness, adverbs and leading clauses."""
    while tokens:
        fitting = (len(each) for each in _OPENINGS if each[0] == tokens[0] and each == tuple(tokens[: len(each)]))
        size = max(fitting, default=0)
        if not size and (not tokens[0][0].isalpha() or _is_adverb(tokens[0])):
            size = 1
        elif not size and tokens[0] in _SUBORDINATE:
            size = tokens.index(",") + 1 if "," in tokens else len(tokens)
        if not size:
            break
        tokens = tokens[size:]
    return tokens


def _is_verb(word: str, following: str = "") -> bool:
    """Whether a first word can be an imperative."""
    if word in _CLOSED or following in _FINITE or "'" in word or not word.isascii():
        return False
    inflected = (word.endswith("s") and not word.endswith(("ss", "us"))) or (word.endswith("ing") and len(word) > 5)
    return not (inflected or (word.endswith("ed") and not word.endswith(("eed", "embed"))))


def _object(tokens: Sequence[str]) -> str | None:
    """The head of the noun phrase that follows a verb: its last word."""
    if tokens[:1] and tokens[0] in ("and", "or", "/"):
        tokens = tokens[2:]  # "Correct and rewrite the sentence"
    if tuple(tokens[:2]) == ("up", "with"):
        tokens = tokens[2:]
    phrase: list[str] = []
    for place, token in enumerate(tokens):
        following, later = (*tokens[place + 1 : place + 3], "", "")[:2]
        if not phrase and (token in _BEFORE or token in _TEXT or token == "of" or token[0].isdigit()):
            continue
        if not phrase and _is_adverb(token):
            continue
        if token == "," and len(phrase) == 1 and _is_content(following) and _is_content(later):
            phrase = []  # "a short, funny story"
            continue
        if token in _ARTICLES and phrase:
            if len(phrase) > 1:
                phrase.pop()  # "the post reach a broader audience"
                break
            phrase = []  # "students a joke"
            continue
        if not _is_content(token) or _is_adverb(token) or token in _DEGREES:
            break
        if phrase and token.endswith(("ing", "ed")) and following in _CLOSED:
            break  # "the story describing a journey", "the word associated with it"
        phrase.append(token)
    while len(phrase) > 1 and phrase[-1] in _BEHIND:
        phrase.pop()
    return _singular(phrase[-1]) if phrase else None


def _is_content(token: str) -> bool:
    return token[:1].isalpha() and token not in _AFTER


def _is_adverb(token: str) -> bool:
    return token.endswith("ly") and len(token) > 4 and token not in _NO_ADVERBS


def _singular(noun: str) -> str:
    if noun.endswith("ies") and len(noun) > 4:
        return noun[:-3] + "y"
    if noun.endswith(("sses", "ches", "shes", "xes")):
        return noun[:-2]
    return noun[:-1] if noun.endswith("s") and not noun.endswith(("ss", "us", "is", "ias")) and len(noun) > 3 else noun
