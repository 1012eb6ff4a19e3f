"""What being able to resume costs, and what judges cost:  python tests/bench.py journal | resume | judges

``journal``: sampling by vLLM with the journal and without it, in turns, on the tiny model.
``judges``: responses judged a second by each judge, in turns, with vLLM's own figures of its prefix cache.
``resume``: how long a fresh process takes to know what is left of a run that was cut off with a million judgements.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
sys.path.insert(0, str(Path(__file__).parent))

from selfreward.engines.scripted import ScriptedEngine

ROOT = Path(__file__).parents[1]
PROMPTS, N, VOTES = 62_500, 4, 4


def bench_journal(rounds: int) -> None:
    """Prints the ratio of the two wall times, and the share of the time that is spent in the journal."""
    from selfreward import load_recipe, loop, rundir
    from selfreward.journal import Journal
    from selfreward.plan import Step
    from selfreward.rundir import Run
    from selfreward.serving import Engines
    from selfreward.stages import responses

    class Plain(Journal):
        """Everything is written at the end, by the stage alone."""

        def add(self, key: str, value: Any) -> None:
            pass

    class Timed(Journal):
        spent = 0.0

        def add(self, key: str, value: Any) -> None:
            started = time.perf_counter()
            super().add(key, value)
            Timed.spent += time.perf_counter() - started

    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(
            ROOT / "recipes/quickstart/run.yaml", [f"run_dir={folder}", "seed_data=null", "training.rehearsal=0"]
        )
        run = Run.create(recipe)
        with Engines(run) as engines:
            loop.perform_here(run, Step("prompts", 1), engines)
            engines.policy(run.model_path(1))

            def sample(kind: type[Journal]) -> float:
                rundir.Journal = kind  # type: ignore[misc]
                run.begin(Step("responses", 1))
                folder = run.stage("responses", 1)
                (folder.path / "journal.jsonl").unlink(missing_ok=True)
                started = time.perf_counter()
                responses.stage(run, 1, engines)
                return time.perf_counter() - started

            sample(Plain)
            pairs = []
            for number in range(rounds):
                order = [Timed, Plain] if number % 2 else [Plain, Timed]
                seconds = {kind: sample(kind) for kind in order}
                pairs.append((seconds[Timed], seconds[Plain]))
    ratios = [journaled / plain for journaled, plain in pairs]
    total = sum(journaled for journaled, _ in pairs)
    count = recipe.prompts.num * recipe.responses.n  # type: ignore[operator]
    plain = statistics.median(seconds for _, seconds in pairs)
    print(f"{count} responses a round, {rounds} rounds: {plain:.2f} s without a journal")
    print(f"with / without: median {statistics.median(ratios):.4f}, from {min(ratios):.4f} to {max(ratios):.4f}")
    print(f"time in the journal: {Timed.spent / total:.2%} ({Timed.spent / rounds / count * 1e6:.1f} us a response)")


DECIDE = r"""
import re, sys, time
from pathlib import Path
started = time.perf_counter()
from selfreward.rundir import Run
from selfreward.plan import Step
imported = time.perf_counter()
run = Run.open(sys.argv[1])
run.begin(Step("judgements", 1))
with run.stage("judgements", 1).journal() as journal:
    decided = time.perf_counter()
    # The kernel's own ru_maxrss has what the parent held before exec.
    peak = int(re.search("VmHWM:\s+([0-9]+)", Path("/proc/self/status").read_text())[1]) / 1024
    print(f"{len(journal):,} judgements known after {decided - imported:.2f} s and {peak:.0f} MiB "
          f"(imports before that: {imported - started:.2f} s)")
