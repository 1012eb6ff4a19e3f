"""The pairwise judge: verdicts in both orders, who meets whom, and strengths from wins."""

import asyncio
import json
import math
import random
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
from scipy.optimize import minimize

import selfreward
from selfreward.engines import Completion
from selfreward.engines.scripted import ScriptedEngine
from selfreward.judges.bradley_terry import strengths, strengths_by_id
from selfreward.judges.matches import Swiss, each_two, random_rounds
from selfreward.judges.pairwise import PairwiseJudge
from selfreward.judges.verdicts import position_figures, read_verdict
from selfreward.loop import perform
from selfreward.recipe.judge_settings import JudgeSettings, PairwiseSettings
from selfreward.records import Graded, Judgement, PreferencePair, Prompt, Response
from selfreward.runs.plan import plan
from selfreward.runs.run import Run
from selfreward.serving.engines import Engines

PROMPT = Prompt.make([{"role": "user", "content": "Which is {first}?"}], "test", reference="the true one")


def judge(votes: int = 1, template=None, **how) -> PairwiseJudge:
    settings = JudgeSettings(name="pairwise", votes=votes, template=template, pairwise=PairwiseSettings(**how))
    return PairwiseJudge(settings)


def responses(*texts: str) -> list[Response]:
    return [Response(f"r{k}", PROMPT.id, k, text, "stop", 3, k, "M1") for k, text in enumerate(texts)]


def verdict(first: str, second: str, preference: str | None, vote: int = 0, **figures: float) -> Judgement:
    error = "no_verdict" if preference is None else None
    name = f"{first}-{second}-{vote}"
    return Judgement(
        name, "p", [first, second], "pairwise", vote, "", None, error, 0, 0, "M1", preference, figures=figures
    )


class Reader:
    """An engine that sees the two texts of a comparison, and answers by ``rule(first, second)``."""

    model = "M1"

    def __init__(self, rule, slow: bool = False) -> None:
        self.rule, self.slow, self.asked = rule, slow, []

    async def generate(self, messages, params, seeds):
        return [Completion(f"I see.\nVerdict: {await self._answer(messages, seed)}", "stop", 5) for seed in seeds]

    async def option_probs(self, messages, prefix, options):
        answer = await self._answer(messages, prefix)
        return answer if answer is None else list(answer)

    async def _answer(self, messages, seed):
        if self.slow:
            await asyncio.sleep(random.SystemRandom().uniform(0, 0.01))
        first, second = (part.split("\n</response>")[0] for part in messages[0]["content"].split("<response>\n")[1:])
        self.asked.append((first, second, seed))
        return self.rule(first, second)


def longer(first: str, second: str) -> str:
    return "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B"


def compare(engine, settings: PairwiseJudge, *texts: str, seed: int = 1) -> list[Judgement]:
    return asyncio.run(settings.judge(engine, PROMPT, responses(*texts), seed))


# Bradley-Terry


@pytest.mark.parametrize(("prior", "strength"), [(0.2, math.log(3)), (0.6, math.log(2))])
def test_one_win_by_hand(prior, strength):
    """With x = exp(strength) the slope is 0 where 1 / (1 + x^2) = prior (x - 1) / (x + 1): at 3 for 0.2, 2 for 0.6."""
    assert strengths([[0, 1], [0, 0]], prior) == pytest.approx([strength, -strength], abs=1e-6)


