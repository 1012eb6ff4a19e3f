"""Runs whose pairs have more behind them: an anchor, a look-ahead, the implicit reward, consistency, revisions."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_random_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import selfreward
from selfreward import loop
from selfreward.engines.scripted import ScriptedEngine
from selfreward.engines.transformers import TransformersEngine
from selfreward.judges import mean_scores
from selfreward.records import ImplicitReward, Judgement, PreferencePair, Prompt, Rejection, Response, by_prompt
from selfreward.report.pair_trace import text, trace
from selfreward.report.verify import verify
from selfreward.runs.history import recipe_of
from selfreward.runs.plan import plan
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.runtime.atomic import hash_of, write_sealed
from selfreward.selection.pair_filters import consistency
from selfreward.selection.pair_selectors import Rules, best_worst
from selfreward.serving.engines import Engines
from selfreward.serving.weight_check import read_probes
from selfreward.stages import implicit
from selfreward.stages.pairs import Selection, scores_of
from selfreward.text.chat import ChatEncoder, load_tokenizer

TASKS = [f"Name {n} animals." for n in ("one", "two", "three", "four", "five", "six")]
ALL = [f"selection.{name}=true" for name in ("anchored", "lookahead", "implicit_agreement")]


def count(text: str) -> int:
    return min(5, len(text.split()))


def judged(model: str, text: str, seed: int) -> str:
    """M2 counts the words of an answer; the model before it takes one for two and two for one."""
    number = count(text.rpartition("Answer: ")[2])
    told = number if "iter_1/model" in model else {1: 2, 2: 1}.get(number, number)
    return f"I count up to {seed % 5}.\nScore: {told}"


class Learning(ScriptedEngine):
    """Answers have one to three words, those of a draft up to four; comparisons are won by the longer answer."""

    @staticmethod
    def script(model: str, text: str, seed: int) -> str:
        if text.startswith("Review"):
            return judged(model, text, seed)
        if text.startswith("Compare"):
            first, second = (count(part) for part in text.partition("First: ")[2].split("Second: "))
            return f"Verdict: {'A' if first > second else 'B' if second > first else 'tie'}"
        if text.startswith("A judge"):
            one, two = re.findall("<judgement>\n(.*?)\n</judgement>", text, re.DOTALL)
            return f"Verdict: {'A' if one > two else 'B'}"
        if text.startswith("Read"):
            return f"It is short, says {seed}."
        if text.startswith("Below"):
            return " ".join(["owl"] * (seed % 4 + 1))
        return " ".join(["fox"] * (seed % (4 if "draft" in model else 3) + 1))


class Interrupted(Learning):
    """Breaks down after a number of requests, again and again."""

    requests = 0

    async def generate(self, messages: Any, params: Any, seeds: Any) -> Any:
        type(self).requests += 1
        if type(self).requests % 13 == 0:
            raise ConnectionError
        return await super().generate(messages, params, seeds)


def write_recipe(folder: Path, *extra: str) -> Path:
    model = make_random_model(folder / "model", seed=0)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": t}) + "\n" for t in TASKS))
    (folder / "judge.txt").write_text("Review this answer.\nTask: {prompt}\nAnswer: {response}")
    (folder / "compare.txt").write_text("Compare two answers.\nTask: {prompt}\nFirst: {first}\nSecond: {second}")
    (folder / "principles.txt").write_text("Be kind.\nBe long.\n")
    path = folder / "run.yaml"
    path.write_text(f"""
name: plain
run_dir: {folder}/runs
iterations: 2
model: {{path: {model}, dtype: float32}}
prompts: {{path: prompts.jsonl}}
responses: {{n: 3, max_tokens: 32}}
judge: {{template: judge.txt, votes: 2}}
training:
  dpo: {{max_steps: 1, learning_rate: 1e-3, per_device_train_batch_size: 2, gradient_checkpointing: false}}
