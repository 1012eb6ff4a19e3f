"""The meta-judge: which judgements are compared, what a verdict weighs, and the judge pairs of a run."""

import asyncio
import json
import re
from dataclasses import replace

import pytest

import selfreward
from selfreward.engines import Completion
from selfreward.engines.scripted import ScriptedEngine
from selfreward.judges.additive import AdditiveJudge
from selfreward.judges.bradley_terry import strengths
from selfreward.judges.meta_judge import (
    Dispute,
    MetaJudge,
    higher_score_preferred,
    judge_pair,
    judgement_strengths,
    place_weights,
)
from selfreward.loop import perform
from selfreward.recipe.judge_settings import JudgeSettings, MetaSettings
from selfreward.records import Judgement, PreferencePair, Prompt, Response
from selfreward.runs import history
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.serving.engines import Engines
from selfreward.stages.meta import most_varied

PROMPT = Prompt.make([{"role": "user", "content": "What is {first}?"}], "test", reference="the true one")
RESPONSES = [Response(f"r{k}", PROMPT.id, k, f"answer {k}", "stop", 3, k, "M1") for k in range(3)]
ADDITIVE = AdditiveJudge(JudgeSettings())


def vote(response: str, score: float | None, text: str = "", number: int = 0) -> Judgement:
    name, error = f"{response}:{number}", "no_score" if score is None else None
    text = f"{text}\nScore: {score}"
    return Judgement(name, PROMPT.id, [response], "additive", number, text, score, error, 5, 0, "M1")


def votes(**scores: list[float | None]) -> dict[str, list[Judgement]]:
    return {name: [vote(name, s, number=n) for n, s in enumerate(each)] for name, each in scores.items()}


def verdict(first: str, second: str, preference: str | None) -> Judgement:
    error = "no_verdict" if preference is None else None
    subjects = [first, second]
    return Judgement(f"{first}-{second}", PROMPT.id, subjects, "meta", 0, "", None, error, 0, 0, "M1", preference)


def dispute(*judgements: Judgement) -> Dispute:
    return Dispute(PROMPT, RESPONSES[0], list(judgements), 1.0)


# Which judgements


def test_the_response_whose_scores_vary_most_is_taken():
    found = Dispute.of(PROMPT, RESPONSES, votes(r0=[3, 3, 4], r1=[1, 5, None], r2=[2, 4, 3]))
    assert (found.response.id, found.variance) == ("r1", 4.0)
    assert [j.id for j in found.judgements] == ["r1:0", "r1:1"]
    assert found.is_open


def test_equal_texts_are_compared_once_and_all_their_votes_count():
    found = Dispute.of(PROMPT, RESPONSES, votes(r0=[1, 1, 4, 4, 4]))
    assert ([j.id for j in found.judgements], found.variance) == (["r0:0", "r0:2"], pytest.approx(2.16))


def test_without_variance_unlike_judgements_are_enough():
    same = {"r0": [vote("r0", 3, "a"), vote("r0", 3, "a", 1)], "r1": [vote("r1", 3, "a"), vote("r1", 3, "b", 1)]}
    assert Dispute.of(PROMPT, RESPONSES, same).response.id == "r1"
    for closed in (votes(r0=[3, 3]), votes(r0=[3]), votes(r0=[None, None]), {}):
        assert not Dispute.of(PROMPT, RESPONSES, closed).is_open


def test_the_prompts_of_greatest_variance_come_first():
    two = [vote("r0", 1), vote("r0", 5, number=1)]
    disputes = [replace(dispute(*two), variance=v) for v in (1.0, 4.0, 0.0, 4.0)]
    disputes.append(replace(dispute(two[0]), variance=9.0))  # nothing to compare
    for num, places in {None: [0, 1, 2, 3], 1: [1], 2: [1, 3], 3: [0, 1, 3], 99: [0, 1, 2, 3]}.items():
        assert most_varied(disputes, num) == [disputes[place] for place in places]


# Comparing


class Picker:
    """An engine that prefers the judgement in whose text a word stands."""

    model = "/runs/x/iter_1/model"

    def __init__(self, word: str) -> None:
        self.word, self.asked = word, []

    async def generate(self, messages, params, seeds):
        text = messages[0]["content"]
        self.asked += [(text, params, seed) for seed in seeds]
        first, second = re.findall(r"<judgement>\n(.*?)\n</judgement>", text, re.DOTALL)
        said = "A" if self.word in first else "B" if self.word in second else "tie"
        return [Completion(f"So.\nVerdict: {said}", "stop", 4) for _ in seeds]