def test_what_is_level_is_exactly_level():
    assert strengths([]) == []
    assert strengths([[0]]) == [0.0]
    assert strengths([[0, 2.5], [2.5, 0]]) == [0.0, 0.0]
    circle = [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert strengths(circle) == [0.0, 0.0, 0.0]
    # Two that beat the third alike have one strength, in whatever order the fractions were added up.
    third = 0.1 + 0.2 + 0.3
    best, equal, worst = strengths([[0, 0.5, third], [0.5, 0, 0.3 + 0.2 + 0.1], [0, 0, 0]])
    assert best == equal > worst


def test_strengths_are_those_of_greatest_likelihood():
    rng = random.Random(0)
    for _ in range(20):
        num, prior = rng.randint(2, 7), rng.choice([0.05, 0.1, 1.0])
        wins = [[rng.choice([0, 0, rng.random() * 3]) if i != j else 0.0 for j in range(num)] for i in range(num)]

        def loss(s, num=num, wins=wins, prior=prior):
            matches = sum(wins[i][j] * math.log1p(math.exp(s[j] - s[i])) for i in range(num) for j in range(num))
            return matches + prior * sum(math.log1p(math.exp(x)) + math.log1p(math.exp(-x)) for x in s)

        best = minimize(loss, [0.0] * num, method="BFGS", options={"gtol": 1e-8}).x
        assert strengths(wins, prior) == pytest.approx(best - best.mean(), abs=1e-4)


def test_the_undefeated_are_finite_and_ranked():
    found = strengths([[0, 9, 9, 9], [0, 0, 9, 9], [0, 0, 0, 9], [0, 0, 0, 0]])
    assert found == sorted(found, reverse=True)
    assert max(map(abs, found)) < 20
    assert sum(found) == pytest.approx(0, abs=1e-5)


def test_ids_may_come_in_any_order():
    wins = {("a", "b"): 1.0, ("b", "c"): 0.75, ("c", "b"): 0.25}
    backwards = dict(reversed(wins.items()))
    assert strengths_by_id(wins) == strengths_by_id(backwards)
    assert max(strengths_by_id(wins), key=strengths_by_id(wins).__getitem__) == "a"


# Reading a verdict


@pytest.mark.parametrize(
    ("text", "preference"),
    [
        ("B lacks facts.\nVerdict: A", "first"),
        ("Verdict: B", "second"),
        ("**Verdict:** b.", "second"),
        ("- Final verdict: [[A]]", "first"),
        ("Verdict: **tie**", "tie"),
        ("Verdict: A\nOn second thoughts:\nVerdict: B", "second"),
    ],
)
def test_the_last_verdict_is_read(text, preference):
    assert read_verdict(text, ("A", "B")) == (preference, None)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "no_verdict"),
        ("A is better", "no_verdict"),
        ("My verdict: A", "no_verdict"),
        ("Verdict: A or B", "malformed_verdict"),
        ("Verdict: C", "malformed_verdict"),
        ("Verdict:\nA", "malformed_verdict"),
        ("Verdict: A\nVerdict: both", "malformed_verdict"),
        ("Verdict: first", "malformed_verdict"),
    ],
)
def test_what_is_no_verdict_is_an_error(text, error):
    assert read_verdict(text, ("A", "B")) == (None, error)


def test_labels_of_any_word():
    assert read_verdict("Verdict: _one_", ("_one_", "two")) == ("first", None)
    assert read_verdict("Verdict: _One", ("one", "two")) == ("first", None)


# Both orders


def test_every_two_are_compared_in_both_orders():
    engine = Reader(longer)
    found = compare(engine, judge(votes=2), "a", "bbb", "cc")
    assert [(*j.subject_ids, j.vote, j.preference) for j in found] == [
        ("r0", "r1", 0, "second"),
        ("r0", "r1", 1, "second"),
        ("r1", "r0", 0, "first"),
        ("r1", "r0", 1, "first"),
        ("r0", "r2", 0, "second"),
        ("r0", "r2", 1, "second"),
        ("r2", "r0", 0, "first"),
        ("r2", "r0", 1, "first"),
        ("r1", "r2", 0, "first"),
        ("r1", "r2", 1, "first"),
        ("r2", "r1", 0, "second"),
        ("r2", "r1", 1, "second"),
    ]
    assert len({j.id for j in found}) == 12
    assert len({j.seed for j in found}) == 6
    assert {seed for a, b, seed in engine.asked if (a, b) == ("a", "bbb")} == {j.seed for j in found[2:4]}
    scores = judge().scores(found)
    assert scores["r1"] > scores["r2"] > scores["r0"]