engine: {{name: "test_pair_stages:Learning"}}
""")
    return path


def edited(run: Run, *overrides: str) -> Run:
    """The same folder with another recipe."""
    return Run(run.path, recipe_of(run.path, overrides))


def perform(run: Run) -> None:
    """Everything up to the pairs of the last iteration, without its training."""
    with Engines(run) as engines:
        for step in plan(run.recipe):
            if (step.stage, step.iteration) == ("train", run.recipe.iterations):
                break
            if not run.stage(step.stage, step.iteration).done:
                loop.perform_here(run, step, engines)


def prepared(path: Path, *overrides: str) -> Run:
    """A run of one iteration that has come to its pairs."""
    run = Run.create(selfreward.load_recipe(path, ["iterations=1", *overrides]))
    perform(run)
    return run


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def full(recipe_file: Path) -> Run:
    """A finished run with everything but revisions."""
    return selfreward.run(selfreward.load_recipe(recipe_file, [*ALL, "training.consistency=pair", "name=full"]))


@pytest.fixture
def copy(full: Run, tmp_path: Path) -> Run:
    subprocess.run(["cp", "-a", str(full.path), str(tmp_path / "copy")], check=True)
    return Run.open(tmp_path / "copy")


def test_the_two_sides_are_the_best_and_the_worst_of_all_models(full: Run) -> None:
    for iteration in (1, 2):
        own = by_prompt(full.records("responses", iteration, Response))
        anchors = by_prompt(full.records("anchors", iteration, Response)) if iteration == 2 else {}
        draft = by_prompt(full.records("lookahead", iteration, Response))
        scores = mean_scores(full.records("judgements", iteration, Judgement))
        scores |= mean_scores(full.records("lookahead_judgements", iteration, Judgement))
        for prefix, ahead in (("", draft), ("draft_", {})):
            pairs = {pair.prompt_id: pair for pair in full.records(f"{prefix}pairs", iteration, PreferencePair)}
            rejections = full.records(f"{prefix}rejections", iteration, Rejection)
            ties = {rejection.prompt_id for rejection in rejections if rejection.reason == "tie"}
            for prompt, mine in own.items():
                best = max(scores[r.id] for r in [*mine, *ahead.get(prompt, [])])
                worst = min(scores[r.id] for r in [*mine, *anchors.get(prompt, [])])
                if best == worst:
                    assert prompt in ties
                else:
                    assert (pairs[prompt].score_chosen, pairs[prompt].score_rejected) == (best, worst)


def test_each_stage_asks_the_model_that_it_is_about(full: Run) -> None:
    def models(name: str, kind: type, iteration: int = 2) -> set[str]:
        return {record.model for record in full.records(name, iteration, kind)}

    assert models("anchors", Response) == {"M0"}, "without a seed stage M1 is the recipe's own model"
    assert models("responses", Response) == models("judgements", Judgement) == {"iter_1/model"}
    assert models("previous_judgements", Judgement) == {"M0"}
    assert models("lookahead", Response) == {"iter_2/draft_model"}
    assert models("lookahead_judgements", Judgement) == {"iter_1/model"}
    assert models("lookahead", Response, 1) == {"iter_1/draft_model"}
    assert not full.stage("anchors", 1).done


def test_what_a_stage_samples_is_noise_of_its_own(full: Run) -> None:
    seeds = [{r.seed for r in full.records(name, 2, Response)} for name in ("responses", "anchors", "lookahead")]
    assert [len(each) for each in seeds] == [18, 18, 18]
    assert len(set.union(*seeds)) == 54


def test_consistency_stands_in_the_pairs_of_a_prompt(full: Run) -> None:
    now, before = (mean_scores(full.records(name, 2, Judgement)) for name in ("judgements", "previous_judgements"))
    own = by_prompt(full.records("responses", 2, Response))
    pairs = full.records("pairs", 2, PreferencePair)
    expected = {p: consistency({r.id: now[r.id] for r in these}, before) for p, these in own.items()}
    assert {pair.prompt_id: pair.consistency for pair in pairs} == {p.prompt_id: expected[p.prompt_id] for p in pairs}
    assert len({pair.consistency for pair in pairs}) > 1, "the two models don't rank all of them alike"
    assert all(pair.consistency is None for pair in full.records("pairs", 1, PreferencePair))


def test_the_figures_of_the_pairs_add_up(full: Run) -> None:
    for iteration in (1, 2):
        summary, pairs = full.stage("pairs", iteration).summary, full.records("pairs", iteration, PreferencePair)
        assert summary["prompts_paired"] + summary["prompts_rejected"] == len(TASKS)
        reasons = sum(count for name, count in summary.items() if name.startswith("rejected_"))
        assert reasons == summary["prompts_rejected"]
        groups = ("responses", "lookahead", "anchors")[: iteration + 1]
        tokens = {r.id: r.num_tokens for name in groups for r in full.records(name, iteration, Response)}
        assert summary["mean_chosen_tokens"] == sum(tokens[p.chosen_id] for p in pairs) / len(pairs)
        assert summary["mean_rejected_tokens"] == sum(tokens[p.rejected_id] for p in pairs) / len(pairs)
        ahead = {r.id for r in full.records("lookahead", iteration, Response)}
        assert summary["upgraded"] == sum(pair.chosen_id in ahead for pair in pairs) > 0
        scores = mean_scores(full.records("judgements", iteration, Judgement))
        own = by_prompt(full.records("responses", iteration, Response))
        assert summary["tied"] == sum(len({scores[r.id] for r in these}) == 1 for these in own.values()) / len(own)
    anchors = {r.id for r in full.records("anchors", 2, Response)}
    assert summary["anchored"] == sum(pair.rejected_id in anchors for pair in pairs) > 0
    assert summary["reward_unknown"] == len(pairs), "a scripted engine tells no log-probabilities"
    known = [pair.consistency for pair in pairs if pair.consistency is not None]
    assert summary["consistency"] == pytest.approx(sum(known) / len(known))
    assert full.stage("implicit", 2).summary["unknown"] == 18
    draft = full.stage("draft_pairs", 2).summary
    assert "upgraded" not in draft
    assert draft["anchored"] > 0


def test_an_iteration_that_was_interrupted_again_and_again_is_the_same(full: Run, copy: Run) -> None:
    shutil.rmtree(copy.path / "iter_2")
    copy = edited(copy, "engine.name=test_pair_stages:Interrupted")
    interrupted: set[str] = set()
    while not copy.stage("pairs", 2).done:
        try:
            perform(copy)
        except ConnectionError:
            interrupted |= {path.parent.name for path in copy.path.glob("iter_2/*/begun.json")}
    assert interrupted == {"anchors", "responses", "judgements", "previous_judgements", "lookahead"}
    made = [path.relative_to(copy.path) for path in copy.path.glob("iter_2/*/*.jsonl")]
    made += [path.relative_to(copy.path) for path in copy.path.glob("iter_2/draft_model/*.safetensors")]
    assert len(made) == 13
    for name in made:
        assert hash_of(copy.path / name) == hash_of(full.path / name), name
    assert all(copy.stage(name, 2).summary["resumed"] > 0 for name in interrupted)
    assert verify(copy.path).problems == []


def test_verify_follows_every_kind_of_record(full: Run) -> None:
    report = verify(full.path)
    assert report.problems == []
    assert report.unproved == []
    assert report.pairs == sum(len(full.records("pairs", t, PreferencePair)) for t in (1, 2))


def forge(run: Run, name: str, edit: Callable[[list[dict[str, Any]]], None], iteration: int = 2) -> None:
    """Edits records of an iteration and seals the marker again, as one who knows how could."""
    stage, _, file = name.partition("/")
    folder = run.stage(stage, iteration)
    path = folder.path / file
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    edit(rows)
    path.write_text("".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows))
    marker = folder.marker
    marker["wrote"][f"iter_{iteration}/{name}"] = {"sha256": hash_of(path), "bytes": path.stat().st_size}
    write_sealed(folder.path / "stage.json", marker)


@pytest.mark.parametrize(
    ("name", "edit", "problem"),
    [
        ("anchors/records.jsonl", lambda rows: rows[0].update(model="iter_1/model"), "another seed or model"),
        ("lookahead/responses.jsonl", lambda rows: rows[3].update(seed=7), "does not belong to its text"),
        ("lookahead/responses.jsonl", lambda rows: rows[3].update(model="M0"), "another seed or model"),
        ("lookahead/judgements.jsonl", lambda rows: [row.update(score=0.5) for row in rows], "does not follow from"),
        ("lookahead/judgements.jsonl", lambda rows: rows[0].update(subject_ids=["0"]), "judges nothing"),
        ("previous_judgements/records.jsonl", lambda rows: rows[0].update(prompt_id="0"), "judges nothing"),
        (
            "previous_judgements/records.jsonl",
            lambda rows: [row.update(score=5 - row["score"]) for row in rows],
            "does not follow from",
        ),
        ("implicit/records.jsonl", lambda rows: rows.pop(), "the implicit rewards are not those of the responses"),
        ("draft_pairs/records.jsonl", lambda rows: rows[0].update(score_rejected=-1.0), "does not follow from"),
        ("pairs/records.jsonl", lambda rows: rows[0].update(consistency=0.123), "does not follow from"),
        ("pairs/records.jsonl", lambda rows: rows.pop(), "1 prompts are neither a pair nor a rejection"),
        ("responses/records.jsonl", lambda rows: rows[0].update(revises=rows[9]["id"]), "revises no response"),
    ],
)
def test_verify_finds_forged_records_of_every_kind(copy: Run, name: str, edit: Any, problem: str) -> None:
    forge(copy, name, edit)
    found = [line for line in verify(copy.path).problems if line.startswith("iteration 2: ")]
    assert any(problem in line for line in found), found


def test_a_pair_is_traced_to_the_other_models_responses(full: Run) -> None:
    anchors = {r.id: r for r in full.records("anchors", 2, Response)}
    ahead = {r.id: r for r in full.records("lookahead", 2, Response)}
    pairs = full.records("pairs", 2, PreferencePair)
    pair = next(pair for pair in pairs if pair.chosen_id in ahead and pair.rejected_id in anchors)
    found = trace(full, pair.id)
    assert [r["from"] for r in found["responses"]] == ["responses"] * 3 + ["anchors"] * 3 + ["lookahead"] * 3
    assert all(len(r["votes"]) == 2 for r in found["responses"])
    assert [len(r["previous_votes"]) for r in found["responses"]] == [2] * 6 + [0] * 3
    assert {"anchors", "lookahead", "implicit", "previous_judgements"} <= set(found["digests"])
    shown = text(found)
    chosen, rejected = ahead[pair.chosen_id], anchors[pair.rejected_id]
    assert f"look-ahead response {chosen.k}, CHOSEN: {chosen.id}" in shown
    assert f"anchor's response {rejected.k}, REJECTED: {rejected.id}" in shown
    assert "  by iter_2/draft_model" in shown
    assert "vote of M_{t-1} 1: score" in shown
    assert "implicit reward: unknown" in shown
    assert f"scores     {pair.score_chosen:g} against {pair.score_rejected:g}" in shown
    alike = next(pair for pair in pairs if pair.consistency is not None)
    assert f", consistency {alike.consistency:.2f} with M_{{t-1}}\n" in text(trace(full, alike.id))


def test_a_judge_that_compares_sees_all_models_responses_together(recipe_file: Path) -> None:
    options = ["selection.lookahead=true", "judge.name=pairwise", "judge.votes=1", "name=pairwise"]
    run = prepared(recipe_file, *options, f"judge.template={recipe_file.parent}/compare.txt")
    own = {r.id: r for r in run.records("responses", 1, Response)}
    ahead = {r.id: r for r in run.records("lookahead", 1, Response)}
    met = [tuple(j.subject_ids) for j in run.records("lookahead_judgements", 1, Judgement)]
    assert len(set(met)) == len(met) == len(TASKS) * 6 * 5, "each two of six, in both orders"
    scores, pairs = scores_of(run, 1, lookahead=True), run.records("pairs", 1, PreferencePair)
    for pair in pairs:
        mine, drafts = ([r for r in group.values() if r.prompt_id == pair.prompt_id] for group in (own, ahead))
        assert count(pair.chosen[0]["content"]) == max(count(r.text) for r in [*mine, *drafts])
        assert count(pair.rejected[0]["content"]) == min(count(r.text) for r in mine)
        assert pair.score_chosen == scores[pair.chosen_id] > pair.score_rejected == scores[pair.rejected_id]
    assert verify(run.path).problems == []
    chosen = next(pair for pair in pairs if pair.chosen_id in ahead)
    part = text(trace(run, chosen.id)).partition(", CHOSEN: ")[2].partition("\n\n")[0]
    k = own[chosen.rejected_id].k
    for place in ("first", "second"):
        assert f"  vote 0, shown {place} beside response {k}: won, seed " in part
    part = text(trace(run, chosen.id)).partition(", REJECTED: ")[2].partition("\n\n")[0]
    assert f"  vote 0, shown first beside look-ahead response {ahead[chosen.chosen_id].k}: lost, seed " in part


def test_revisions_are_paired_with_what_they_revise(recipe_file: Path) -> None:
    options = [f"responses.principles={recipe_file.parent}/principles.txt", "selection.name=revision", "name=revised"]
    run = prepared(recipe_file, *options)
    responses = {r.id: r for r in run.records("responses", 1, Response)}
    pairs = run.records("pairs", 1, PreferencePair)
    assert all(responses[pair.chosen_id].revises == pair.rejected_id for pair in pairs)
    assert len(pairs) == 18
    assert any(pair.score_chosen <= pair.score_rejected for pair in pairs)
    assert verify(run.path).problems == []
    shown, revision = text(trace(run, pairs[0].id)), responses[pairs[0].chosen_id]
    assert f"revision {revision.k}, CHOSEN: {revision.id}" in shown
    assert f"revises response {responses[revision.revises].k}, under the principle:" in shown
    assert f"      {revision.principle}\n" in shown
    assert f"      {revision.critique}\n" in shown


def answer_logprobs(model: str, messages: list[dict[str, str]], answer: str) -> float:
    """The log-probability of an answer, computed from the logits of the whole conversation."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], return_dict=False)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert whole[: len(prompt)] == prompt
    assert tokenizer.eos_token_id in whole[len(prompt) :]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model)(torch.tensor([whole])).logits[0].double()
    figures = logits.log_softmax(-1)
    return sum(float(figures[place - 1, whole[place]]) for place in range(len(prompt), len(whole)))


