"""Filters of instruction data, each by hand-worked cases, and the pipeline that they stand in."""

import importlib
import json
import subprocess
import sys
import textwrap

import pytest
from pydantic import ValidationError

from selfreward.prompts.filters.base import Filters
from selfreward.recipe.filter_settings import FilterSettings
from selfreward.records import Removal, Task, read_records
from selfreward.runs.folders import StageFolder
from selfreward.runtime.extras import optional
from selfreward.text.words import ngrams, phrase_finder, words


def task(instruction, input="", output=None, **other):
    return Task.make(instruction, "test", input, output=output, **other)


def answered(output, input="", instruction="Do what is asked below."):
    return task(instruction, input, output)


def filters(*names, held_out=None, **settings):
    return Filters(FilterSettings(**settings), names, held_out)


def reasons(pipeline, *tasks):
    """Why each task is removed, or None."""
    found = []
    for each in tasks:
        before = len(pipeline.removed)
        stays = pipeline.filter([each]) == [each]
        details = [removal.detail for removal in pipeline.removed[before:]]
        assert len(details) == (not stays)
        found.append(None if stays else details[0])
    return found


def why(name, *tasks, **settings):
    """Why a filter alone removes each task, none of which is compared with the others."""
    return [reasons(filters(name, **settings), each)[0] for each in tasks]


# Words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Don't STOP, Straße! x_1", ["don", "t", "stop", "strasse", "x_1"]),
        ("cafe\u0301 ﬁne", ["café", "fine"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("用Python写", ["用", "python", "写"]),
        ("日々AI・ꩠa", ["日", "々", "ai", "・", "ꩠa"]),
        ("?! ...", []),
    ],
)
def test_words_of_any_script(text, found):
    assert words(text) == found


def test_runs_of_words():
    assert ngrams(["a", "bb", "c", "dd"], 3) == ["a bb c", "bb c dd"]
    assert ngrams(["a", "bb"], 2) == ["a bb"]
    assert ngrams(["a", "bb"], 3) == ngrams([], 1) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Draw a FILE.", "draw"),
        ("a profile, withdrawn", None),
        ("Go\n to the shop", "go\n to"),
        ("going to", None),
        ("I’ll be there", "i’ll be"),
        ("c++!", "c++"),
        ("画一张图片吧", "图片"),
    ],
)
def test_phrases_are_found_as_whole_words(text, found):
    assert phrase_finder(["file", "draw", "go to", "I'll be", "C++", "图片"])(text) == found


# The filters of instructions


def test_length_counts_words_as_the_paper_does():
    texts = ["One two three", "one two three four", " ".join(["word"] * 150), " ".join(["word"] * 151)]
    assert why("length", *map(task, texts)) == ["3 words, fewer than 4", None, None, "151 words, more than 150"]
    assert why("length", task("用一句话解释"), length={"min_words": 0}) == [None]
    assert why("length", task("One"), length={"min_words": 2}) == ["1 word, fewer than 2"]
    with pytest.raises(ValidationError, match="min_words is 9, more than max_words, 3"):
        FilterSettings(length={"min_words": 9, "max_words": 3})


def test_keywords_of_the_paper():
    every = "image images graph graphs picture pictures file files map maps draw plot".split()
    assert why("keywords", *(task(f"Tell of the {word.upper()}, please") for word in every)) == [
        f'has "{word}"' for word in every
    ]
    stay = ["Imagine a paragraph on mapping and plots", "Explain the flowchart in this video", "Good to go, together"]
    assert why("keywords", task("Explain how to go to Rome"), *map(task, stay)) == ['has "go to"', *[None] * 3]