def test_equal_texts_cannot_beat_each_other():
    """Whatever a judge says of two equal texts, it says the same with the two swapped."""
    found = compare(Reader(lambda first, second: "A"), judge(votes=3), "same", "same")
    assert judge(disagreement="both").scores(found) == {"r0": 0.0, "r1": 0.0}


# One match: the verdicts with r0 first, and with r1 first; then r0's share of it by each rule.
ONE_MATCH = [
    (["first"], ["second"], 1.0, 1.0, 1.0),
    (["second"], ["first"], 0.0, 0.0, 0.0),
    (["first"], ["first"], 0.5, 0.5, None),
    (["tie"], ["tie"], 0.5, 0.5, 0.5),
    # A tie names nobody, so the orders don't name different winners.
    (["first"], ["tie"], 0.75, 0.75, 0.75),
    (["first", "first", "second"], ["second", "second", "second"], 5 / 6, 5 / 6, 5 / 6),
    (["first", "first", "second"], ["first", "first", "first"], 1 / 3, 0.5, None),
    # What can't be read has no say.
    (["first", None], ["second", None], 1.0, 1.0, 1.0),
    # One order alone would count the bias of its first place.
    (["first"], [None], None, None, None),
    ([None], [None], None, None, None),
]


@pytest.mark.parametrize(("forward", "backward", "both", "tie", "drop"), ONE_MATCH)
def test_a_match_by_each_rule(forward, backward, both, tie, drop):
    found = [verdict("r0", "r1", p, vote) for vote, p in enumerate(forward)]
    found += [verdict("r1", "r0", p, vote) for vote, p in enumerate(backward)]
    for rule, share in {"both": both, "tie": tie, "drop": drop}.items():
        scores = judge(votes=3, disagreement=rule).scores(found)
        expected = (
            {} if share is None else dict(zip(("r0", "r1"), strengths([[0, share], [1 - share, 0]]), strict=True))
        )
        assert scores == expected


def test_strengths_are_among_the_responses_to_one_prompt():
    mine = [verdict("r0", "r1", "first"), verdict("r1", "r0", "second")]
    other = [replace(j, prompt_id="q", subject_ids=[f"q{s}" for s in j.subject_ids]) for j in mine]
    scores = judge().scores(mine + other)
    assert scores["r0"] == scores["qr0"] == -scores["r1"] > 0
    assert judge().scores(mine) == {name: scores[name] for name in ("r0", "r1")}


def test_scores_do_not_depend_on_the_order_of_the_records():
    rng = random.Random(0)
    found = [
        verdict(f"r{a}", f"r{b}", rng.choice(["first", "second", "tie", None]), vote)
        for a in range(6)
        for b in range(6)
        if a != b
        for vote in range(3)
    ]
    scores = [judge(votes=3, disagreement=rule).scores(found) for rule in ("both", "tie", "drop")]
    for _ in range(5):
        rng.shuffle(found)
        assert [judge(votes=3, disagreement=rule).scores(found) for rule in ("both", "tie", "drop")] == scores


def test_how_far_verdicts_depend_on_the_place_by_hand():
    found = [
        *(verdict("a", "b", "first"), verdict("b", "a", "second")),  # a twice: consistent
        *(verdict("a", "c", "first"), verdict("c", "a", "first")),  # the first place twice
        *(verdict("b", "c", "tie"), verdict("c", "b", "tie")),  # consistent
        *(verdict("a", "d", "tie"), verdict("d", "a", "first")),  # not
        *(verdict("b", "d", "first"), verdict("d", "b", None)),  # no match
    ]
    assert position_figures(found) == {
        "position_consistency": 2 / 4,
        "first_preferred": 5 / 6,
        "tie_rate": pytest.approx(3 / 9),
    }