"""


class Reviews(ScriptedEngine):
    """Answers at once, and fails at the last prompt."""

    @staticmethod
    def script(model: str, text: str, seed: int) -> str:
        if not text.startswith("Review"):
            return f"fox {seed}"
        if f"Name {PROMPTS - 1} birds." in text:
            raise ValueError("the last prompt is here")
        return f"The answer names a bird and keeps to the question, as was asked. It is short.\nScore: {seed % 6}"


def bench_resume(rounds: int) -> None:
    """Cuts a run off when all but its last judgements are in the journal, then asks fresh processes."""
    from selfreward import load_recipe, loop
    from selfreward.plan import Step
    from selfreward.rundir import Run
    from selfreward.serving import Engines

    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder, "prompts.jsonl")
        prompts.write_text("".join(json.dumps({"prompt": f"Name {n} birds."}) + "\n" for n in range(PROMPTS)))
        overrides = [f"run_dir={folder}", "seed_data=null", "training.rehearsal=0", f"prompts.path={prompts}"]
        overrides += ["prompts.num=null", f"responses.n={N}", f"judge.votes={VOTES}", "engine.name=bench:Reviews"]
        run = Run.create(load_recipe(ROOT / "recipes/quickstart/run.yaml", overrides))
        with Engines(run) as engines:
            for name in ("prompts", "responses"):
                loop.perform_here(run, Step(name, 1), engines)
            try:
                loop.perform_here(run, Step("judgements", 1), engines)
            except ValueError as error:
                print(f"cut off: {error}")
        for _ in range(rounds):
            subprocess.run([sys.executable, "-c", DECIDE, str(run.path)], check=True)


# Each judge asked in the way that its own cost shows: one vote, and judgements of 64 tokens where it writes any.
LABELS = "judge.pairwise.labels=['1', '2']"  # words of the tiny vocabulary
JUDGES = {
    "additive": [],
    "expected_score, think": ["judge.name=expected_score"],
    "expected_score, at once": ["judge.name=expected_score", "judge.expected.think=false"],
    "yes_no": ["judge.name=yes_no"],
    "rubric, 3 criteria": ["judge.name=rubric", "judge.criteria={criteria}"],
    "rubric, together": ["judge.name=rubric", "judge.criteria={criteria}", "judge.rubric.together=true"],
    "pairwise, all, at once": ["judge.name=pairwise", "judge.pairwise.think=false", LABELS],
    "pairwise, Swiss 2, at once": [
        *("judge.name=pairwise", "judge.pairwise.think=false", LABELS),
        *("judge.pairwise.matches=swiss", "judge.pairwise.rounds=2"),
    ],
    "pairwise, all, think": ["judge.name=pairwise", LABELS],
    "additive, answer first": ["judge.reference=answer"],
}
CRITERIA = """
- {name: correct, description: Every statement is true.}
- {name: complete, description: It covers all that was asked for.}
- {name: brief, description: Nothing in it could be left out.}
"""


def bench_judges(rounds: int) -> None:
    """Prints a Markdown table: 40 prompts with 6 responses each, packaged judge prompts, a model of 0.9 M weights."""
    from selfreward import load_recipe
    from selfreward.engines.vllm import VLLMEngine
    from selfreward.judges import Panel
    from selfreward.prompts.dataset import read_held_out
    from selfreward.records import Response
    from selfreward.stages.gather import run_coroutine

    with tempfile.TemporaryDirectory() as folder:
        criteria = Path(folder, "criteria.yaml")
        criteria.write_text(CRITERIA)
        base = ["judge.template=null", "judge.votes=1", "judge.max_tokens=64", "seed_data=null", "training.rehearsal=0"]
        base += ["engine.vllm.max_model_len=2048", "engine.vllm.disable_log_stats=false", "model.path={model}"]
        model = _long_context(Path(folder, "model"))
        recipes = {
            name: load_recipe(
                ROOT / "recipes/quickstart/run.yaml",
                [each.format(criteria=criteria, model=model) for each in [*base, *settings]],
            )
            for name, settings in JUDGES.items()
        }
        first = next(iter(recipes.values()))
        prompts = read_held_out(first)[:40]
        texts = ["ant bear camel", "bear camel deer elk", "fox goat", "horse jackal koala", "lion", "otter pig seal"]
        responses = {
            p.id: [Response(f"{p.id}{k}", p.id, k, t, "stop", 3, k, "M1") for k, t in enumerate(texts)] for p in prompts
        }
        engine = VLLMEngine(first.model.path, first.model, first.engine)
        seconds: dict[str, list[float]] = {name: [] for name in recipes}
        cached: dict[str, list[float]] = {name: [] for name in recipes}
        for number in range(rounds + 1):
            for name, recipe in recipes.items():
                [seat] = Panel(recipe.judge).seats

                async def all_of_them(seat: Any = seat, seed: int = number) -> None:
                    await asyncio.gather(*(seat.vote(engine, p, responses[p.id], seed) for p in prompts))

                engine.reload(first.model.path)  # empties the prefix cache
                before = engine.prefix_cache()
                started = time.perf_counter()
                run_coroutine(all_of_them())
                if number:  # the first round warms up
                    seconds[name].append(time.perf_counter() - started)
                    queries, hits = (after - b for after, b in zip(engine.prefix_cache(), before, strict=True))
                    cached[name].append(hits / max(1, queries))
        engine.close()
    count, plain = len(prompts) * len(texts), statistics.median(seconds["additive"])
    print(f"{count} responses a round, {rounds} rounds in turns\n")
    print("| judge | responses a second | beside additive | prefix cache |\n|---|---|---|---|")
    for name, each in seconds.items():
        median = statistics.median(each)
        rate = f"{count / median:.0f} ({count / max(each):.0f} to {count / min(each):.0f})"
        print(f"| {name} | {rate} | {plain / median:.2f} | {statistics.median(cached[name]):.1%} |")


def _long_context(path: Path) -> Path:
    """The tiny model's architecture and tokenizer with random weights and room for the packaged judge prompts."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = ROOT / "selfreward/tiny/model"
    # An engine whose output layer is tied would be started again to empty its cache.
    config = AutoConfig.from_pretrained(source, max_position_embeddings=2048, tie_word_embeddings=False)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    AutoTokenizer.from_pretrained(source).save_pretrained(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["journal", "resume", "judges"])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    {"journal": bench_journal, "resume": bench_resume, "judges": bench_judges}[arguments.what](arguments.rounds)


if __name__ == "__main__":
    main()