def test_each_two_judgements_are_compared_in_both_orders():
    three = dispute(vote("r0", 1, "good"), vote("r0", 2, "bad", 1), vote("r0", 3, "poor", 2))
    engine = Picker("good")
    settings = MetaSettings(temperature=0.5, max_tokens=77)
    found = asyncio.run(MetaJudge(settings, JudgeSettings()).compare(engine, three, 1, "iter_1/model"))
    assert [(*j.subject_ids, j.preference) for j in found] == [
        ("r0:0", "r0:1", "first"),
        ("r0:1", "r0:0", "second"),
        ("r0:0", "r0:2", "first"),
        ("r0:2", "r0:0", "second"),
        ("r0:1", "r0:2", "tie"),
        ("r0:2", "r0:1", "tie"),
    ]
    assert {(j.judge, j.model, j.prompt_id) for j in found} == {("meta", "iter_1/model", PROMPT.id)}
    assert len({j.id for j in found}) == 6
    assert {(params.temperature, params.max_tokens) for _, params, _ in engine.asked} == {(0.5, 77)}


def test_the_meta_judge_sees_what_the_judge_saw():
    two = dispute(vote("r0", 1, "see {second}"), vote("r0", 2, "bad", 1))
    for reference, shown in (("none", False), ("prompt", True)):
        judge = JudgeSettings(reference=reference, max_score=9)
        [message] = MetaJudge(MetaSettings(), judge).messages(two, *two.judgements)
        text = message["content"]
        assert ("the true one" in text) == shown
        assert "from 0 to 9 points" in text
        assert "<question>\nWhat is {first}?\n</question>" in text
        assert text.index("<judgement>\nsee {second}\nScore: 1\n") < text.index("<judgement>\nbad\nScore: 2\n")


def test_a_template_of_the_recipe(tmp_path):
    template = tmp_path / "meta.txt"
    template.write_text("{prompt}|{response}|{first}|{second}")
    two = dispute(vote("r0", 1, "x"), vote("r0", 2, "y", 1))
    [message] = MetaJudge(MetaSettings(template=template), JudgeSettings()).messages(two, *two.judgements)
    assert message["content"] == "What is {first}?|answer 0|x\nScore: 1|y\nScore: 2"
    template.write_text("{prompt} {first} {second}")
    with pytest.raises(ValueError, match=r"meta\.txt has no \{response\}"):
        MetaJudge(MetaSettings(template=template), JudgeSettings())


# Weights and strengths


def test_the_preferred_place_weighs_less_by_hand():
    found = [verdict("a", "b", "first")] * 6 + [verdict("b", "a", "second")] * 2 + [verdict("a", "b", "tie")] * 5
    assert place_weights(found) == (2 / 8, 6 / 8)
    # So both places have 1.5 wins in all.
    assert place_weights([verdict("a", "b", "tie"), verdict("a", "b", None)]) == (0.5, 0.5)


def test_strengths_by_weighted_wins_by_hand():
    found = [
        verdict("a", "b", "first"),  # a: 0.25
        verdict("b", "a", "second"),  # a: 0.75
        verdict("b", "c", "second"),  # c: 0.75
        verdict("c", "b", "tie"),  # 0.25 each
        verdict("a", "d", None),
    ]
    expected = strengths([[0, 1.0, 0], [0, 0, 0.25], [0, 1.0, 0]])
    assert judgement_strengths(found, (0.25, 0.75)) == dict(zip("abc", expected, strict=True))


def test_a_judge_that_always_takes_the_first_place_says_nothing():
    found = [verdict("a", "b", "first"), verdict("b", "a", "first")]
    assert place_weights(found) == (0.0, 1.0)
    assert judgement_strengths(found, place_weights(found)) == {"a": 0.0, "b": 0.0}


def test_how_often_the_higher_score_wins_by_hand():
    scores = {"a": 5.0, "b": 2.0, "c": 2.0}
    found = [
        verdict("a", "b", "first"),  # the higher one
        verdict("b", "a", "first"),  # the lower one
        verdict("c", "a", "second"),  # the higher one
        verdict("b", "c", "first"),  # equal scores
        verdict("a", "c", "tie"),
        verdict("a", "c", None),
    ]
    assert higher_score_preferred(found, scores) == pytest.approx(2 / 3)
    assert higher_score_preferred(found[3:], scores) is None


# Pairs


