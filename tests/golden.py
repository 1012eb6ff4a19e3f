"""What runs store stays the same from version to version: golden runs, and the hashes of all that they store.

::

    python tests/golden.py make FOLDER [RUN ...]        the runs of golden/runs.yaml, and their hashes in FOLDER
    python tests/golden.py make FOLDER --quickstart     the quick start as well, with the real vLLM: some 5 minutes
    python tests/golden.py compare OLD.json NEW.json    each difference of two files of hashes
    python tests/golden.py cut FOLDER                   runs that are killed in the middle of each stage
    python tests/golden.py resume FOLDER                finishes copies of those, and compares with a run never killed

``make`` goes on with what is in the folder. It writes two files. ``hashes.json`` has everything, and holds on one
machine with one set of libraries. ``portable.json`` has what depends on neither, and stands in the repository as
``golden/hashes.json``: records, journals, recipes, markers without what was trained. Where a stored value has to
change, make it anew, and say in the changelog what that means for runs that there are.

Left out are clocks and speeds, the versions in markers, ``environment.json``, locks and seals (whose form is checked).
Put in another form is what names the place of a run: paths in ``resolved.json``, the base model's folder in
``adapter_config.json``, whose lists have no order either, and the keys of requests to a judge with a model of its own
(those are left out). The digest of a stage that another one has read covers that
file's bytes, so it is compared with the digest of the marker that is there. Journals are compared as sets of lines.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from binascii import crc32
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import golden_engines
import yaml

import selfreward

TESTS = Path(__file__).resolve().parent
DATA, STORED = TESTS / "golden" / "data", TESTS / "golden" / "hashes.json"
# A random model of a few thousand weights.
MODEL = TESTS / "old_runs" / "0.1.0" / "model"
SETTINGS: dict[str, Any] = yaml.safe_load((TESTS / "golden" / "runs.yaml").read_text("utf-8"))
RUNS, CUT = SETTINGS["runs"], SETTINGS["cut"]
# Their records depend on a model's arithmetic.
COMPUTED = ("reward_model", "transformers")
MARKER, SEAL, PLACE, RECIPE = "stage.json", "sha256", "adapter_config.json", "resolved.json"
TRAINING = ("train", "draft_train")
CLOCKS = ("time", "seconds", "tokens_per_second", "judge_tokens_per_second", "crc", "resumed")
TRAINER_CLOCKS = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")
Hashes = dict[str, str]


# Making runs


@dataclass(frozen=True)
class Lab:
    """A folder with a recipe, its data, and the run that is made of it."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "run.yaml"

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "golden"

    @property
    def kept(self) -> Path:
        """Journals of stages that are done, and the marks of their beginning."""
        return self.folder / "kept"

    def write(self, settings: Mapping[str, Any]) -> None:
        """Writes the recipe and what it names."""
        shutil.copytree(DATA, self.folder / "data", dirs_exist_ok=True)
        for name in ("model", "other"):
            shutil.copytree(MODEL, self.folder / "data" / name, dirs_exist_ok=True)
        recipe = merged(SETTINGS["base"], settings)
        if "data/reward" in json.dumps(recipe):
            _make_reward_model(self.folder / "data" / "reward")
        self.recipe.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def perform(self) -> None:
        """Makes the run, or what is left of it."""
        golden_engines.kept.run, golden_engines.kept.folder = self.run, self.kept
        selfreward.run(selfreward.load_recipe(self.recipe, [f"run_dir={self.run.parent}"]))

    def hashes(self, exact: bool = True) -> Hashes:
        """The hashes of all that the run has stored."""
        return hashes_of(self.run, exact) | kept_hashes(self.run, self.kept, self._keeps_keys)

    @property
    def _keeps_keys(self) -> bool:
        """Whether the keys of journals don't hold the place: that of a judge with a model of its own has its folder."""
        return "model" not in yaml.safe_load(self.recipe.read_text("utf-8"))["judge"]