@pytest.fixture
def unrewarded(copy: Run) -> Run:
    """A finished run with real models, whose implicit rewards in iteration 2 are not there yet."""
    shutil.rmtree(copy.path / "iter_2/implicit")
    copy.stage("implicit", 2).begin({})
    return edited(copy, "engine.name=test_pair_stages:Asked")


def test_the_implicit_reward_is_the_difference_that_two_models_make(unrewarded: Run) -> None:
    with Engines(unrewarded) as engines:
        summary = implicit.stage(unrewarded, Step("implicit", 2), engines)
    prompts = {p.id: p for p in unrewarded.records("prompts", 2, Prompt)}
    responses = unrewarded.records("responses", 2, Response)
    records = unrewarded.records("implicit", 2, ImplicitReward)
    assert [record.response_id for record in records] == [response.id for response in responses]
    assert (summary["responses"], summary["unknown"]) == (18, 0)
    for response, record in zip(responses, records, strict=True):
        messages = prompts[response.prompt_id].messages
        direct = [answer_logprobs(unrewarded.model_path(t), messages, response.text) for t in (2, 1)]
        assert [record.logprob, record.previous_logprob] == pytest.approx(direct, abs=1e-4)
        assert record.logprob != record.previous_logprob
    rewards = [record.logprob - record.previous_logprob for record in records]
    assert summary["mean_reward"] == pytest.approx(sum(rewards) / 18)


