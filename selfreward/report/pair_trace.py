"""Everything behind one preference pair. Reads records only."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from selfreward.records import PreferencePair, Prompt
from selfreward.report.iteration_records import SAMPLED, IterationRecords
from selfreward.runs.folders import iteration_of
from selfreward.runs.plan import makes_model
from selfreward.runs.run import Run

# What a response of each kind of records is called.
RESPONSE = dict(zip(SAMPLED, ("response", "anchor's response", "look-ahead response"), strict=True))


def trace(run: Run, pair_id: str) -> dict[str, Any]:
    """The pair with its prompt, that prompt's parents, all responses of each model, and each vote on them.

    Args:
        run: the run.
        pair_id: the id of a pair, or its first digits where they are enough.

    Returns:
        Each response has the records that it is of under ``from``, its ``votes``, the ``previous_votes`` of M_{t-1},
        and its ``implicit`` log-probabilities; the latter two are empty and None where the recipe does not ask for
        them.

    Raises:
        ValueError: no pair, or several, with these first digits.
    """
    records, pair = _find(run, pair_id)
    iteration, prompt = records.iteration, records.prompts[pair.prompt_id]
    folders = {name: run.stage(name, iteration) for name in records.stages}
    markers = {name: folder.marker for name, folder in folders.items()}
    return {
        "run": run.recipe.name,
        "iteration": iteration,
        "pair": asdict(pair),
        "prompt": asdict(prompt),
        "parents": [asdict(parent) for parent in _parents(run, iteration, prompt)],
        "responses": _responses(records, prompt),
        "model": _model(run, iteration),
        "judge": {k: v for k, v in markers["judgements"]["reads"]["settings"].items() if k.startswith("judge")},
        "seed": markers["responses"]["reads"]["settings"]["seed"],
        "versions": {name: marker["versions"] for name, marker in markers.items()},
        "digests": {name: folder.digest for name, folder in folders.items()},
    }


def _responses(records: IterationRecords, prompt: Prompt) -> list[dict[str, Any]]:
    votes = [*records.judgements, *records.lookahead_judgements]
    rewards = {reward.response_id: asdict(reward) for reward in records.implicit_rewards}
    return [
        {
            "from": name,
            **asdict(response),
            "votes": [asdict(vote) for vote in votes if response.id in vote.subject_ids],
            "previous_votes": [asdict(vote) for vote in records.previous_judgements if response.id in vote.subject_ids],
            "implicit": rewards.get(response.id),
        }
        for name in SAMPLED
        for response in records.responses[name].values()
        if response.prompt_id == prompt.id
    ]


def _find(run: Run, pair_id: str) -> tuple[IterationRecords, PreferencePair]:
    iterations = sorted(iteration_of(path.name) for path in run.path.iterdir())
    found = [
        (records, pair)
        for records in (IterationRecords(run, t) for t in iterations if t > 0 and run.stage("pairs", t).done)
        for pair in records.pairs
        if pair.id.startswith(pair_id)
    ]
    if len(found) != 1:
        these = f"{len(found)} pairs begin" if found else "no pair begins"
        raise ValueError(
            f"{these} with {pair_id!r} in {run.path}. The ids are the first field of each line of "
            "iter_*/pairs/records.jsonl"
        )
    return found[0]


def _parents(run: Run, iteration: int, prompt: Prompt) -> list[Prompt]:
    """The prompts that this one was made from, nearest first, as far as they are in the run."""
    known: dict[str, Prompt] = {}
    for t in range(1, iteration + 1):
        known |= IterationRecords(run, t).prompts
    chain: list[Prompt] = []
    while prompt.parent_id in known and known[prompt.parent_id] not in chain:
        prompt = known[prompt.parent_id]
        chain.append(prompt)
    return chain


def _model(run: Run, t: int) -> dict[str, Any]:
    """M_t: where it is, and the hashes of its files."""
    name = run.model_name(run.model_path(t))
    maker = makes_model(run.recipe, t)
    if maker is None:
        settings = run.stage("responses", t).marker["reads"]["settings"]
        return {"name": f"M{t}", "path": name, "sha256": settings["model.path"].removeprefix("sha256:")}
    wrote = run.stage(maker.stage, maker.iteration).marker["wrote"]
    return {
        "name": f"M{t}",
        "path": name,
        "files": {path: file["sha256"] for path, file in wrote.items() if path.startswith(f"{name}/")},
    }


def text(found: dict[str, Any]) -> str:
    """The trace for a person's eyes."""
    pair, model = found["pair"], found["model"]
    lines = [
        f"pair {pair['id']} of iteration {found['iteration']}, run {found['run']}",
        f"model      {model['name']}, {model['path']}",
        *(
            f"           {digest[:16]}  {path}"
            for path, digest in model.get("files", {"": model.get("sha256")}).items()
        ),
        f"judge      {found['judge'].get('judge.name')}",
        f"run seed   {found['seed']}",
        "versions   " + ", ".join(f"{k} {v}" for k, v in found["versions"]["responses"].items()),
        f"scores     {pair['score_chosen']:g} against {pair['score_rejected']:g}{_consistency(pair)}",
        "",
        f"prompt {found['prompt']['id']}, from {found['prompt']['source']}",
        *_indented("\n\n".join(f"{m['role']}: {m['content']}" for m in found["prompt"]["messages"])),
    ]
    for parent in found["parents"]:
        lines += [f"made from prompt {parent['id']}", *_indented(parent["messages"][-1]["content"])]
    for response in found["responses"]:
        lines += _response_lines(found, response)
    return "\n".join(lines)


