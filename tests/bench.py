"""What being able to resume costs, what judges cost, and the search for near-duplicates:

    python tests/bench.py journal | resume | judges | dedup | memory

``journal``: sampling by vLLM with the journal and without it, in turns, on the tiny model.
``judges``: responses judged a second by each judge, in turns, with vLLM's own figures of its prefix cache.
``resume``: how long a fresh process takes to know what is left of a run that was cut off with a million judgements.
``dedup``: the filter rouge_l against the paper's own, which is rouge_score on each pair of candidate and pool; that one
runs on a sample, from which its time for all is extrapolated, and the decisions on the sample must be the same.
``memory``: what `selfreward plan` says of a training and a merge on a CPU, against the greatest resident memory of
each, with the architecture of Qwen2.5-0.5B and random weights. Most of its hour on two cores is spent in bfloat16.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import re
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
    from selfreward import load_recipe, loop
    from selfreward.runs import run
    from selfreward.runs.journal import Journal
    from selfreward.runs.run import Run
    from selfreward.runs.stages import Step
    from selfreward.serving.engines import Engines
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
                run.Journal = kind  # type: ignore[misc]
                run.begin(Step("responses", 1))
                folder = run.stage("responses", 1)
                (folder.path / "journal.jsonl").unlink(missing_ok=True)
                started = time.perf_counter()
                responses.stage(run, Step("responses", 1), engines)
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
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
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
    from selfreward.runs.run import Run
    from selfreward.runs.stages import Step
    from selfreward.serving.engines import Engines

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
    from selfreward.engines.concurrency import run_coroutine
    from selfreward.engines.vllm import VLLMEngine
    from selfreward.judges import Panel
    from selfreward.prompts.dataset import read_held_out
    from selfreward.records import Response

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
        prompts = read_held_out(first.evaluation, first.prompts)[:40]
        texts = ["ant bear camel", "bear camel deer elk", "fox goat", "horse jackal koala", "lion", "otter pig seal"]
        responses = {
            p.id: [Response(f"{p.id}{k}", p.id, k, t, "stop", 3, k, "M1") for k, t in enumerate(texts)] for p in prompts
        }
        engine = VLLMEngine(first.model.path, first.model, first.engine)
        seconds: dict[str, list[float]] = {name: [] for name in recipes}
        cached: dict[str, list[float]] = {name: [] for name in recipes}
        for number in range(rounds + 1):
            for name, recipe in recipes.items():
                [seat] = Panel(recipe.judge).judges

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


FILTER = r"""
import json, re, sys, time
from pathlib import Path
from selfreward.prompts.filters.rouge import RougeL
from selfreward.records import Task
from selfreward.recipe.filter_settings import FilterSettings

def mebibytes(name):
    return int(re.search(name + r":\s+([0-9]+)", Path("/proc/self/status").read_text())[1]) / 1024

tasks = [Task.make(text, "bench") for text in json.load(sys.stdin)]
before, started, verdicts = mebibytes("VmRSS"), time.process_time(), []
rouge = RougeL(FilterSettings(), None)
for task in tasks:
    verdicts.append(rouge.look(task))
    if verdicts[-1] is None:
        rouge.add(task)
seconds, peak = time.process_time() - started, mebibytes("VmHWM")
ids = {task.alone: place for place, task in reversed([*enumerate(tasks)])}
found = [v and [ids[v.neighbour_id], v.similarity] for v in verdicts]
print(json.dumps({"seconds": seconds, "before": before, "peak": peak, "found": found}))
"""


def bench_dedup(sizes: list[int] | None, data: Path | None, pairs: int) -> None:
    """Prints a Markdown table. Seconds are of CPU time, on one core. Stops where a decision differs."""
    every = None if data is None else [_instruction(line) for line in data.read_text(encoding="utf-8").splitlines()]
    rows = []
    for num in sizes or ([10_000, 52_000] if every is None else [len(every)]):
        texts = instructions(num) if every is None else every[:num]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", FILTER]
        run = subprocess.run(
            command, input=json.dumps(texts), stdout=subprocess.PIPE, text=True, check=True, env=environment
        )
        ours = json.loads(run.stdout)
        sampled, compared, seconds = _check_sample(texts, ours["found"], pairs)
        pool = total = 0
        for found in ours["found"]:
            total += pool
            pool += found is None
        theirs = seconds * total / compared
        rows.append(
            f"| {len(texts):,} | {pool:,} | {total / 1e6:,.1f} M | {ours['seconds']:.2f} | {theirs:,.0f} "
            f"| {theirs / ours['seconds']:,.0f} | {ours['peak'] - ours['before']:.0f} MiB "
            f"| {sampled:,}, {compared:,} pairs: equal |"
        )
    print("| candidates | kept | pairs | rouge_l, s | rouge_score, s (extrapolated) | ratio | memory | sample |")
    print("|---|---|---|---|---|---|---|---|", *rows, sep="\n")


def _check_sample(texts: list[str], found: list[Any], most: int) -> tuple[int, int, float]:
    """Asks rouge_score about a sample of candidates; gives their number, pairs compared, and seconds that took.

    Half of them were removed, half kept, as long as there are both. Each is compared with all that was kept before it,
    so that with every candidate in the sample the two accept lists are the same.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer, rng = RougeScorer(["rougeL"], use_stemmer=False), random.Random(0)
    places = rng.sample(range(1, len(texts)), len(texts) - 1)
    removed, kept = ([p for p in places if (found[p] is not None) is wanted] for wanted in (True, False))
    mixed = [place for both in itertools.zip_longest(removed, kept) for place in both if place is not None]
    sampled, compared, seconds = 0, 0, 0.0
    for place in mixed:
        if compared >= most:
            break
        pool = [p for p in range(place) if found[p] is None]
        started = time.process_time()
        scores = [scorer.score(texts[place], texts[p])["rougeL"].fmeasure for p in pool]
        seconds += time.process_time() - started
        sampled, compared = sampled + 1, compared + len(pool)
        best = max(scores)
        ours = None if found[place] is None else found[place][1]
        theirs = best if best > 0.7 else None
        if ours != theirs or (ours is not None and scores[pool.index(found[place][0])] != best):
            raise SystemExit(f"{texts[place]!r}: rouge_l found {found[place]}, rouge_score {theirs}")
    return sampled, compared, seconds