def test_pairs_must_agree_with_the_implicit_reward(unrewarded: Run) -> None:
    unrewarded = edited(unrewarded, "selection.anchored=false", "selection.lookahead=false")
    responses = by_prompt(unrewarded.records("responses", 2, Response))
    scores = scores_of(unrewarded, 2, lookahead=False)
    for sign, reason in ((1.0, None), (-1.0, "disagreement")):
        rewards = [ImplicitReward(r, sign * score, 0.0) for r, score in scores.items()]
        unrewarded.stage("implicit", 2).write("records.jsonl", rewards)
        selection, reasons = Selection(unrewarded, Step("pairs", 2)), set()
        for prompt in selection.prompts:
            plain, outcome = best_worst(prompt, responses[prompt.id], scores, Rules()), selection.outcome(prompt)
            if isinstance(plain, Rejection):
                assert outcome == plain
                continue
            reasons.add(outcome.reason if isinstance(outcome, Rejection) else None)
        assert reasons == {reason}


class Asked(TransformersEngine):
    """Counts the texts that it is asked for, and breaks down at one of them."""

    asked = 0
    fails: int | None = None

    async def logprobs(self, ids: Any, last: int | None = None) -> list[float]:
        type(self).asked += last is None
        if type(self).asked == type(self).fails:
            raise ConnectionError
        return await super().logprobs(ids, last)