def _response_lines(found: dict[str, Any], response: dict[str, Any]) -> list[str]:
    pair = found["pair"]
    role = {pair["chosen_id"]: ", CHOSEN", pair["rejected_id"]: ", REJECTED"}.get(response["id"], "")
    ended = f"{response['num_tokens']} tokens, {response['finish_reason']}"
    kind = "revision" if response["revises"] else RESPONSE[response["from"]]
    lines = ["", f"{kind} {response['k']}{role}: {response['id']}, seed {response['seed']}, {ended}"]
    lines += [f"  by {response['model']}"] if response["from"] != "responses" else []
    lines += _indented(response["text"])
    if response["revises"]:
        lines += [f"  revises {_name(found, response['revises'])}, under the principle:"]
        lines += [*_indented(response["principle"] or "", "      "), "  after the critique:"]
        lines += _indented(response["critique"] or "", "      ")
    if response["implicit"] is not None:
        now, before = response["implicit"]["logprob"], response["implicit"]["previous_logprob"]
        known = f"{now - before:+.4g} nats ({now:.4g} under M_t, {before:.4g} before)" if now is not None else "unknown"
        lines += [f"  implicit reward: {known}"]
    for title, votes in (("vote", response["votes"]), ("vote of M_{t-1}", response["previous_votes"])):
        for vote in votes:
            verdict = _verdict(found, response["id"], vote)
            lines += [f"  {title} {vote['vote']}{verdict}, seed {vote['seed']}"]
            lines += _indented(vote["raw_text"], "      ")
    return lines


def _verdict(found: dict[str, Any], response: str, vote: dict[str, Any]) -> str:
    """What a vote says of one of its subjects."""
    where = f" by {vote['judge']}" if vote["judge"] != found["judge"].get("judge.name") else ""
    where += f" on {vote['aspect']}" if vote["aspect"] else ""
    first, *others = vote["subject_ids"]
    if others:
        place, other = ("first", others[0]) if response == first else ("second", first)
        where += f", shown {place} beside {_name(found, other)}"
    if vote["error"] is not None:
        return f"{where}: {vote['error']}"
    if vote["preference"] is None:
        return f"{where}: score {vote['score']:g}"
    return f"{where}: {'tie' if vote['preference'] == 'tie' else 'won' if vote['preference'] == place else 'lost'}"


def _consistency(pair: dict[str, Any]) -> str:
    return "" if pair["consistency"] is None else f", consistency {pair['consistency']:.2f} with M_{{t-1}}"


def _name(found: dict[str, Any], response: str) -> str:
    """How a response is called where another one speaks of it."""
    return next(f"{RESPONSE[r['from']]} {r['k']}" for r in found["responses"] if r["id"] == response)


def _indented(text: str, by: str = "    ") -> list[str]:
    return [by + line for line in text.splitlines()]