def _instruction(line: str) -> str:
    row = json.loads(line)
    return str(row["instruction"] if "instruction" in row else row["prompt"])


FORMS = [
    "{verb} a {adjective} {kind} about {topic}",
    "{verb} a {kind} on {topic} for {person}",
    "given a {adjective} {kind} by {person}, {verb} its main points on {topic}",
    "what would {person} say about {topic} in a {adjective} {kind}",
    "{person} wants a {kind}. {verb} one that is {adjective} and deals with {topic}",
    "{verb} {number} {adjective} examples of {topic}",
    "how does {topic} differ from {topic}, {verb} the answer as a {kind}",
    "tell whether the following {kind} about {topic} is {adjective} or {adjective}",
]
ENDINGS = [
    "use no more than {number} words",
    "avoid any mention of {topic}",
    "explain each step so that {person} can follow",
    "finish with a {adjective} remark on {topic}",
    "name at least {number} sources, one of them {adjective}",
    "compare it with {topic} where that helps {person}",
]
PARTS = {
    "verb": "write describe outline summarise translate rewrite classify compare explain draft list improve",
    "adjective": "short formal simple funny persuasive detailed neutral honest vivid careful modern strange clear dry",
    "kind": "letter poem essay recipe story table report speech review dialogue plan headline proof query function",
    "person": "teacher nurse child lawyer tourist farmer student engineer gardener pilot baker judge coach parent",
}