def test_an_implicit_reward_that_was_told_is_not_asked_again(unrewarded: Run) -> None:
    texts = {(r.prompt_id, r.text) for r in unrewarded.records("responses", 2, Response)}
    probes = read_probes(unrewarded.model_path(2))
    assert probes is not None
    Asked.asked, Asked.fails = 0, len(probes.ids) + 5
    with pytest.raises(ConnectionError), Engines(unrewarded) as engines:
        implicit.stage(unrewarded, Step("implicit", 2), engines)
    told = (unrewarded.stage("implicit", 2).path / "journal.jsonl").read_bytes().count(b"\n")
    assert 0 < told < len(texts)
    Asked.asked, Asked.fails = 0, None
    with Engines(unrewarded) as engines:
        implicit.stage(unrewarded, Step("implicit", 2), engines)
    assert Asked.asked == len(probes.ids) + 2 * len(texts) - told


@pytest.mark.parametrize(
    ("answer", "reason", "max_tokens", "known"),
    [
        ("fox owl", "stop", 32, True),
        ("", "stop", 32, True),
        ("fox <|end|> owl", "stop", 32, False),
        ("", "prompt_too_long", 32, False),
        ("fox owl fox owl fox owl fox owl", "length", 8, False),
    ],
)
def test_a_response_that_may_not_fit_or_would_be_trained_as_another_has_no_reward(
    tiny_random_model: Path, recipe_file: Path, answer: str, reason: Any, max_tokens: int, known: bool
) -> None:
    chat = ChatEncoder(load_tokenizer(str(tiny_random_model), selfreward.load_recipe(recipe_file).model))
    prompt = Prompt.make([{"role": "user", "content": TASKS[0]}], "test")
    response = Response("r", prompt.id, 0, answer, reason, 8, 0, "M1")
    found = implicit.encode(chat, prompt, response, max_tokens)
    assert (found is not None) == known
    if found is not None:
        tail = chat.tokenizer.decode(found.ids[-found.num :])
        assert tail.startswith(answer)
        assert str(chat.tokenizer.eos_token) in tail