def test_each_judge_has_its_own_matches():
    mine = [verdict("a", "b", "first"), verdict("b", "a", "second")]
    other = [replace(verdict("a", "b", "second"), judge="other"), replace(verdict("b", "a", "second"), judge="other")]
    assert position_figures(mine + other)["position_consistency"] == 0.5


def test_scores_of_single_responses_have_no_places():
    alone = Judgement("j", "p", ["r0"], "additive", 0, "", 4.0, None, 0, 0, "M1")
    assert position_figures([alone]) == {}
    unread = position_figures([verdict("a", "b", None), verdict("b", "a", None)])
    assert unread == {"position_consistency": None, "first_preferred": None, "tie_rate": None}


# Without thinking


def test_chances_are_compared_in_one_pass_an_order():
    engine = Reader(lambda first, second: {("x", "y"): (0.6, 0.2), ("y", "x"): (0.25, 0.25)}[first, second])
    found = compare(engine, judge(think=False), "x", "y")
    assert [seed for *_, seed in engine.asked] == ["", ""]
    assert [(j.preference, j.num_tokens, j.figures) for j in found] == [
        ("first", 0, {"mass": pytest.approx(0.8), "chance_first": pytest.approx(0.75)}),
        ("tie", 0, {"mass": 0.5, "chance_first": 0.5}),
    ]
    share = (0.75 + 0.5) / 2
    assert list(judge(think=False).scores(found).values()) == strengths([[0, share], [1 - share, 0]])
    # By the other rules, verdicts count whole.
    assert list(judge(think=False, disagreement="tie").scores(found).values()) == strengths([[0, 0.75], [0.25, 0]])


@pytest.mark.parametrize(("probs", "error"), [((0.0, 0.0), "no_mass"), (None, "prompt_too_long")])
def test_chances_that_say_nothing_are_errors(probs, error):
    found = compare(Reader(lambda first, second: probs), judge(think=False), "x", "y")
    assert [j.error for j in found] == [error, error]
    assert judge(think=False).scores(found) == {}


# Who meets whom