def test_keywords_of_ones_own():
    assert why("keywords", task("Draw a flowchart"), task("Draw a tree"), keywords={"words": ["flowchart"]}) == [
        'has "flowchart"',
        None,
    ]
    assert why("keywords", task("Draw a tree"), keywords={"words": []}) == [None]
    with pytest.raises(ValidationError):
        FilterSettings(keywords={"words": [" "]})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Write a program that sorts.", 'begins with "Write a program"'),
        (" write  a PROGRAM that sorts.", 'begins with "Write a program"'),
        ("Write some programs.", None),
        ("Then write a program.", None),
        ("- Name a bird.", "begins with the punctuation mark -"),
        ("_Name_ a bird.", "begins with the punctuation mark _"),
        ("3 birds: name them.", None),
        ("¿Qué es esto?", "begins with ¿, which is not ASCII"),
        ("Étudie ceci.", "begins with É, which is not ASCII"),
        ("写诗", "begins with 写, which is not ASCII"),
        ("name a bird", None),
    ],
)
def test_first_characters(text, reason):
    assert why("first_character", task(text)) == [reason]


def test_languages_that_are_sure():
    german, french = "Schreibe ein kurzes Gedicht über den Herbst im Wald.", "Écris une histoire courte sur un chien."
    english = [
        "Write a short poem about autumn in the forest.",
        "Sort this list in Python.",
        "2+2=?",
        "Hallo",
        "def f(x):",
    ]
    found = why("language", *map(task, [german, french, *english]))
    assert [None if reason is None else reason[:5] for reason in found] == ["in de", "in fr", *[None] * 5]
    found = why("language", *map(task, [german, french, english[0]]), language={"allowed": ["de", "en"]})
    assert [reason is None for reason in found] == [True, False, True]


def test_a_language_is_sure_from_the_probability_on_that_the_recipe_says():
    spanish = task("¿Cuál es la capital de Perú?")
    [reason] = why("language", spanish, language={"min_probability": 0.0})
    probability = float(reason.split()[-1])
    assert 0.5 < probability < 0.9
    assert why("language", spanish, language={"min_probability": probability + 0.01}) == [None]
    assert why("language", spanish, language={"min_probability": probability - 0.01}) == [reason]


def test_a_translation_is_judged_by_its_instruction():
    whole = task(
        "Translate the sentence into French.", "The dog sleeps in the garden.", "Le chien dort dans le jardin."
    )
    assert why("language", whole, language={"allowed": ["en"]}) == [None]


def test_an_unknown_language_is_an_error():
    with pytest.raises(ValueError, match=r"allowed has english, xx, which py3langid does not know. It knows .*, en, "):
        filters("language", language={"allowed": ["en", "english", "xx"]})


def test_a_library_that_is_missing_is_named():
    message = r'filter language needs no_such, .* pip install "selfreward\[data\]"'
    with pytest.raises(ValueError, match=message), optional("filter language", "data"):
        importlib.import_module("no_such")


def test_novelty_is_the_share_of_new_runs():
    pipeline = filters("novelty", novelty={"ngram": 2, "min_new": 0.5})
    pipeline.add_known([task("Name a red bird of Peru")])  # name a, a red, red bird, bird of, of peru
    found = reasons(
        pipeline,
        task("Name a red car of Peru"),  # new: red car, car of
        task("Name a bird of Chile"),  # new: a bird, of chile
        task("Name a bird of Chile!"),  # nothing new since the last one
        task("!?"),
    )
    assert found == ["2 of 5 runs of 2 words are new", None, "0 of 4 runs of 2 words are new", None]


def test_novelty_of_instructions_shorter_than_a_run():
    pipeline = filters("novelty", novelty={"ngram": 4, "min_new": 0.5})
    pipeline.add_known([task("Name it"), task("Name a bird of Peru")])
    found = reasons(pipeline, task("name it!"), task("Name"), task("A bird of"))
    assert found == ["0 of 1 runs of 4 words are new", None, None]


# The filters of instances


def test_the_rules_of_the_paper_for_instances():
    assert why("empty_output", answered(" \n"), answered("0"), task("No answer yet")) == [
        "the output is empty",
        None,
        None,
    ]
    same = "the output is the input"
    assert why("input_equals_output", answered(" ab\n", "ab"), answered("AB", "ab"), answered("")) == [same, None, same]
    colon = why("trailing_colon", answered("So: "), answered("ok", "as follows:\n"), answered("a: b", "c: d"))
    assert colon == ["the output ends with a colon", "the input ends with a colon", None]