def merged(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with other settings, block by block; null takes a setting out."""
    result = dict(base)
    for name, value in other.items():
        if isinstance(value, dict) and isinstance(base.get(name), dict):
            result[name] = merged(base[name], value)
        elif value is None:
            result.pop(name, None)
        else:
            result[name] = value
    return result


def _make_reward_model(path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    if path.is_dir():
        return
    shutil.copytree(MODEL, path)
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(MODEL, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(path)


def make(folder: Path, names: Sequence[str], quickstart: bool = False) -> None:
    """Makes runs in a folder, and its files of hashes."""
    exact: dict[str, Hashes] = {}
    portable: dict[str, Hashes] = {}
    for name in names or RUNS:
        started, lab = time.monotonic(), Lab(folder / name)
        lab.write(RUNS[name])
        lab.perform()
        exact[name] = lab.hashes()
        if name not in COMPUTED:
            portable[name] = lab.hashes(exact=False)
        print(f"{name}: {len(exact[name])} hashes, {time.monotonic() - started:.1f} s", flush=True)
    if quickstart:
        exact["quickstart"] = run_quickstart(folder / "quickstart")
    _write(folder / "hashes.json", exact)
    _write(folder / "portable.json", portable)


def run_quickstart(folder: Path) -> Hashes:
    """Makes the quick start's run by the command, keeps the table that it prints, and hashes both."""
    folder.mkdir(parents=True, exist_ok=True)
    root = Path(selfreward.__file__).parents[1]
    words = ["run", str(root / "recipes" / "quickstart" / "run.yaml"), f"run_dir={folder}"]
    result = subprocess.run(
        [sys.executable, "-m", "selfreward", *words],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    table = result.stdout.replace(str(folder.resolve()), "FOLDER")
    (folder / "table.txt").write_text(table, encoding="utf-8")
    print(table)
    # The last column has seconds.
    cells = [re.split("[┃│]", line)[:-2] for line in table.splitlines()]
    return hashes_of(folder.resolve() / "quickstart") | {"table": _hash(cells)}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


# Hashing


def hashes_of(run: Path, exact: bool = True) -> Hashes:
    """The hashes of a run's recipe, logs, and of each file and marker of its stages."""
    found = {
        RECIPE: _hash(_unplaced(_unsealed(run / RECIPE), run)),
        "metrics.jsonl": _hash(_metrics(run / "metrics.jsonl", exact)),
    }
    for path in sorted(run.glob(f"*/*/{MARKER}")):
        stage, marker = str(path.parent.relative_to(run)), _unsealed(path)
        names = [name for name in marker["wrote"] if exact or name.endswith(".jsonl")]
        files = {name: _file_hash(run / name) for name in names}
        found |= files
        parts = _parts(run, stage, marker, files, exact)
        found |= {f"{stage}/{MARKER} {part}": _hash(value) for part, value in parts.items()} if exact else {}
        found |= {} if exact else {f"{stage}/{MARKER}": _hash(parts)}
    return found if exact else {name: digest[:16] for name, digest in found.items()}


def kept_hashes(run: Path, kept: Path, keys: bool = True) -> Hashes:
    """The hashes of the journals, whose lines have no order, and of what stages had read when they were begun."""
    lines_of = {path: path.read_bytes().splitlines(True) for path in kept.glob("*/*/journal.jsonl")}
    # A checksum, a key, and the answer.
    journals = {
        path: sorted(line if keys else line.split(b" ", 2)[2] for line in lines) for path, lines in lines_of.items()
    }
    begun = {path: _unsealed(path) for path in kept.glob("*/*/begun.json")}
    for content in begun.values():
        content["reads"]["stages"] = _digests(run, content["reads"]["stages"])
    found = {path: _hash(b"".join(lines)) for path, lines in journals.items()}
    found |= {path: _hash(content) for path, content in begun.items()}
    return {f"kept {path.relative_to(kept)}": digest[:16] for path, digest in sorted(found.items())}


def _parts(run: Path, stage: str, marker: dict[str, Any], files: Hashes, exact: bool) -> dict[str, Any]:
    """What a marker says, by part."""
    wrote = {n: files.get(n) for n in marker["wrote"] if exact or n.endswith((".jsonl", ".safetensors"))}
    trained = stage.endswith(TRAINING)
    return {
        "keys": [*marker],
        "format": marker["format"],
        "settings": marker["reads"]["settings"],
        "stages": _digests(run, marker["reads"]["stages"]),
        "reads": [*marker["reads"]],
        "wrote": wrote,
        "summary": _figures(marker["summary"], exact, trained),
    }


def _digests(run: Path, stages: Mapping[str, str | None]) -> dict[str, str | None]:
    """The digests of stages that were read; one that is that of its marker is told by a word."""
    return {name: _digest(run / name, digest) for name, digest in stages.items()}


def _digest(folder: Path, digest: str | None) -> str | None:
    if digest is None or not (folder / MARKER).is_file():
        return digest
    marker = _unsealed(folder / MARKER)
    return "that of its marker" if digest == _hash([marker["reads"], marker["wrote"]]) else digest


def _figures(figures: Mapping[str, Any], exact: bool, trained: bool) -> dict[str, Any]:
    """The figures that are no clock's; of those that may hang on a processor, only as much as does not."""
    found = {name: value for name, value in figures.items() if name not in (*CLOCKS, *TRAINER_CLOCKS)}
    if exact:
        return found
    numbers = [name for name, value in found.items() if isinstance(value, float)]
    return found | {name: None if trained else float(f"{found[name]:.6g}") for name in numbers}


def _metrics(path: Path, exact: bool) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, whose checksums are right, as far as they stay; a start is its own."""
    entries = []
    for line in path.read_bytes().splitlines(True):
        body, _, crc = line.rpartition(b', "crc": "')
        assert crc == b'%08x"}\n' % crc32(body + b"}"), line
        entries.append(json.loads(line))
    kept = [entry for entry in entries if entry["stage"] != "start"]
    return [_figures(entry, exact, entry["stage"] in TRAINING) for entry in kept]


def _unsealed(path: Path) -> dict[str, Any]:
    """The content of a sealed file, whose form and seal are right to the byte."""
    raw = path.read_bytes()
    content: dict[str, Any] = json.loads(raw)
    seal = content.pop(SEAL)
    assert seal == _hash(content), f"{path}: the seal is wrong"
    sealed = json.dumps({**content, SEAL: seal}, indent=2, ensure_ascii=False) + "\n"
    assert sealed.encode() == raw, f"{path}: another form"
    return content


def _unplaced(content: dict[str, Any], run: Path) -> Any:
    """A recipe whose paths say nothing of where the run is, or the package."""
    text = json.dumps(content, sort_keys=True)
    package = Path(selfreward.__file__).parent
    for name, place in {"LAB": run.parents[1], "PACKAGE": package, "ROOT": package.parent}.items():
        text = text.replace(str(place), name)
    return json.loads(text)


def _file_hash(path: Path) -> str:
    if path.name != PLACE:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    content = json.loads(path.read_bytes())
    content["base_model_name_or_path"] = PurePath(content["base_model_name_or_path"]).parts[-2:]
    return _hash({name: sorted(value) if isinstance(value, list) else value for name, value in content.items()})


def _hash(content: Any) -> str:
    """The SHA-256 of bytes, or of a JSON value whatever its order of keys."""
    if not isinstance(content, bytes):
        content = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    return hashlib.sha256(content).hexdigest()


# Comparing


def differences(old: Mapping[str, Hashes], new: Mapping[str, Hashes]) -> Iterator[str]:
    """A line for each hash that is not the same."""
    for name in sorted({**old, **new}):
        if name not in old or name not in new:
            yield f"{name}: only in {'old' if name in old else 'new'}"
            continue
        before, after = old[name], new[name]
        for what in sorted({**before, **after}):
            if before.get(what) != after.get(what):
                yield f"{name}: {what}: {before.get(what, 'missing')[:12]} -> {after.get(what, 'missing')[:12]}"


def report(old: Mapping[str, Hashes], new: Mapping[str, Hashes]) -> int:
    """Prints the differences, and returns the exit status."""
    lines = [*differences(old, new)]
    print("\n".join(lines))
    print(f"{sum(map(len, old.values()))} hashes of {len(old)} runs: {len(lines)} differences")
    return int(bool(lines))


# Cut runs


def cut(folder: Path) -> None:
    """Makes runs that were killed in each of their stages, each beside the same run that was not."""
    references = {}
    for kind, settings in CUT.items():
        whole = Lab(folder / kind / "reference")
        whole.write(settings)
        whole.perform()
        references[kind] = comparable(whole)
        for stage in _stages(whole.run):
            lab = Lab(folder / kind / stage.replace("/", "-"))
            lab.write(settings)
            _kill_in(lab, stage)
            print(f"{kind}: cut in {stage}", flush=True)
    _write(folder / "hashes.json", references)


def comparable(lab: Lab) -> Hashes:
    """The hashes that a run has in common with one that was resumed: a log tells of each start."""
    return {name: digest for name, digest in lab.hashes().items() if name != "metrics.jsonl"}


def _stages(run: Path) -> list[str]:
    return [str(path.parent.relative_to(run)) for path in sorted(run.glob(f"*/*/{MARKER}"))]


def _kill_in(lab: Lab, stage: str) -> None:
    """Starts a run that kills itself in the middle of a stage."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["yaml", "torch", "trl.trainer.dpo_trainer", "trl.trainer.sft_trainer"])
    process = context.Process(target=_perform_until, args=(lab.folder, stage))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"{stage}: not killed, but {process.exitcode}"
    assert (lab.run / stage / "begun.json").is_file(), f"{stage} was not begun"
    assert not (lab.run / stage / MARKER).is_file(), f"{stage} is finished"


def _perform_until(folder: Path, stage: str) -> None:
    lab = Lab(folder)
    _kill_before_marker(lab.run / stage / MARKER)
    threading.Thread(target=_kill_in_middle, args=(lab.run / stage,), daemon=True).start()
    lab.perform()


def _kill_before_marker(marker: Path) -> None:
    """Lets the process die where it would commit the stage, if nothing has killed it before."""
    replace: Callable[..., None] = os.replace

    def fatal(source: Any, target: Any) -> None:
        if Path(target) == marker:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = fatal  # type: ignore[assignment]


def _kill_in_middle(folder: Path) -> None:
    """Kills the process once the stage has journaled some requests, or has a whole checkpoint."""
    while _lines(folder / "journal.jsonl") < 4 and not [*folder.glob("checkpoints/*/complete.json")]:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def resume(folder: Path) -> int:
    """Resumes a copy of each cut run, and compares with the run that was not cut; returns the exit status."""
    references = json.loads((folder / "hashes.json").read_text("utf-8"))
    old: dict[str, Hashes] = {}
    new: dict[str, Hashes] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for path in sorted(folder.glob("*/*/run.yaml")):
            kind, stage = path.parent.parts[-2:]
            if stage != "reference":
                name = f"{kind} {stage}"
                old[name], new[name] = references[kind], _resumed(path.parent, Path(temporary) / name, references[kind])
                print(f"{name}: {len([*differences({name: old[name]}, {name: new[name]})])} differences", flush=True)
    return report(old, new)


def _resumed(source: Path, folder: Path, reference: Hashes) -> Hashes:
    """The hashes of a copy of a cut run that was resumed."""
    shutil.copytree(source, folder)
    lab = Lab(folder)
    for path in [*lab.run.glob("*/*/journal.jsonl"), *lab.run.glob("*/*/begun.json")]:
        # An attempt that is thrown away would leave the file behind this name as it is, and so be found.
        (lab.kept / path.relative_to(lab.run)).unlink(missing_ok=True)
    golden_engines.kept.run, golden_engines.kept.folder = lab.run, lab.kept
    golden_engines.kept.keep()
    has_checkpoint = any(lab.run.glob("*/*/checkpoints/*/complete.json"))
    lab.perform()
    # Of stages without requests nothing is kept in a run that is not cut.
    found = {name: digest for name, digest in comparable(lab).items() if name in reference or "kept" not in name}
    if has_checkpoint and '"resumed_from_step"' not in (lab.run / "metrics.jsonl").read_text("utf-8"):
        found["training"] = "it did not go on from its checkpoint"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("folder", type=Path)
    making.add_argument("runs", nargs="*")
    making.add_argument("--quickstart", action="store_true")
    comparing = commands.add_parser("compare")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    for name in ("cut", "resume"):
        commands.add_parser(name).add_argument("folder", type=Path)
    given = parser.parse_args()
    print(f"selfreward of {selfreward.__file__}")
    if given.command == "make":
        make(given.folder.resolve(), given.runs, given.quickstart)
    elif given.command == "compare":
        old, new = (json.loads(path.read_text("utf-8")) for path in (given.old, given.new))
        sys.exit(report(old, new))
    elif given.command == "cut":
        cut(given.folder.resolve())
    else:
        sys.exit(resume(given.folder.resolve()))


if __name__ == "__main__":
    main()
