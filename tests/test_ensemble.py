"""Several judges' scores as one: by mean, by rank, and by accuracies learned without labels."""

import asyncio
import itertools
import math
import random

import pytest
from scipy.optimize import minimize
from scipy.stats import rankdata

from selfreward.engines import Completion
from selfreward.judges import Panel
from selfreward.judges.ensemble import combine
from selfreward.judges.label_model import SMOOTHING, START_ACCURACY, learn, posterior
from selfreward.recipe.judge_settings import MemberSettings, PanelSettings
from selfreward.records import Prompt, Response

ONE_PROMPT = dict.fromkeys("abcd", "p")
EQUAL = {"x": 1.0, "y": 1.0, "z": 1.0}


def test_the_mean_is_of_scaled_scores():
    """x spans 1 to 5 over both prompts and y 0 to 1: a is (0 + 3 x 1) / 4, b (.5 + 0) / 4, c (1 + 3 x .5) / 4."""
    scores = {"x": {"a": 1.0, "b": 3.0, "c": 5.0}, "y": {"a": 1.0, "b": 0.0, "c": 0.5}}
    prompt_of = {"a": "p", "b": "p", "c": "q"}
    assert combine(scores, {"x": 1.0, "y": 3.0}, prompt_of, "mean") == {"a": 0.75, "b": 0.125, "c": 0.625}


def test_the_mean_is_over_the_judges_that_did_not_abstain():
    scores = {"x": {"a": 0.0, "b": 5.0, "c": 4.0}, "y": {"a": 1.0, "d": 0.0}}
    assert combine(scores, {"x": 1.0, "y": 3.0}, ONE_PROMPT, "mean") == {"a": 0.75, "b": 1.0, "c": 0.8, "d": 0.0}


@pytest.mark.parametrize("how", ["mean", "rank"])
def test_a_judge_that_says_the_same_of_all_changes_no_order(how):
    scores = {"x": {"a": 2.0, "b": 2.0}, "y": {"a": 0.1, "b": 0.4}}
    assert combine(scores, EQUAL, ONE_PROMPT, how) == {"a": 0.25, "b": 0.75}


def test_ranks_are_taken_within_a_prompt():
    """For x: a is beaten by b and c, which tie: 0, .75, .75. For y: a beats c, and b is missing: 1, -, 0."""
    scores = {"x": {"a": 1.0, "b": 5.0, "c": 5.0, "d": 0.0}, "y": {"a": 0.9, "c": 0.1}}
    prompt_of = {"a": "p", "b": "p", "c": "p", "d": "q"}
    assert combine(scores, {"x": 1.0, "y": 1.0}, prompt_of, "rank") == {"a": 0.5, "b": 0.75, "c": 0.375, "d": 0.5}


def test_ranks_are_those_of_scipy():
    rng = random.Random(0)
    for _ in range(50):
        given = {f"r{k}": float(rng.randrange(5)) for k in range(rng.randrange(2, 9))}
        ranks = (rankdata(list(given.values())) - 1) / (len(given) - 1)
        combined = combine({"x": given}, EQUAL, dict.fromkeys(given, "p"), "rank")
        assert list(combined.values()) == pytest.approx(list(ranks), abs=1e-9)


@pytest.mark.parametrize("how", ["mean", "rank", "label_model"])
def test_a_response_that_no_judge_scored_is_left_out(how):
    assert set(combine({"x": {"a": 1.0}, "y": {"b": 2.0}}, EQUAL, ONE_PROMPT, how)) == {"a", "b"}
    assert combine({"x": {}, "y": {}}, EQUAL, ONE_PROMPT, how) == {}


@pytest.mark.parametrize("how", ["mean", "rank"])
def test_what_judges_see_the_other_way_round_is_a_tie(how):
    """Of scores whose sums differ by rounding alone, none is the better one."""
    scores = {
        "x": {"a": 0.1, "b": 0.3, "c": 0.7},
        "y": {"a": 0.3, "b": 0.7, "c": 0.1},
        "z": {"a": 0.7, "b": 0.1, "c": 0.3},
    }
    assert len(set(combine(scores, EQUAL, ONE_PROMPT, how).values())) == 1


def synthetic(accuracies: list[float], num: int, seed: int = 0, votes: list[float] | None = None):
    """Items that judges vote on, each with a probability of its own, and are right about with their accuracies."""
    rng, items, truth = random.Random(seed), [], []
    for _ in range(num):
        truth.append(rng.choice((1, -1)))
        right = [truth[-1] if rng.random() < accuracy else -truth[-1] for accuracy in accuracies]
        asked = [rng.random() < chance for chance in votes or [1.0] * len(accuracies)]
        items.append(tuple(vote if answers else 0 for vote, answers in zip(right, asked, strict=True)))
    return items, truth