def instructions(num: int) -> list[str]:
    """Instructions of 5 to 40 words, every sixth a variant of one before; topics are from an open vocabulary."""
    rng, texts = random.Random(0), list[str]()

    def fill(form: str) -> str:
        choices = {name: rng.choice(words.split()) for name, words in PARTS.items()}
        return re.sub(r"{(\w+)}", lambda slot: choices.get(slot[1]) or free(slot[1]), form)

    def free(kind: str) -> str:
        # As in real text, few words are frequent and most are rare.
        words = [_word(int(20 * rng.paretovariate(0.7))) for _ in range(rng.randint(2, 4))]
        return str(rng.randint(2, 20)) if kind == "number" else " ".join(words)

    while len(texts) < num:
        if texts and rng.random() < 1 / 6:
            words = rng.choice(texts).split()
            for place in rng.sample(range(len(words)), rng.randint(1, max(1, len(words) // 3))):
                words[place] = rng.choice(["", _word(rng.randint(1, 200)), words[place - 1]])
            text = " ".join(words)
        else:
            text = ". ".join(map(fill, [rng.choice(FORMS), *rng.sample(ENDINGS, rng.choice([0, 0, 1, 2]))]))
        if 5 <= len(text.split()) <= 40:
            texts.append(text)
    return texts


def _word(number: int) -> str:
    """A word that can be spoken, another for each number."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    word = ""
    while number or not word:
        number, rest = divmod(number, len(syllables))
        word += syllables[rest]
    return word


# The config.json of Qwen2.5-0.5B, and the pairs and tokens that are trained at once.
QWEN = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
}
SHAPES = [(1, 128), (2, 128)]


def bench_memory(shapes: list[tuple[int, int]], sizes: dict[str, Any]) -> None:
    """Prints a Markdown table, a row a training, each in a process of its own."""
    print("| dtype | checkpointing | pairs x tokens | training, GiB | planned | ratio | merge, GiB | planned | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("float32", "bfloat16"):
            model = random_qwen(Path(folder, dtype), dtype, sizes)
            for checkpointing, (pairs, length) in itertools.product((False, True), shapes):
                found = measure_training(Path(folder), model, dtype, checkpointing, pairs, length)
                rows = [(found[name], found[f"{name}_planned"]) for name in ("training", "merge")]
                cells = [f"{size / 2**30:.2f} | {plan / 2**30:.2f} | {plan / size:.2f}" for size, plan in rows]
                shape = f"{pairs} x {length}"
                print(f"| {dtype} | {'on' if checkpointing else 'off'} | {shape} | {' | '.join(cells)} |", flush=True)


def random_qwen(path: Path, dtype: str, sizes: dict[str, Any]) -> Path:
    """Saves a model of the architecture with random weights, and a tokenizer for which a character is a token."""
    import torch
    from tiny_world.pretrain import CHAT_TEMPLATE, SPECIAL
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2Tokenizer

    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pad, bos, eos, unknown = SPECIAL[:4]
    tokenizer = Qwen2Tokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=[],
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unknown,
        additional_special_tokens=list(SPECIAL[4:]),
        chat_template=CHAT_TEMPLATE,
    )
    config = Qwen2Config(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def measure_training(
    folder: Path, model: Path, dtype: str, checkpointing: bool, pairs: int, length: int
) -> dict[str, int]:
    """Two steps, and the merge, each in a process of its own: bytes that were resident, and that were planned."""
    settings = {"model": str(model), "dtype": dtype, "checkpointing": checkpointing, "pairs": pairs, "length": length}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])}
    found: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=folder) as own:
        for part in ("training", "merge"):
            code = f"import bench, sys; bench.{part}_here(*sys.argv[1:])"
            command = [sys.executable, "-c", code, own, json.dumps(settings)]
            child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            found |= json.loads(child.stdout.splitlines()[-1])
    return found


def training_here(folder: str, settings: str) -> None:
    """Trains in this process, and prints its peak and the plan's."""
    from trainings import make_run, write_records
    from trl import DPOConfig

    from selfreward.estimates import training_memory
    from selfreward.estimates.architecture import read
    from selfreward.estimates.machine import cpu
    from selfreward.launchers.layout import Layout
    from selfreward.runs.stages import Step
    from selfreward.training import dpo
    from selfreward.training.common import arguments, with_defaults

    given = json.loads(settings)
    options = {
        "per_device_train_batch_size": given["pairs"],
        "max_length": given["length"],
        "gradient_checkpointing": given["checkpointing"],
        "max_steps": 2,
        # Larger steps make chances so small that a CPU takes a hundred times as long with them.
        "learning_rate": 1e-6,
        "disable_dropout": True,
    }
    run = make_run(Path(folder), Path(given["model"]), dtype=given["dtype"], dpo=options, lora={"r": 16})
    rows = [_full_pair(number, given["length"]) for number in range(2 * given["pairs"])]
    write_records(run.stage("pairs", 1).path / "records.jsonl", rows)
    args = arguments(DPOConfig, run, Step("train", 1), with_defaults(dpo.DEFAULTS, run.recipe.training.dpo_options(1)))
    summary = dpo.train_adapter(run, Step("train", 1), args)
    assert summary["examples"] == len(rows), summary
    measured = _peak()
    plan = training_memory.dpo(run.recipe, read(run.recipe.model), Layout.of(run.recipe, 1, 0), cpu())
    planned = {"training_planned": plan.memory.total, "merge_planned": plan.merge}
    print(json.dumps({"training": measured, **planned}))


def merge_here(folder: str, settings: str) -> None:
    """Merges what :func:`training_here` has trained, and prints the peak of this process."""
    from selfreward.runs.run import Run
    from selfreward.runs.stages import Step
    from selfreward.training import dpo
    from selfreward.training.common import checkpoints_folder

    run = Run.open(Path(folder, "runs", "test"))
    dpo.merge(run, Step("train", 1), checkpoints_folder(run, Step("train", 1)) / "trained")
    print(json.dumps({"merge": _peak()}))


def _peak() -> int:
    """Bytes of this process that were resident at most."""
    [size] = re.findall(r"VmHWM:\s+([0-9]+)", Path("/proc/self/status").read_text())
    return int(size) * 1024


def _full_pair(number: int, length: int) -> Any:
    """A pair whose sides have exactly so many tokens: beside the characters, five of the template."""
    from selfreward.records import PreferencePair

    prompt = [{"role": "user", "content": f"Go {number:02}."}]
    sides = [[{"role": "assistant", "content": letter * (length - 5 - 6)}] for letter in "ab"]
    names = (f"c{number}", f"r{number}")
    return PreferencePair(f"pair{number}", f"prompt{number}", prompt, *sides, *names, 4.0, 1.0, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["journal", "resume", "judges", "dedup", "memory"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--num", type=int, nargs="+", help="dedup: how many instructions (10000 52000, or all of data)")
    parser.add_argument("--data", type=Path, help="dedup: JSONL with `instruction` or `prompt`, not made-up ones")
    parser.add_argument(
        "--pairs", type=int, default=200_000, help="dedup: pairs for rouge_score, about 13,000 a second"
    )
    arguments = parser.parse_args()
    if arguments.what == "dedup":
        bench_dedup(arguments.num, arguments.data, arguments.pairs)
    elif arguments.what == "memory":
        bench_memory(SHAPES, QWEN)
    else:
        {"journal": bench_journal, "resume": bench_resume, "judges": bench_judges}[arguments.what](arguments.rounds)


if __name__ == "__main__":
    main()