def test_the_best_judgement_against_the_worst():
    judgements = [vote("r0", s, number=n) for n, s in enumerate((1, 2, 3))]
    strong = {"r0:0": -1.0, "r0:1": 1.5, "r0:2": -0.5}
    [pair] = judge_pair(dispute(*judgements), strong, ADDITIVE, MetaSettings())
    assert pair.prompt == ADDITIVE.messages("What is {first}?", "answer 0")
    assert pair.chosen == [{"role": "assistant", "content": "\nScore: 2"}]
    assert pair.rejected == [{"role": "assistant", "content": "\nScore: 1"}]
    assert (pair.prompt_id, pair.chosen_id, pair.rejected_id) == (PROMPT.id, "r0:1", "r0:0")
    assert (pair.score_chosen, pair.score_rejected) == (1.5, -1.0)


def test_the_prompts_own_reference_is_in_the_pair():
    judge = AdditiveJudge(JudgeSettings(reference="prompt"))
    two = dispute(vote("r0", 1), vote("r0", 2, number=1))
    [pair] = judge_pair(two, {"r0:0": 1.0, "r0:1": 0.0}, judge, MetaSettings())
    assert "<reference>\nthe true one\n</reference>" in pair.prompt[0]["content"]


@pytest.mark.parametrize(
    ("strong", "limit", "reason"),
    [
        ({}, 1100, "no_verdict"),
        ({"r0:0": 0.0, "r0:1": 0.0}, 1100, "tie"),
        ({"r0:0": 1.0, "r0:1": -1.0}, 18, "over_long"),
        ({"r0:0": 1.0, "r0:1": -1.0}, 19, None),
        ({"r0:0": -1.0, "r0:1": 1.0}, 18, None),
    ],
)
def test_why_there_is_no_judge_pair(strong, limit, reason):
    two = dispute(vote("r0", 1, "ten letters"[:10]), vote("r0", 2, number=1))
    assert len(two.judgements[0].raw_text) == 19
    found = judge_pair(two, strong, ADDITIVE, MetaSettings(max_characters=limit))
    assert (None if isinstance(found, list) else found.reason) == reason


def test_one_judgement_makes_no_pair():
    found = judge_pair(dispute(vote("r0", 1)), {}, ADDITIVE, MetaSettings())
    assert found.reason == "same_judgements"


# In a run


class Council(ScriptedEngine):
    """Judges score by their seed, and the meta-judge prefers the lower score."""

    @staticmethod
    def script(model: str, text: str, seed: int) -> str:
        if text.startswith("Meta"):
            first, second = re.findall(r"Score: (\d)", text)
            return "no idea" if "Name two" in text else f"Verdict: {'A' if first < second else 'B'}"
        if text.startswith("Review"):
            long = " very" * 300 if "Name three" in text else ""
            hidden = " <|end|>" if "Name four" in text else ""
            return f"I feel{long}{hidden}\nScore: {3 if 'Name one' in text else seed % 6}"
        return " ".join(["fox"] * (seed % 5 + 1))


class Partial(Council):
    """The meta-judge takes whatever stands first."""

    @staticmethod
    def script(model: str, text: str, seed: int) -> str:
        return "Verdict: A" if text.startswith("Meta") else Council.script(model, text, seed)


TASKS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]


@pytest.fixture
def recipe_file(tmp_path, tiny_random_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"prompt": f"Name {n} animals."}) + "\n" for n in TASKS]
    (tmp_path / "prompts.jsonl").write_text("".join(rows))
    (tmp_path / "judge.txt").write_text("Review this answer.\nTask: {prompt}\nAnswer: {response}")
    (tmp_path / "meta.txt").write_text("Meta\n{prompt}\n{response}\nOne: {first}\nTwo: {second}")
    path = tmp_path / "run.yaml"
    path.write_text(f"""
name: test
run_dir: {tmp_path}/runs
iterations: 1
model: {{path: {tiny_random_model}, dtype: float32}}
prompts: {{path: prompts.jsonl}}
responses: {{n: 3}}
judge: {{template: judge.txt, votes: 4}}
meta: {{iterations: [1], template: meta.txt, max_characters: 1000}}
engine: {{name: "test_meta:Council"}}
""")
    return path


def up_to_meta(path, *overrides: str) -> Run:
    run = Run.create(selfreward.load_recipe(path, list(overrides)))
    with Engines(run) as engines:
        for name in ("prompts", "responses", "meta"):
            perform(run, Step(name, 1), engines)
    return run


