"""Everything behind one preference pair. Reads records only."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from selfreward.plan import makes_model
from selfreward.records import Judgement, PreferencePair, Prompt, Response
from selfreward.rundir import Run, iteration_of

STAGES = ("prompts", "responses", "judgements", "pairs")


def trace(run: Run, pair_id: str) -> dict[str, Any]:
    """The pair with its prompt, that prompt's parents, all N responses and each vote on them.

    Args:
        run: the run.
        pair_id: the id of a pair, or its first digits where they are enough.

    Raises:
        ValueError: no pair, or several, with these first digits.
    """
    iteration, pair = _find(run, pair_id)
    prompt = next(p for p in run.records("prompts", iteration, Prompt) if p.id == pair.prompt_id)
    votes = [j for j in run.records("judgements", iteration, Judgement) if j.prompt_id == prompt.id]
    responses = [r for r in run.records("responses", iteration, Response) if r.prompt_id == prompt.id]
    markers = {name: run.stage(name, iteration).marker for name in STAGES}
    return {
        "run": run.recipe.name,
        "iteration": iteration,
        "pair": asdict(pair),
        "prompt": asdict(prompt),
        "parents": [asdict(parent) for parent in _parents(run, iteration, prompt)],
        "responses": [
            {**asdict(r), "votes": [asdict(vote) for vote in votes if r.id in vote.subject_ids]} for r in responses
        ],
        "model": _model(run, iteration),
        "judge": {k: v for k, v in markers["judgements"]["reads"]["settings"].items() if k.startswith("judge")},
        "seed": markers["responses"]["reads"]["settings"]["seed"],
        "versions": {name: marker["versions"] for name, marker in markers.items()},
        "digests": {name: run.stage(name, iteration).digest for name in STAGES},
    }


def _find(run: Run, pair_id: str) -> tuple[int, PreferencePair]:
    found = [
        (t, pair)
        for t in sorted(iteration_of(path.name) for path in run.path.iterdir())
        if t > 0 and run.stage("pairs", t).done
        for pair in run.records("pairs", t, PreferencePair)
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
    known = {p.id: p for t in range(1, iteration + 1) for p in run.records("prompts", t, Prompt)}
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
        "",
        f"prompt {found['prompt']['id']}, from {found['prompt']['source']}",
        *_indented("\n\n".join(f"{m['role']}: {m['content']}" for m in found["prompt"]["messages"])),
    ]
    for parent in found["parents"]:
        lines += [f"made from prompt {parent['id']}", *_indented(parent["messages"][-1]["content"])]
    for response in found["responses"]:
        role = {pair["chosen_id"]: ", CHOSEN", pair["rejected_id"]: ", REJECTED"}.get(response["id"], "")
        ended = f"{response['num_tokens']} tokens, {response['finish_reason']}"
        lines += ["", f"response {response['k']}{role}: {response['id']}, seed {response['seed']}, {ended}"]
        lines += _indented(response["text"])
        for vote in response["votes"]:
            score = vote["error"] if vote["score"] is None else f"score {vote['score']:g}"
            lines += [f"  vote {vote['vote']}: {score}, seed {vote['seed']}", *_indented(vote["raw_text"], "      ")]
    return "\n".join(lines)


def _indented(text: str, by: str = "    ") -> list[str]:
    return [by + line for line in text.splitlines()]