def test_the_posterior_is_that_of_bayes():
    """.9 x .8 x .4 against .1 x .2 x .6 where all three say first; .9 x .2 against .1 x .8 where one abstains."""
    accuracies = [0.9, 0.8, 0.4]
    assert posterior((1, 1, 1), accuracies) == pytest.approx(0.288 / (0.288 + 0.012))
    assert posterior((1, -1, 0), accuracies) == pytest.approx(0.18 / (0.18 + 0.08))
    assert posterior((-1, 0, 0), accuracies) == pytest.approx(0.1)
    assert posterior((0, 0, 0), accuracies) == 0.5


def test_judges_of_equal_accuracy_decide_by_majority():
    for votes in itertools.product((-1, 0, 1), repeat=5):
        chance = posterior(votes, [0.8] * 5)
        assert (chance > 0.5) - (chance < 0.5) == (sum(votes) > 0) - (sum(votes) < 0)


@pytest.mark.parametrize("votes", [None, [1.0, 0.7, 0.8, 0.5]])
def test_known_accuracies_are_found_without_labels(votes):
    """Within .04, which is two to three times their standard error with 4000 items."""
    accuracies = [0.9, 0.8, 0.65, 0.7]
    items, truth = synthetic(accuracies, 4000, votes=votes)
    learned = learn(items)
    assert learned == pytest.approx(accuracies, abs=0.04)
    voted = [(item, first) for item, first in zip(items, truth, strict=True) if any(item)]
    right = sum((posterior(item, learned) > 0.5) == (first > 0) for item, first in voted) / len(voted)
    best = sum((posterior(item, accuracies) > 0.5) == (first > 0) for item, first in voted) / len(voted)
    assert right > best - 0.01


def test_a_judge_that_tosses_a_coin_counts_for_nothing():
    items, _ = synthetic([0.85, 0.8, 0.8, 0.5], 4000)
    *good, coin = [math.log(a / (1 - a)) for a in learn(items)]
    assert abs(coin) < 0.15
    assert min(good) > 1.0


def test_a_judge_that_is_mostly_wrong_counts_against():
    items, _ = synthetic([0.85, 0.8, 0.8, 0.3], 4000)
    assert learn(items)[3] == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("seed", range(4))
def test_em_finds_the_maximum_that_a_general_optimiser_finds(seed):
    rng = random.Random(seed)
    items, _ = synthetic(
        [rng.uniform(0.55, 0.9) for _ in range(4)], 200, seed, [rng.uniform(0.4, 1.0) for _ in range(4)]
    )

    def loss(odds):
        accuracies = [1 / (1 + math.exp(-each)) for each in odds]
        start = START_ACCURACY
        prior = sum(SMOOTHING * (start * math.log(a) + (1 - start) * math.log(1 - a)) for a in accuracies)
        total = prior
        for item in items:
            voted = [(vote, a) for vote, a in zip(item, accuracies, strict=True) if vote]
            total += math.log(
                0.5 * math.prod(a if vote > 0 else 1 - a for vote, a in voted)
                + 0.5 * math.prod(1 - a if vote > 0 else a for vote, a in voted)
            )
        return -total

    start = [math.log(START_ACCURACY / (1 - START_ACCURACY))] * 4
    found = [1 / (1 + math.exp(-each)) for each in minimize(loss, start, method="BFGS", options={"gtol": 1e-4}).x]
    assert learn(items) == pytest.approx(found, abs=1e-4)


def test_which_response_is_called_the_first_does_not_matter():
    items, _ = synthetic([0.9, 0.7, 0.6], 300, votes=[0.8, 0.8, 0.8])
    rng = random.Random(1)
    flipped = [item if rng.random() < 0.5 else tuple(-vote for vote in item) for item in items]
    assert learn(flipped) == pytest.approx(learn(items), abs=1e-9)


def test_judges_that_nobody_can_check_stay_where_they_start():
    assert learn([(1, 0), (-1, 0), (0, 0)]) == pytest.approx([START_ACCURACY, START_ACCURACY])


def test_two_judges_that_disagree_cancel_out_even_if_one_says_less():
    """Their agreement says how good the two are together, and not which is the better."""
    items, _ = synthetic([0.9, 0.7], 2000, votes=[1.0, 0.5])
    assert posterior((1, -1), learn(items)) == pytest.approx(0.5, abs=1e-5)
    scores = {"x": {"a": 1.0, "b": 2.0, "c": 3.0}, "y": {"a": 2.0, "b": 1.0}}
    combined = combine(scores, EQUAL, ONE_PROMPT, "label_model")
    assert combined["a"] == combined["b"] < combined["c"]


def test_the_score_by_the_label_model_is_the_mean_chance_against_the_others():
    """Worked by hand, with the accuracies that the votes on the three pairs give."""
    scores = {"x": {"a": 3.0, "b": 2.0, "c": 1.0}, "y": {"a": 3.0, "b": 3.0, "c": 1.0}, "z": {"a": 1.0, "b": 2.0}}
    votes = {"ab": (1, 0, -1), "ac": (1, 1, 0), "bc": (1, 1, 0)}
    accuracies = learn(votes.values())
    ab, ac, bc = (posterior(each, accuracies) for each in votes.values())
    expected = {"a": (ab + ac) / 2, "b": (1 - ab + bc) / 2, "c": (1 - ac + 1 - bc) / 2}
    assert combine(scores, EQUAL, ONE_PROMPT, "label_model") == pytest.approx(expected, abs=1e-4)