def test_a_task_that_contradicts_itself_goes_with_all_its_instances():
    bird, fish = "Is it a bird?", "Is it a fish?"
    tasks = [
        task(bird, "owl", "yes"),
        task(bird, "cod", "no"),
        task(bird, "owl", "no"),
        task(fish, "cod", "yes"),
        task(fish, "owl", "no"),
    ]
    pipeline = filters("contradiction")
    assert pipeline.filter(tasks) == tasks[3:]
    assert [(each.input, each.filter, each.detail) for each in pipeline.removed] == [
        (name, "contradiction", 'the input "owl" has different outputs') for name in ("owl", "cod", "owl")
    ]


def test_what_is_no_contradiction():
    system = [{"role": "system", "content": "Say the opposite."}]
    tasks = [
        task("Name a bird.", "", "owl"),
        task("Name a bird.", "", "cod"),  # without an input, many answers are right
        task("Is it a bird?", "owl", "yes"),
        task("Is it a bird?", "owl", "yes\n"),
        task("Is it a bird?", "owl", ""),  # these three are no answers
        task("Is it a bird?", "owl", "owl"),
        task("Is it a bird?", "owl", "It is:"),
        task("Is it a bird?", "owl", "no", context=system),
    ]
    pipeline = filters("contradiction")
    pipeline.filter(tasks)
    assert pipeline.counts() == {"removed_duplicate": 5}


def test_instances_of_an_instruction_that_was_admitted_before():
    pipeline = filters("length", "empty_output", "contradiction")
    [instruction] = pipeline.filter([task("Is it really a bird?")])
    made = [
        task(instruction.instruction, *each) for each in (("owl", "yes"), ("cod", ""), ("owl", "yes"), ("elk", "no"))
    ]
    assert pipeline.filter_instances(made) == [made[0], made[3]]
    assert pipeline.counts() == {"removed_empty_output": 1, "removed_duplicate": 1}
    assert pipeline.filter_instances([made[0], task(instruction.instruction, "owl", "no")]) == []


REFUSALS = [
    "I'm sorry, but I can't assist with that.",
    "I’m sorry, but I cannot fulfill this request.",
    "I am sorry, but as an AI language model, I cannot provide medical advice.",
    "Sorry, I can't help with that request.",
    "Sorry, but I am unable to generate images.",
    "As an AI language model, I don't have personal preferences, but many people like blue.",
    "As a large language model trained by Example, I have no body.",
    "As an AI, I do not have access to your calendar.",
    "Hello! As an AI assistant, I don't have feelings, but thank you for asking.",
    "I'm just an AI, I don't have opinions on politics.",
    "I apologize, but I cannot complete this task without the text.",
    "My apologies, but I'm not able to browse the internet.",
    "Unfortunately, I cannot provide real-time stock prices.",
    "I cannot in good conscience answer that.",
    "I can't do that.",
    "I won't help you with writing malware.",
    "I do not have the ability to play audio.",
    "I don't have access to current weather data.",
    "I don't have personal opinions.",
    "I'm not comfortable with writing that.",
    "I'm unable to access links.",
    "I can't help you. That is unsafe.",
    "I must respectfully decline to answer.",
    "It is not possible for me to open attachments.",
    "I understand that you are upset, but I can't assist with this.",
    "Thank you for your question. However, I am unable to discuss this topic.",
    "**I'm sorry, but I can't comply with that.**",
    "I'm sorry.",
    "Sorry!",
    "Your request violates the usage policies.",
]
ANSWERS = [
    'The old king looked at his son. "I am sorry," he said, "I can\'t help you." And he wept.',
    "Dear Ann, I'm sorry for missing your birthday. I was in hospital.",
    "I'm sorry that your order came late. Here is a voucher for your next purchase.",
    "I'm sorry, but I can't make it to the party on Friday.",
    "I'm sorry, but we can't give you a refund after 30 days.",
    "Sorry seems to be the hardest word is a song by Elton John.",
    "I can't help falling in love with you.",
    "I cannot stress enough how useful tests are.",
    "As an AI engineer with five years of experience, I build search engines.",
    "As an artist, I can't draw without music.",
    "AI language models predict the next word.",
    "I will not go gentle into that good night.",
    "Unfortunately, the train was late.",
    "A language model is a distribution over texts. As an AI language model, one may mention GPT-2.",
    "I don't have a car, so I take the bus.",
    "I regret to inform you that your application was not successful.",
    "I must decline your kind invitation.",
    "The request violates the schema: `id` is missing.",
    "No",
    "",
]