def test_random_rounds_have_everybody_once_and_nobody_twice():
    for num in range(2, 10):
        most = num - 1 if num % 2 == 0 else num
        assert sorted(random_rounds(num, 99, seed=1)) == each_two(num)
        for rounds in range(1, most + 1):
            met = random_rounds(num, rounds, seed=rounds)
            assert len(met) == len(set(met)) == rounds * (num // 2)
            games = Counter(player for meeting in met for player in meeting)
            assert min(games[player] for player in range(num)) >= rounds - num % 2
    assert random_rounds(6, 2, seed=1) == random_rounds(6, 2, seed=1) != random_rounds(6, 2, seed=2)
    assert random_rounds(1, 3, seed=1) == random_rounds(0, 3, seed=1) == []


@pytest.mark.parametrize("num", range(9))
def test_swiss_rounds_repeat_nothing_and_spread_the_byes(num):
    rng = random.Random(num)
    swiss, met = Swiss(num, seed=num), []
    strong = [rng.random() for _ in range(num)]
    for round_ in range(num // 2):
        meetings = swiss.next(strong)
        players = [player for meeting in meetings for player in meeting]
        assert len(players) == len(set(players)) == num - num % 2, round_
        met += meetings
    assert len(met) == len(set(met))
    games = Counter(player for meeting in met for player in meeting)
    assert min((games[player] for player in range(num)), default=0) >= num // 2 - num % 2


def test_swiss_rounds_end_when_all_have_met():
    swiss, met = Swiss(5, seed=0), []
    while meetings := swiss.next([0.0, 1.0, 2.0, 3.0, 4.0]):
        met += meetings
    assert sorted(met) == each_two(5)


def test_those_of_like_strength_meet():
    """Against all matchings of six: the least sum of differences, without what has been."""
    matchings = {
        tuple(sorted([a, b, c]))
        for a, b, c in combinations(each_two(6), 3)
        if len({player for meeting in (a, b, c) for player in meeting}) == 6
    }
    assert len(matchings) == 15
    rng = random.Random(0)
    for seed in range(50):
        swiss = Swiss(6, seed)
        met, strong = set(swiss.next([0.0] * 6)), [round(rng.gauss(0, 1), 3) for _ in range(6)]
        cost = {m: sum(abs(strong[a] - strong[b]) for a, b in m) for m in matchings if not met & set(m)}
        assert cost[tuple(swiss.next(strong))] == pytest.approx(min(cost.values()))


def test_a_weak_one_sits_out_and_the_first_round_is_the_seeds():
    swiss = Swiss(5, seed=3)
    first = {player for meeting in swiss.next([0.0] * 5) for player in meeting}
    second = {player for meeting in swiss.next([4.0, 3.0, 2.0, 1.0, 0.0]) for player in meeting}
    weakest = max(first)
    assert set(range(5)) - second == {weakest}
    assert len({tuple(Swiss(8, seed).next([])) for seed in range(20)}) > 10


def test_nobody_sits_out_twice_before_all_others_have():
    for seed in range(20):
        swiss, games = Swiss(5, seed), Counter()
        for _ in range(3):
            games.update(player for meeting in swiss.next([0.0, 9.0, 9.0, 9.0, 9.0]) for player in meeting)
        assert sorted(games.values()) == [2, 2, 2, 3, 3]


def test_the_winners_of_a_swiss_round_meet():
    engine = Reader(longer)
    found = compare(engine, judge(matches="swiss", rounds=2), *("a" * n for n in (1, 2, 3, 4)))
    first, second = found[:4], found[4:]
    won = {j.subject_ids[0] if j.preference == "first" else j.subject_ids[1] for j in first}
    assert len(won) == 2
    assert {frozenset(j.subject_ids) for j in second} == {frozenset(won), frozenset({"r0", "r1", "r2", "r3"} - won)}


@pytest.mark.parametrize("matches", ["all", "random", "swiss"])
def test_the_same_is_asked_and_found_whatever_answers_first(matches):
    texts = ["a" * n for n in (3, 1, 4, 1, 5, 9, 2)]
    found = [compare(Reader(longer, slow), judge(2, matches=matches), *texts) for slow in (False, True, True)]
    assert found[0] == found[1] == found[2]
    others = compare(Reader(longer), judge(2, matches=matches), *texts, seed=2)
    assert {tuple(j.subject_ids) for j in others} != {tuple(j.subject_ids) for j in found[0]} or matches == "all"


@pytest.mark.parametrize("matches", ["all", "random", "swiss"])
@pytest.mark.parametrize("num", [0, 1])
def test_one_response_meets_nobody(matches, num):
    assert compare(Reader(longer), judge(matches=matches), *["a"] * num) == []
    assert judge().scores([]) == {}


# The prompt


def test_the_two_stand_under_their_labels():
    [message] = judge(labels=["One", "Two"]).messages("What is {second}?", "I am {first}", "me too", "none")
    text = message["content"]
    assert text.index("Response One:\n<response>\nI am {first}\n") < text.index("Response Two:\n<response>\nme too\n")
    assert text.endswith("Verdict: One\nVerdict: Two\nVerdict: tie")
    assert "criteria" not in text
    assert "reference" not in text
    [message] = judge(think=False).messages("P", "x", "y")
    assert message["content"].endswith("Answer with A or B alone.")


@pytest.mark.parametrize("think", [True, False])
def test_criteria_and_a_reference_stand_in_the_prompt(tmp_path, think):
    criteria = tmp_path / "criteria.yaml"
    criteria.write_text("- {name: brevity, description: No word too many.}")
    how = PairwiseSettings(think=think)
    settings = JudgeSettings(name="pairwise", criteria=criteria, reference="prompt", pairwise=how)
    [message] = PairwiseJudge(settings).messages("P", "x", "y", "the true one")
    assert "<criteria>\nbrevity: No word too many.\n</criteria>" in message["content"]
    assert "<reference>\nthe true one\n</reference>" in message["content"]


def test_the_reference_is_shown_and_kept():
    settings = JudgeSettings(name="pairwise", votes=1, reference="prompt")
    found = compare(Reader(longer), PairwiseJudge(settings), "a", "bb")
    assert [j.reference for j in found] == ["the true one"] * 2


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("{prompt} {first}", {}, r"has no \{second\}"),
        ("{prompt} {first} {second}", {"reference": "prompt"}, r"has no \{reference\}"),
    ],
)
def test_a_template_without_its_places_is_refused(tmp_path, text, settings, message):
    (tmp_path / "judge.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        PairwiseJudge(JudgeSettings(name="pairwise", template=tmp_path / "judge.txt", **settings))


def test_labels_and_votes_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="tie is the verdict for neither"):
        judge(labels=["Tie", "B"])
    with pytest.raises(ValueError, match="votes is 2"):
        judge(votes=2, think=False)