def test_the_label_model_sides_with_the_judges_that_agree():
    """Over many prompts x and y agree and z is noise: on a prompt where z has x against it, x wins."""
    rng, scores, prompt_of = random.Random(0), {"x": {}, "y": {}, "z": {}}, {}
    for prompt in range(200):
        for k in range(2):
            response = f"{prompt}.{k}"
            prompt_of[response] = str(prompt)
            scores["x"][response] = float(k)
            scores["y"][response] = float(k if rng.random() < 0.9 else 1 - k)
            scores["z"][response] = rng.random()
    for response in ("last.0", "last.1"):
        prompt_of[response] = "last"
    scores["x"] |= {"last.0": 1.0, "last.1": 0.0}
    scores["z"] |= {"last.0": 0.0, "last.1": 1.0}
    by_mean = combine(scores, EQUAL, prompt_of, "rank")
    assert by_mean["last.0"] == by_mean["last.1"]
    learned = combine(scores, EQUAL, prompt_of, "label_model")
    assert learned["last.0"] > 0.8
    assert learned["last.0"] + learned["last.1"] == pytest.approx(1.0, abs=1e-3)


PROMPTS = [Prompt.make([{"role": "user", "content": f"Question {number}"}], "test") for number in range(2)]
QUALITY = {"good": 4, "fair": 3, "poor": 1}


class Critic:
    """Writes a score and a chance of yes by the quality that the response itself names; says nothing of a riddle."""

    model = "M1"

    async def generate(self, messages, params, seeds):
        found = [score for word, score in QUALITY.items() if word in messages[-1]["content"].split()]
        return [Completion(f"Score: {found[0]}" if found else "A riddle.", "stop", 3) for _ in seeds]

    async def option_probs(self, messages, prefix, options):
        found = [score for word, score in QUALITY.items() if word in messages[-1]["content"].split()]
        yes = found[0] / 10 if found else 0.9
        return [yes / 2 if option.lower() == "yes" else (1 - yes) / 2 for option in options]


def judged(panel: Panel, texts: list[str]):
    judgements = []
    for prompt in PROMPTS:
        responses = [
            Response(f"{prompt.id}-{text}", prompt.id, k, text, "stop", 1, k, "M1") for k, text in enumerate(texts)
        ]
        for seat in panel.judges:
            judgements += asyncio.run(seat.vote(Critic(), prompt, responses, panel.seed(seat, 7)))
    return judgements, panel.scores(judgements)


def ensemble(tmp_path, how: str, *members: dict) -> Panel:
    template = tmp_path / "judge.txt"
    template.write_text("Review {prompt} and {response}")
    given = [MemberSettings(**{"votes": 2, "template": template, **member}) for member in members]
    return Panel(PanelSettings(name="ensemble", members=given, combine=how))


@pytest.mark.parametrize("how", ["mean", "rank", "label_model"])
def test_a_panel_of_two_judges_scores_each_response_once(tmp_path, how):
    panel = ensemble(tmp_path, how, {"name": "additive"}, {"name": "yes_no", "votes": 1})
    judgements, scores = judged(panel, ["poor", "good", "fair"])
    assert [(j.judge, j.vote) for j in judgements[:9]] == [("additive", k) for k in (0, 1)] * 3 + [("yes_no", 0)] * 3
    for prompt in PROMPTS:
        poor, good, fair = (scores[f"{prompt.id}-{text}"] for text in ("poor", "good", "fair"))
        assert 0.0 <= poor < fair < good <= 1.0
    assert len(scores) == 6


def test_weights_count(tmp_path):
    """Of the riddle the additive judge says nothing; yes_no gives it .9, its highest, and .1 to the poor one."""
    panel = ensemble(tmp_path, "mean", {"name": "additive", "weight": 3.0}, {"name": "yes_no", "votes": 1})
    judgements, scores = judged(panel, ["poor", "good", "riddle"])
    assert {j.error for j in judgements if j.judge == "additive"} == {None, "no_score"}
    for prompt in PROMPTS:
        assert scores[f"{prompt.id}-poor"] == 0.0
        assert scores[f"{prompt.id}-good"] == pytest.approx((3 * 1 + (0.4 - 0.1) / 0.8) / 4)
        assert scores[f"{prompt.id}-riddle"] == 1.0


def test_two_judges_of_one_kind_have_names_and_seeds_of_their_own(tmp_path):
    panel = ensemble(tmp_path, "mean", {"name": "additive"}, {"name": "additive", "weight": 2.0})
    judgements, scores = judged(panel, ["poor", "good"])
    assert [seat.name for seat in panel.judges] == ["additive.1", "additive.2"]
    assert {j.judge for j in judgements} == {"additive.1", "additive.2"}
    assert len({j.seed for j in judgements}) == len({j.id for j in judgements}) == len(judgements) == 16
    assert sorted(set(scores.values())) == [0.0, 1.0]