@pytest.mark.parametrize("output", REFUSALS)
def test_a_refusal_goes(output):
    [reason] = why("refusal", answered(output))
    assert reason.startswith('the output begins with "')


@pytest.mark.parametrize("output", ANSWERS)
def test_an_answer_stays(output):
    assert why("refusal", answered(output)) == [None]


def test_refusals_are_told_quickly():
    long = "thank you thank you I understand " * 20_000
    assert why("refusal", answered(long), answered("I'm sorry " + " " * 100_000 + "x")) == [None, None]


# Evaluation data


def rows_file(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def evaluation(tmp_path):
    return rows_file(
        tmp_path / "held.jsonl",
        {"prompt": "Which river flows through the old town of Bern?", "reference": "Aare"},
        {"prompt": "Name a bird."},
        {"messages": [{"role": "user", "content": "Tell me of seven lakes"}, {"role": "assistant", "content": "Sure"},
                      {"role": "user", "content": "Now of hills"}]},
        {"instruction": "Sum up this text.", "input": "Owls hunt at night", "output": "They hunt mice and voles"},
        {"nonsense": 1},
    )  # fmt: skip


CONTAMINATED = [
    (task("Say which RIVER flows -- through the old wall"), 'the instruction has "which river flows through the"', 1),
    (task("Answer.", "which river flows through the town"), 'the input has "which river flows through the"', 1),
    (task("Write a riddle.", "", "What river? The old town of Bern"), 'the output has "the old town of bern"', 1),
    (task("name a bird"), 'the instruction has "name a bird"', 2),
    (task("Translate.", "Name a bird!"), 'the input has "name a bird"', 2),
    (task("Please: tell me of seven lakes"), 'the instruction has "tell me of seven lakes"', 3),
    (task("Sum up this text.", "Owls hunt by day"), 'the instruction with its input has "sum up this text owls"', 4),
    (task("Do they hunt mice and voles?"), 'the instruction has "they hunt mice and voles"', 4),
    (task("Go on", context=[{"role": "user", "content": "Name a bird"}]), 'the earlier message has "name a bird"', 2),
    (task("Guess it", reference="The old town of Bern"), 'the reference has "the old town of bern"', 1),
]


@pytest.mark.parametrize(("found", "reason", "row"), CONTAMINATED)
def test_what_stands_in_evaluation_data_goes(evaluation, found, reason, row):
    [detail] = why("decontamination", found, held_out=evaluation, decontamination={"ngram": 5})
    assert detail.startswith(f"{reason} of held.jsonl, prompt {row}: ")


def test_what_only_resembles_evaluation_data_stays(evaluation):
    stay = [
        task("Which river flows through Bern?"),
        task("Name a bird of Peru."),
        task("Which river is it?", "", "Aare"),
        task("Sum up this text.", "The sun is a star"),
        task("Sure"),
        task("!?"),
    ]
    assert why("decontamination", *stay, held_out=evaluation, decontamination={"ngram": 5}) == [None] * 6
    assert why("decontamination", CONTAMINATED[0][0], held_out=evaluation) == [None]  # 13 words by default


def test_long_rows_are_compared_too(tmp_path):
    long = " ".join(f"word{n}" for n in range(5000))
    held_out = rows_file(tmp_path / "held.jsonl", {"prompt": long})
    assert why("decontamination", task("x " + long[-200:]), held_out=held_out) != [None]


def test_evaluation_data_of_ones_own(evaluation, tmp_path):
    other = rows_file(tmp_path / "other.jsonl", {"question": "Where is Rome?"})
    settings = {"path": other, "columns": {"prompt": "question"}}
    found = why(
        "decontamination", task("where is rome"), task("Name a bird."), held_out=evaluation, decontamination=settings
    )
    assert found == ['the instruction has "where is rome" of other.jsonl, prompt 1: "Where is Rome?"', None]


def test_there_has_to_be_evaluation_data():
    with pytest.raises(
        ValueError, match=r"nothing to compare with\. Name .*decontamination\.path or .* take the filter"
    ):
        filters("decontamination")


# Harm


def test_the_short_list_of_toxic_words():
    toxic = [task("Say FUCK now"), answered("I’ll kill you."), answered("ok", "kill yourself"),
             task("Go on", context=[{"role": "user", "content": "you bitch"}])]  # fmt: skip
    assert why("toxicity", *toxic) == [
        'the instruction has "fuck"',
        'the output has "i’ll kill you"',
        'the input has "kill yourself"',
        'the earlier message has "bitch"',
    ]
    stay = ["How do I kill a process?", "Scunthorpe and Penistone are towns.", "I will shoot you an email",
            "What doesn't kill you makes you stronger", "A chink in the armour", "Class of Essex"]  # fmt: skip
    assert why("toxicity", *map(task, stay)) == [None] * 6


def test_toxic_words_of_ones_own(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\ufeff# comment\n\nböse\n  dumm wie Brot \n", encoding="utf-8")
    tasks = map(task, ["Das ist BÖSE", "dumm  wie\nbrot", "böses Wort", "fuck", "comment"])
    assert [reason is None for reason in why("toxicity", *tasks, toxicity={"words": path})] == [
        False,
        False,
        *[True] * 3,
    ]
    path.write_text("# nothing\n")
    with pytest.raises(ValueError, match=r"words\.txt has no word"):
        filters("toxicity", toxicity={"words": path})
    path.write_bytes(b"b\xf6se")
    with pytest.raises(ValueError, match="not UTF-8"):
        filters("toxicity", toxicity={"words": path})


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    code = """
        def angry(text): return text.count("!") / len(text)
        def broken(text): return None
        class Parity:
            of = "instance"
            def __init__(self, settings, held_out): pass
            def prepare(self, tasks): self.seen = len(tasks)
            def look(self, task):
                from selfreward.prompts.filters.base import Finding
                return Finding(f"{self.seen} came") if len(task.output) % 2 else None
            def add(self, task): raise AssertionError
    """
    (tmp_path / "own_filters.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_filters", None)


@pytest.mark.usefixtures("own_module")
def test_a_function_tells_what_is_toxic():
    settings = {"function": "own_filters:angry", "threshold": 0.5}
    tasks = [task("a!"), task("ab!"), answered("!!!a")]
    assert why("toxicity", *tasks, toxicity=settings) == [
        "the instruction is toxic by 0.50",
        None,
        "the output is toxic by 0.75",
    ]
    with pytest.raises(ValueError, match="'own_filters:broken' gave None for a text"):
        why("toxicity", task("a"), toxicity={"function": "own_filters:broken"})


def test_a_list_and_a_function_do_not_go_together(tmp_path):
    (tmp_path / "w.txt").write_text("a\n")
    with pytest.raises(ValidationError, match="one of them tells"):
        FilterSettings(toxicity={"function": "m:f", "words": tmp_path / "w.txt"})


PERSONAL = [
    ("Write to ann.lee+x@mail.uni-bern.ch.", "an e-mail address: ann.lee+x@mail.uni-bern.ch"),
    ("<jörg@müller.de>", "an e-mail address: jörg@müller.de"),
    ("It came from 81.2.69.142, I think", "an IP address: 81.2.69.142"),
    ("ping 2a00:1450:4001:81b::200e now", "an IP address: 2a00:1450:4001:81b::200e"),
    ("Pay with 4111 1111 1111 1111!", "a credit card number: 4111 1111 1111 1111"),
    ("5555555555554444", "a credit card number: 5555555555554444"),
    ("3782-822463-10005 is Amex", "a credit card number: 3782-822463-10005"),
    ("1234 4012 8888 8888 1881", "a credit card number: 4012 8888 8888 1881"),
    ("IBAN DE89 3704 0044 0532 0130 00 BIC COBADEFF", "an IBAN: DE89 3704 0044 0532 0130 00"),
    ("GB82WEST12345698765432", "an IBAN: GB82WEST12345698765432"),
    ("call +1 650-253-0000", "a phone number: +1 650-253-0000"),
    ("+49 (0)30 901820", "a phone number: +49 (0)30 901820"),
]
IMPERSONAL = [
    "In 1990-2000 it cost $1,234,567.89, or 10.000.000 EUR",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "+1 2 3 4 5 6 7 8 9 10",
    "Python 3.12.1, version 10.0.17763.1, v1.2.3.4, release 4.18.0.5, § 3.2.1.4, 1.2.3.4.5",
    "me@example.com, you@mail.example.org, @name, a@b, x = y @ z, joe@localhost",
    "127.0.0.1, 192.168.0.1, 10.1.2.3, 203.0.113.7, 999.1.1.1, 224.0.0.1",
    "a::b, std::cout, 12:30:45, 2001:db8::1, fe80::1, 00:1a:2b:3c:4d:5e",
    "4111 1111 1111 1112, 0000 0000 0000 0000, 1234567890123456, 0.4111111111111111, 4000000000000000",
    "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
    "DE89 3704 0044 0532 0130 01, AB12 CDEF, SHA256 ABCDEF0123456789",
    "650-253-0000 and (650) 253-0000 are written without a prefix",
    "2024-01-15T12:30:45+01:00 and 1700000000",
    "978-3-16-148410-0",
]


@pytest.mark.parametrize(("text", "reason"), PERSONAL)
def test_personal_data_goes(text, reason):
    assert why("personal_data", answered("ok", text)) == [f"the input has {reason}"]


@pytest.mark.parametrize("text", IMPERSONAL)
def test_numbers_that_are_nobodys_stay(text):
    assert why("personal_data", answered(text)) == [None]


def test_phone_numbers_as_they_are_written_in_a_country():
    american = ["650-253-0000", "(650) 253-0000", "my phone is 6502530000", "Tel: 6502530000"]
    found = why("personal_data", *map(task, american), personal_data={"region": "US"})
    assert [reason.split(": ")[-1] for reason in found] == ["650-253-0000", "(650) 253-0000", *["6502530000"] * 2]
    others = [
        "2147483648",
        "1 2 3 4 5 6 7 8 9 10",
        "in 1990-2000",
        "192.168.100.200",
        "3.14159265358979",
        "$6,502,530,000",
    ]
    assert why("personal_data", *map(task, others), personal_data={"region": "US"}) == [None] * 6
    assert why("personal_data", task("Ruf 030 901820 an"), personal_data={"region": "DE"}) != [None]
    with pytest.raises(ValueError, match=r"region is USA, .* two letters"):
        filters("personal_data", personal_data={"region": "USA"})


def test_kinds_of_personal_data_are_a_choice():
    text = task("ann@mail.ch or +1 650-253-0000")
    assert why("personal_data", text, personal_data={"kinds": ["phone"]}) == [
        "the instruction has a phone number: +1 650-253-0000"
    ]
    assert why("personal_data", text, personal_data={"kinds": ["iban", "credit_card"]}) == [None]


def test_long_texts_are_looked_at_quickly():
    long = ["a." * 50_000, "1234 " * 20_000, "AB12 " * 20_000, "a@" * 50_000, "abcd:" * 20_000, "1." * 50_000]
    assert why("personal_data", *map(answered, long)) == [None] * 6


# The pipeline


def test_filters_look_in_their_order_and_are_counted_in_it():
    short, both, colon = task("Draw it"), task("-Draw"), task("Name a bird of Peru.", "", "It is:")
    pipeline = filters("keywords", "first_character", "length", "trailing_colon")
    assert pipeline.filter([colon, both, short, task("-Name it")]) == []
    assert [(each.instruction, each.filter) for each in pipeline.removed] == [
        (colon.instruction, "trailing_colon"),
        ("-Draw", "keywords"),
        ("Draw it", "keywords"),
        ("-Name it", "first_character"),
    ]
    assert list(pipeline.counts().items()) == [
        ("removed_keywords", 2),
        ("removed_first_character", 1),
        ("removed_trailing_colon", 1),
    ]
    assert filters("length", "keywords").names == ["length", "keywords"]


def test_a_removal_says_what_why_and_where_it_was_from(tmp_path):
    pipeline = filters("length")
    removed, kept = Task.make("Too short", "a.jsonl", "in", output="out"), task("This is long enough.")
    assert pipeline.filter([removed, kept]) == [kept]
    assert pipeline.removed == [
        Removal(removed.id, "Too short", "in", "out", "a.jsonl", "length", "2 words, fewer than 4")
    ]
    StageFolder(tmp_path, ".").write("removed.jsonl", pipeline.removed)
    assert list(read_records(tmp_path / "removed.jsonl", Removal)) == pipeline.removed


def test_the_same_task_again_is_a_duplicate_of_what_was_there():
    pipeline = filters()
    first = task("Name a bird.", "of Peru", "Condor")
    assert (
        pipeline.filter([first, task("Name a bird.", "of Peru", "Inca tern"), task("Name a bird.", "of Chile")]) != []
    )
    [removal] = pipeline.removed
    assert (removal.filter, removal.neighbour_id, removal.neighbour, removal.similarity) == (
        "duplicate",
        first.instruction_id,
        "Name a bird.",
        1.0,
    )
    assert removal.output == "Inca tern"


def test_instances_of_an_instruction_share_its_verdict():
    good, bad = "Is this word a verb?", "Is it?"
    pipeline = filters("length", "novelty", "empty_output")
    tasks = [task(good, "run", "yes"), task(bad, "run", "yes"), task(good, "owl", ""), task(bad, "owl", "no"),
             task(good, "elk", "no")]  # fmt: skip
    assert pipeline.filter(tasks) == [tasks[0], tasks[4]]
    assert [(each.input, each.filter, each.detail) for each in pipeline.removed] == [
        ("run", "length", "2 words, fewer than 4"),
        ("owl", "empty_output", "the output is empty"),
        ("owl", "length", "2 words, fewer than 4"),
    ]


def test_text_filters_look_at_every_instance_and_at_what_has_no_output():
    pipeline = filters("empty_output", "toxicity")
    [clean] = pipeline.filter([task("Translate this word."), task("Translate this shit.")])
    tasks = [
        task(clean.instruction, "chat", "cat"),
        task(clean.instruction, "merde", "shit"),
        task(clean.instruction, "a"),
    ]
    assert pipeline.filter_instances(tasks[:2]) == tasks[:1]
    again = filters("toxicity")
    assert again.filter([tasks[1], *tasks, task(clean.instruction, "fucking")]) == [tasks[0], tasks[2]]
    assert pipeline.counts() == {"removed_toxicity": 2}
    assert again.counts() == {"removed_toxicity": 3}


def test_no_more_are_looked_at_than_are_wanted():
    pipeline = filters("length")
    tasks = [
        task(text)
        for text in ("Too short", "Name a bird of Peru", "Name a bird of Chile", "Short", "Name a bird of Uri")
    ]
    assert pipeline.filter(tasks, most=2) == tasks[1:3]
    assert [each.instruction for each in pipeline.removed] == ["Too short"]
    assert pipeline.filter(tasks[3:], most=0) == []


def test_what_was_admitted_and_not_used_is_recorded_and_stays_known():
    pipeline = filters("novelty")
    used, unused = pipeline.filter([task("Name a bird of Peru"), task("Draw a cat with hats")])
    pipeline.finish([task(used.instruction, "", "Condor")])
    [removal] = pipeline.removed
    assert (removal.id, removal.filter, removal.known) == (unused.id, "unused", True)
    assert reasons(pipeline, task("Draw a cat with hats!")) == ["0 of 3 runs of 3 words are new"]


def test_an_instruction_whose_instance_was_kept_was_used():
    pipeline = filters()
    assert pipeline.filter([task("Is it a bird?")]) != []
    kept = task("Is it a bird?", "owl", "yes")
    pipeline.finish([kept])
    assert pipeline.removed == []
    assert reasons(pipeline, kept)[0] is not None


def test_a_fresh_pool_is_empty():
    pipeline = filters("length")
    pipeline.add_known([task("Name a bird of Peru")])
    assert pipeline.fresh().filter([task("Name a bird of Peru")]) != []
    assert pipeline.filter([task("Name a bird of Peru")]) == []


SYSTEM = [{"role": "system", "content": "Be brief."}]
ITERATIONS = [
    [
        task("Name a bird of Peru", "", "Condor"),
        task("Is it a verb or not?", "run", "yes"),
        task("Tell me about the lakes of Bern", "", "Thun", context=SYSTEM),
        task("Draw", "a cat", "no"),
        task("List the kings of France in order", "", "..."),
    ],
    [
        task("Is it a verb or not?", "owl", "no"),
        task("Draw", "a dog", "no"),
        task("Tell me about the lakes of Bern", "", "Thun", context=SYSTEM),
        task("Tell me about the lakes of Bern", "", "Thun"),
        task("List the kings of France", "", "..."),
        task("List the queens of Spain in order", "", "..."),
    ],
]  # fmt: skip


def test_a_pool_read_from_records_decides_as_the_one_in_memory(tmp_path):
    names = ("length", "novelty", "contradiction")
    memory = filters(*names)
    first = memory.filter(ITERATIONS[0])
    kept = [first[0], first[1]]
    memory.finish(kept)
    folder = StageFolder(tmp_path, ".")
    folder.write("tasks.jsonl", kept)
    folder.write("removed.jsonl", memory.removed)
    assert [each.instruction for each in memory.removed if each.known] == [each.instruction for each in first[2:]]

    rebuilt = filters(*names)
    rebuilt.add_known(read_records(tmp_path / "tasks.jsonl", Task))
    rebuilt.restore(read_records(tmp_path / "removed.jsonl", Removal))
    memory.removed.clear()
    for pipeline in (memory, rebuilt):
        pipeline.add_known([task("Count the queens of Spain")])  # a source knows its seeds in each iteration
    assert memory.filter(ITERATIONS[1]) == rebuilt.filter(ITERATIONS[1]) == [ITERATIONS[1][5]]
    assert memory.removed == rebuilt.removed
    assert [each.filter for each in memory.removed] == ["novelty", "length", "duplicate", "novelty", "novelty"]


@pytest.mark.usefixtures("own_module")
def test_a_filter_of_ones_own():
    pipeline = filters("own_filters:Parity")
    assert pipeline.filter([answered("ab"), answered("abc", "x"), task("No output")]) != []
    assert [each.detail for each in pipeline.removed] == ["3 came"]
    assert pipeline.counts() == {"removed_own_filters:Parity": 1}


def test_an_unknown_filter_is_named():
    with pytest.raises(ValueError, match="no filter is called 'lenght'"):
        filters("lenght")


def test_filters_load_no_library_that_they_do_not_need():
    code = (
        "import sys; from selfreward.prompts.filters.base import Filters\n"
        "from selfreward.recipe.filter_settings import FilterSettings, PAPER_INSTANCES\n"
        "Filters(FilterSettings(), ['length', 'keywords', 'novelty', 'toxicity', *PAPER_INSTANCES, 'refusal'])\n"
        "print(sorted({'phonenumbers', 'stdnum', 'py3langid', 'torch', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
