"""The journal: what had finished is there after any kill, whole, and is not asked again."""

import asyncio
import hashlib
import os
import subprocess
import sys

import pytest
from conftest import leave_disk

from selfreward.engines import Completion, SamplingParams
from selfreward.engines.journaled import JournaledEngine
from selfreward.engines.scripted import ScriptedEngine
from selfreward.errors import DiskFull
from selfreward.runs import journal as module
from selfreward.runs.journal import Journal

PARAMS = SamplingParams(1.0, 1.0, 8)
ASKED = [{"role": "user", "content": "Name a bird."}]


def key(number: int) -> str:
    return f"{number:032x}"


def write(path, count: int) -> bytes:
    with Journal(path) as journal:
        for number in range(count):
            journal.add(key(number), [f"text {number} äöü 🦉", "stop", number])
    return path.read_bytes()


def test_what_was_added_is_found_again(tmp_path):
    write(tmp_path / "j", 3)
    with Journal(tmp_path / "j") as journal:
        assert len(journal) == 3
        assert journal.get(key(1)) == ["text 1 äöü 🦉", "stop", 1]
        assert journal.get(key(3)) is None
        journal.add(key(3), "more")
        assert journal.get(key(3)) == "more"


def test_the_last_record_cut_at_every_byte_is_cut_off(tmp_path, capfd):
    whole = write(tmp_path / "j", 3)
    start = whole[:-1].rindex(b"\n") + 1
    for end in range(start, len(whole)):
        (tmp_path / "j").write_bytes(whole[:end])
        with Journal(tmp_path / "j") as journal:
            assert len(journal) == 2
            journal.add(key(2), ["text 2 äöü 🦉", "stop", 2])
        assert (tmp_path / "j").read_bytes() == whole
        assert (f"cut off {end - start} bytes" in capfd.readouterr().err) == (end > start)


def test_a_changed_byte_costs_its_record_alone_and_gives_no_wrong_one(tmp_path):
    whole = write(tmp_path / "j", 4)
    values = {key(n): [f"text {n} äöü 🦉", "stop", n] for n in range(4)}
    for place in range(len(whole)):
        (tmp_path / "j").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        line = whole[:place].count(b"\n")
        # A line end that is lost joins its line with the next one; the last line's is a torn tail.
        lost = {line, line + 1} if whole[place] == 10 else {line}
        for _ in range(2):
            with Journal(tmp_path / "j") as journal:
                for number, (k, value) in enumerate(values.items()):
                    assert journal.get(k) == (None if number in lost else value)


KILLED = """
import os, signal, sys
from pathlib import Path
from selfreward.runs.journal import Journal
journal = Journal(Path(sys.argv[1]))
for number in range(1000):
    journal.add(f"{number:032x}", number)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_takes_nothing_that_was_added(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "j")], check=False)
    with Journal(tmp_path / "j") as journal:
        assert [journal.get(key(n)) for n in range(1000)] == list(range(1000))


def test_it_is_on_the_disk_within_a_second_or_256_records(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), real(fd)))
    with Journal(tmp_path / "j") as journal:
        synced.clear()
        journal.add(key(0), "alone")
        while not synced:
            pass
        for number in range(1, 2000):
            journal.add(key(number), "one of many")
    steps = [after - before for before, after in zip([0, *synced], synced, strict=False)]
    assert len(synced) >= 3
    assert sum(steps) == (tmp_path / "j").stat().st_size


@pytest.mark.parametrize("operation", ["write", "fsync"])
def test_a_disk_that_fails_is_told_and_nothing_is_appended_behind_a_torn_line(tmp_path, monkeypatch, operation):
    write(tmp_path / "j", 2)
    journal = Journal(tmp_path / "j")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, operation, fail)
        with pytest.raises(DiskFull, match=r"No space left on device\. Make room"):
            journal.add(key(2), "lost")
            journal.close()
    with pytest.raises(DiskFull):
        journal.add(key(3), "not behind it")
    with Journal(tmp_path / "j") as again:
        assert [again.get(key(n)) is not None for n in range(2)] == [True, True]
        assert again.get(key(3)) is None


def test_a_nearly_full_disk_stops_the_stage(tmp_path, monkeypatch):
    leave_disk(monkeypatch, module.RESERVED_BYTES - 1)
    journal = Journal(tmp_path / "j")
    with pytest.raises(DiskFull, match="63 MiB of disk are left"):
        journal.add(key(0), "x")
        journal.close()


class Counting:
    """An engine that counts what it is asked."""

    model = "m"

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    async def generate(self, messages, params, seeds):
        self.asked += [(messages[-1]["content"], seed) for seed in seeds]
        return [Completion(f"{messages[-1]['content']} {seed}", "stop", 2) for seed in seeds]


def ask(journal: Journal, engine: Counting, *seeds: int, role: str = "policy", params: SamplingParams = PARAMS):
    return asyncio.run(JournaledEngine(engine, journal, role).generate(ASKED, params, seeds))


def test_a_request_that_finished_is_not_asked_again(tmp_path):
    engine = Counting()
    with Journal(tmp_path / "j") as journal:
        first = ask(journal, engine, 1, 2)
    with Journal(tmp_path / "j") as journal:
        assert ask(journal, engine, 2, 3, 1) == [first[1], Completion("Name a bird. 3", "stop", 2), first[0]]
    assert [seed for _, seed in engine.asked] == [1, 2, 3]


def test_another_request_is_another(tmp_path):
    engine = Counting()
    with Journal(tmp_path / "j") as journal:
        ask(journal, engine, 1)
        ask(journal, engine, 1, role="judge")
        ask(journal, engine, 1, params=SamplingParams(0.5, 1.0, 8))
    assert len(engine.asked) == 3


def test_a_penalty_makes_another_request_and_without_one_keys_are_those_of_old_journals(tmp_path):
    engine = Counting()
    with Journal(tmp_path / "j") as journal:
        ask(journal, engine, 1)
        ask(journal, engine, 1, params=SamplingParams(1.0, 1.0, 8, presence_penalty=0.0))
        ask(journal, engine, 1, params=SamplingParams(1.0, 1.0, 8, presence_penalty=2.0))
    assert len(engine.asked) == 2
    # As it was made before there were penalties.
    asked = '["policy",[{"content":"Name a bird.","role":"user"}],[1.0,1.0,8]]1'
    old = hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()
    assert f" {old} " in (tmp_path / "j").read_text().splitlines()[0]


class Together(Counting):
    """Finishes each request only when three are under way."""

    async def generate(self, messages, params, seeds):
        completions = await super().generate(messages, params, seeds)
        while len(self.asked) < 3:
            await asyncio.sleep(0)
        return completions


def test_requests_for_one_prompt_are_under_way_together(tmp_path):
    with Journal(tmp_path / "j") as journal:
        assert len(ask(journal, Together(), 1, 2, 3)) == 3


def test_what_this_attempt_asked_itself_is_not_counted_as_resumed(tmp_path):
    class Counting(ScriptedEngine):
        script = staticmethod(lambda model, text, seed: f"fox {seed}")

    def ask() -> dict[str, float]:
        with Journal(tmp_path / "journal.jsonl") as journal:
            engine = JournaledEngine(Counting("M1", None, None), journal, "judge")
            for _ in range(3):
                asyncio.run(engine.generate([{"role": "user", "content": "a"}], SamplingParams(0.0, 1.0, 8), [0]))
            return engine.summary(1.0)

    assert "resumed" not in ask()
    assert ask()["resumed"] == 3