# Judging data


def graded(*scores: int, prompt: str = "P") -> list[Graded]:
    return [Graded(prompt, f"{prompt} {n} {score}", f"ok\nScore: {score}") for n, score in enumerate(scores)]


@pytest.mark.parametrize(("think", "verdicts"), [(True, ["Verdict: A", "Verdict: B"]), (False, ["A", "B"])])
def test_graded_responses_become_comparisons(think, verdicts):
    rows = graded(2, 2, 5, 3)
    examples = judge(think=think).examples([rows[0], *graded(1, prompt="Q"), *rows[1:]])
    best_first, best_last = ("P 2 5", "P 1 2"), ("P 1 2", "P 2 5")
    expected = [(*best_last, 1), (*best_first, 0), ("P 2 5", "P 3 3", 0), ("P 3 3", "P 2 5", 1)]
    assert [(e.messages, e.judgement) for e in examples] == [
        (judge(think=think).messages("P", first, second), verdicts[better]) for first, second, better in expected
    ]


def test_judging_data_of_one_response_a_prompt_teaches_no_comparison():
    assert judge().examples([]) == []
    with pytest.raises(ValueError, match=r"of its 3 lines no two.*Give several graded responses a prompt"):
        judge().examples([*graded(1, 1), *graded(4, prompt="Q")])


# In a run


class Comparer(ScriptedEngine):
    """Answers are one to five words, and the longer one of two is better."""

    @staticmethod
    def script(model: str, text: str, seed: int) -> str:
        if "<response>" in text:
            first, second = (part.split("\n</response>")[0] for part in text.split("<response>\n")[1:])
            return f"Verdict: {longer(first, second)}"
        return " ".join(["fox"] * (seed % 5 + 1))


def test_a_run_with_a_pairwise_judge(tmp_path, tiny_random_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tasks = [f"Name {n} animals." for n in ("one", "two", "three", "four")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": task}) + "\n" for task in tasks))
    (tmp_path / "run.yaml").write_text(f"""
name: pairs
run_dir: {tmp_path}/runs
iterations: 1
model: {{path: {tiny_random_model}, dtype: float32}}
prompts: {{path: prompts.jsonl}}
responses: {{n: 5}}
judge: {{name: pairwise, votes: 1, pairwise: {{matches: swiss}}}}
engine: {{name: "test_pairwise:Comparer"}}
""")
    run = Run.create(selfreward.load_recipe(tmp_path / "run.yaml", []))
    with Engines(run) as engines:
        for step in plan(run.recipe)[:4]:
            if not run.stage(step.stage, step.iteration).done:
                perform(run, step, engines)
    summary = run.stage("judgements", 1).summary
    assert summary["judgements"] == 4 * 3 * 2 * 2
    assert (summary["position_consistency"], summary["first_preferred"]) == (1.0, 0.5)
    pairs = run.records("pairs", 1, PreferencePair)
    assert pairs
    assert all(len(pair.chosen[0]["content"]) > len(pair.rejected[0]["content"]) for pair in pairs)