def test_judge_pairs_of_a_run(recipe_file):
    run = up_to_meta(recipe_file)
    judgements = {j.id: j for j in run.records("judgements", 1, Judgement)}
    verdicts, pairs = run.records("meta", 1, Judgement), run.records("judge_pairs", 1, PreferencePair)
    prompts = {p.id: p.messages[0]["content"] for p in run.records("prompts", 1, Prompt)}
    assert {prompts[pair.prompt_id].split()[1] for pair in pairs} == {"five", "six", "seven", "eight"}
    for pair in pairs:
        better, worse = judgements[pair.chosen_id], judgements[pair.rejected_id]
        assert better.subject_ids == worse.subject_ids
        assert better.score < worse.score
        assert (pair.chosen[0]["content"], pair.rejected[0]["content"]) == (better.raw_text, worse.raw_text)
        assert pair.prompt[0]["content"].startswith(f"Review this answer.\nTask: {prompts[pair.prompt_id]}\nAnswer: ")
        assert pair.score_chosen > pair.score_rejected
    assert {v.judge for v in verdicts} == {"meta"}
    assert {v.model for v in verdicts} == {"M0"}
    summary = run.stage("meta", 1).summary
    reasons = {name: count for name, count in summary.items() if name.startswith("rejected_")}
    assert reasons == {
        "rejected_control_tokens": 1,
        "rejected_no_verdict": 1,
        "rejected_over_long": 1,
        "rejected_same_judgements": 1,
    }
    assert summary["judge_pairs"] == len(pairs) == 4
    assert summary["prompts_rejected"] == 4
    assert summary["comparisons"] == len(verdicts)
    assert summary["error_no_verdict"] == sum(prompts[v.prompt_id] == "Name two animals." for v in verdicts)
    assert (summary["higher_score_preferred"], summary["position_consistency"]) == (0.0, 1.0)
    assert summary["first_preferred"] == 0.5


def test_the_least_varied_prompts_are_left_out(recipe_file):
    everything = up_to_meta(recipe_file, "name=all")
    variances = {}
    for pair in everything.records("judge_pairs", 1, PreferencePair):
        subject = next(j for j in everything.records("judgements", 1, Judgement) if j.id == pair.chosen_id).subject_ids
        scores = [j.score for j in everything.records("judgements", 1, Judgement) if j.subject_ids == subject]
        mean = sum(scores) / len(scores)
        variances[pair.prompt_id] = sum((s - mean) ** 2 for s in scores)
    limited = up_to_meta(recipe_file, "name=some", "meta.num=5")
    summary = limited.stage("meta", 1).summary
    assert summary["rejected_beyond_num"] == 2  # of seven with unlike judgements
    kept = [pair.prompt_id for pair in limited.records("judge_pairs", 1, PreferencePair)]
    lost = [variances[name] for name in variances if name not in kept]
    assert all(variances[name] >= each for name in kept for each in lost)
    assert summary["judge_pairs"] + summary["prompts_rejected"] == 8


def test_no_judge_pair_is_no_error(recipe_file):
    run = up_to_meta(recipe_file, "engine.name=test_meta:Partial")
    summary = run.stage("meta", 1).summary
    assert (summary["judge_pairs"], summary["rejected_tie"], summary["first_preferred"]) == (0, 7, 1.0)
    assert run.records("judge_pairs", 1, PreferencePair) == []


def test_too_long_to_train_is_no_judge_pair(recipe_file):
    run = up_to_meta(recipe_file, "training.dpo.max_length=8")
    summary = run.stage("meta", 1).summary
    assert (summary["judge_pairs"], summary["rejected_too_long_to_train"]) == (0, 4)


def test_with_nothing_to_compare_nothing_is_asked(recipe_file):
    run = up_to_meta(recipe_file, "engine.name=scripts:Ties")
    summary = run.stage("meta", 1).summary
    assert (summary["judge_pairs"], summary["comparisons"], summary["rejected_same_judgements"]) == (0, 0, 8)


def test_a_stage_that_the_recipe_no_longer_has_is_set_aside_with_what_is_made_anew(recipe_file):
    run = up_to_meta(recipe_file)
    aside = history.remake(selfreward.load_recipe(recipe_file, ["meta=null", "judge.votes=5"]))
    assert sorted(path.name for path in (aside / "iter_1").iterdir()) == ["judgements", "meta"]
    assert run.stage("responses", 1).done
    assert not run.stage("meta", 1).path.exists()