def test_a_judge_that_is_not_here_leaves_the_scores_unproved_and_nothing_else(copy: Run) -> None:
    recipe = copy.recipe.model_dump(mode="json")
    recipe["judge"]["template"] = str(copy.path / "nowhere.txt")
    write_sealed(copy.path / "resolved.json", recipe)
    report = verify(copy.path)
    assert report.problems == []
    assert "the scores of iteration 2 were not counted again" in report.summary
    forge(copy, "pairs/records.jsonl", lambda rows: rows[0].update(prompt_id="0"))
    assert any("does not follow from" in problem for problem in verify(copy.path).problems)


def test_scores_by_the_judge_of_an_earlier_recipe_are_left_as_they_are(copy: Run) -> None:
    template = f"judge.template={copy.recipe.judge.template.with_name('compare.txt')}"
    recipe = recipe_of(copy.path, ["judge.name=pairwise", template, "training.consistency=none"])
    write_sealed(copy.path / "resolved.json", recipe.model_dump(mode="json"))
    assert any("does not follow from" in problem for problem in verify(copy.path).problems)
    write_sealed(copy.path / "origin.json", {"settled": 3, "forked_from": None})
    report = verify(copy.path)
    assert report.problems == []
    assert report.unproved == [
        f"iteration {t} were not counted again: an earlier recipe had another judge" for t in (1, 2)
    ]


@pytest.mark.parametrize(
    ("name", "edit", "problem"),
    [
        ("meta/records.jsonl", lambda rows: rows[0].update(subject_ids=["0", "1"]), "compares nothing"),
        ("meta/pairs.jsonl", lambda rows: rows[0].update(chosen=rows[0]["rejected"]), "judge pair"),
        ("meta/pairs.jsonl", lambda rows: rows[0].update(chosen_id=rows[1]["chosen_id"]), "judge pair"),
    ],
)
def test_judge_pairs_are_followed_to_their_judgements(judging: Run, name: str, edit: Any, problem: str) -> None:
    assert verify(judging.path).problems == []
    assert len(judging.records("judge_pairs", 1, PreferencePair)) > 1
    forge(judging, name, edit, iteration=1)
    found = [line for line in verify(judging.path).problems if line.startswith("iteration 1: ")]
    assert len(found) == 1
    assert problem in found[0]


@pytest.fixture
def judging(recipe_file: Path, tmp_path: Path) -> Run:
    """A run of one iteration that has come to its judge pairs."""
    return prepared(recipe_file, "meta.iterations=[1]", f"run_dir={tmp_path}", "judge.votes=3")


def test_caps_and_margins_hold_in_a_run(recipe_file: Path) -> None:
    options = ["selection.name=top_bottom", "selection.max_per_prompt=1", "selection.max_per_source=2"]
    run = prepared(recipe_file, *options, "selection.min_margin=1", "name=capped")
    pairs, summary = run.records("pairs", 1, PreferencePair), run.stage("pairs", 1).summary
    assert len(pairs) == len({pair.prompt_id for pair in pairs}) == 2
    assert all(pair.score_chosen - pair.score_rejected >= 1 for pair in pairs)
    assert summary["rejected_over_cap"] > 0
    assert verify(run.path).problems == []
