"""One writer per run folder, however its holder ends and on whichever host it is."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from selfreward.errors import RunLocked
from selfreward.runtime import lock
from selfreward.runtime.lock import Holder, RunLock, holder, part_of

HOLD = """
with lock.RunLock(folder) as held:
    print(held.token, flush=True)
    sys.stdin.readline()
"""
Start = Callable[..., "Program"]


PREPARE = """
import fcntl, os, signal, subprocess, sys, time
from pathlib import Path
from selfreward.runtime import lock
folder = Path(sys.argv[1])
lock.HEARTBEAT_S, lock.WATCH_S, lock.SHUTDOWN_TIMEOUT_S, lock.RETRY_PAUSE_S = 0.05, 0.5, 0.1, 0.005
"""


class Program:
    """A Python process that gets ``folder`` and talks in lines."""

    def __init__(self, script: str, folder: Path, **environment: str) -> None:
        command = [sys.executable, "-c", PREPARE + script, str(folder)]
        pipe = subprocess.PIPE
        env = {**os.environ, **environment}
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env, process_group=0
        )

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def say(self, text: str = "") -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> tuple[int, str]:
        """Waits for its end; its status and what it wrote as errors."""
        self.process.wait(timeout=60)
        _, errors = self.process.communicate()
        return self.process.returncode, errors


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts programs, and ends them after the test with all that they left behind."""
    programs: list[Program] = []

    def starter(script: str, **environment: str) -> Program:
        programs.append(Program(script, tmp_path, **environment))
        return programs[-1]

    yield starter
    for program in programs:
        with suppress(ProcessLookupError):
            os.killpg(program.process.pid, signal.SIGKILL)
        program.process.wait()
        for stream in (program.process.stdin, program.process.stdout, program.process.stderr):
            assert stream
            with suppress(BrokenPipeError):
                stream.close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(lock, "WATCH_S", 0.5)
    monkeypatch.setattr(lock, "RETRY_PAUSE_S", 0.005)
    for name in ("RANK", lock.TOKEN_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def entry(**values: Any) -> str:
    content = {"host": "elsewhere", "pid": 7, "started": "2026-01-01T00:00:00+00:00", "token": "theirs", "beat": 3}
    return json.dumps({**content, **values})


def refusal(folder: Path) -> str:
    with pytest.raises(RunLocked) as refused, RunLock(folder):
        pass
    return str(refused.value)


def assert_free(folder: Path) -> None:
    with RunLock(folder):
        assert holder(folder) is not None


def test_a_second_process_is_refused_and_told_who_writes(tmp_path: Path, start: Start) -> None:
    first = start(HOLD)
    first.line()
    pid, host = first.process.pid, socket.gethostname()
    who = re.escape(f"{tmp_path} is being written by process {pid} on {host} since 20")
    assert re.match(rf"{who}.*\. Wait until it ends, or stop it: kill {pid} on {re.escape(host)}$", refusal(tmp_path))
    status, errors = start(HOLD).end()
    assert (status, f"process {pid} on {host}" in errors) == (1, True)
    first.say()
    assert first.end() == (0, "")


def test_the_process_itself_can_not_take_it_twice(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        assert f"process {os.getpid()}" in refusal(tmp_path)
    assert_free(tmp_path)


def test_a_killed_holder_leaves_it_free_without_a_wait(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    first = start(HOLD)
    first.line()
    first.kill()
    assert str(first.process.pid) in (tmp_path / lock.LOCK_FILE).read_text()
    assert holder(tmp_path) is None
    assert_free(tmp_path)
    assert capsys.readouterr().err == ""


def test_leaving_empties_the_file_and_keeps_it(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        first = (tmp_path / lock.LOCK_FILE).stat()
    assert (tmp_path / lock.LOCK_FILE).read_bytes() == b""
    assert_free(tmp_path)
    assert (tmp_path / lock.LOCK_FILE).stat().st_ino == first.st_ino
    assert first.st_mode & 0o777 == 0o600


CONTEND = """
lock.MAX_TRIES = 3
for line in iter(sys.stdin.readline, ""):
    name, moment = line.split()
    while time.monotonic() < float(moment):
        pass
    try:
        with lock.RunLock(folder / name):
            print("has it", flush=True)
            sys.stdin.readline()
    except lock.RunLocked:
        print("refused", flush=True)
        sys.stdin.readline()
"""


def test_of_processes_that_start_at_the_same_moment_exactly_one_gets_it(tmp_path: Path, start: Start) -> None:
    programs = [start(CONTEND) for _ in range(3)]
    for number in range(40):
        # Every other round in a folder where there is no file yet.
        folder = tmp_path / ("old" if number % 2 else str(number))
        folder.mkdir(exist_ok=True)
        moment = time.monotonic() + 0.02
        for program in programs:
            program.say(f"{folder.name} {moment}")
        assert sorted(program.line() for program in programs) == ["has it", "refused", "refused"]
        for program in programs:
            program.say()


def test_a_look_at_the_holder_does_not_make_a_starting_writer_fail(tmp_path: Path) -> None:
    """The look holds a shared lock for an instant; here it is a long one."""
    (tmp_path / lock.LOCK_FILE).touch()
    with (tmp_path / lock.LOCK_FILE).open() as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        assert holder(tmp_path) is None
        end = threading.Timer(0.03, fcntl.flock, (look, fcntl.LOCK_UN))
        end.start()
        assert_free(tmp_path)
        end.join()


def test_the_holder_is_who_writes_now(tmp_path: Path, start: Start) -> None:
    assert holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    first = start(HOLD)
    first.line()
    found = holder(tmp_path)
    assert found is not None
    assert (found.host, found.pid, found.certain) == (socket.gethostname(), first.process.pid, True)
    first.say()
    first.end()
    assert holder(tmp_path) is None


def test_a_holder_is_seen_whole_while_it_beats(tmp_path: Path, start: Start) -> None:
    first = start(f"lock.HEARTBEAT_S = 0\n{HOLD}")
    first.line()
    found = [holder(tmp_path) for _ in range(1000)]
    assert {h and h.pid for h in found} == {first.process.pid}


def test_a_file_caught_in_the_middle_of_a_write_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RETRY_PAUSE_S", 0.5)
    (tmp_path / lock.LOCK_FILE).write_text(entry()[:20])
    rest = threading.Timer(0.1, (tmp_path / lock.LOCK_FILE).write_text, (entry(),))
    rest.start()
    assert holder(tmp_path) is not None
    rest.join()


def test_a_killed_holder_of_another_host_is_an_uncertain_one(tmp_path: Path) -> None:
    (tmp_path / lock.LOCK_FILE).write_text(entry())
    assert holder(tmp_path) == Holder("elsewhere", 7, "2026-01-01T00:00:00+00:00", certain=False)


def test_a_process_without_a_name_is_reported_as_such(tmp_path: Path) -> None:
    with (tmp_path / lock.LOCK_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "by a process that has not given its name" in refusal(tmp_path)
        assert holder(tmp_path) == Holder("an unknown host", 0, "an unknown time")
    assert_free(tmp_path)


# What a host whose flock does not reach this one does to the file.
BEATS_ELSEWHERE = """
import socket
socket.gethostname = lambda: "elsewhere"
fcntl.flock = lambda descriptor, kind: None
lock.HEARTBEAT_S = 0.2
"""


def test_a_live_holder_on_another_host_is_seen_by_its_beat(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    other = start(BEATS_ELSEWHERE + HOLD)
    other.line()
    assert f"stop it: kill {other.process.pid} on elsewhere" in refusal(tmp_path)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"watching for 0.5 s whether process {other.process.pid} on elsewhere since 20")
    other.say()
    assert other.end() == (0, "")
    assert_free(tmp_path)
    assert capsys.readouterr().err == ""


def test_a_dead_holder_on_another_host_is_followed_after_a_watch(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    other = start(BEATS_ELSEWHERE + HOLD)
    other.line()
    other.kill()
    assert_free(tmp_path)
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert holder(tmp_path) is None


def test_a_release_on_another_host_ends_the_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "WATCH_S", 1e9)
    (tmp_path / lock.LOCK_FILE).write_text(entry())
    release = threading.Timer(0.2, (tmp_path / lock.LOCK_FILE).write_text, ("",))
    release.start()
    assert_free(tmp_path)
    release.join()


def test_a_holder_that_another_host_took_for_dead_ends_and_leaves_the_run_to_it(tmp_path: Path, start: Start) -> None:
    first = start(f"signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\nlock.HEARTBEAT_S = 0.4\n{HOLD}")
    first.line()
    first.process.send_signal(signal.SIGSTOP)
    other = start(BEATS_ELSEWHERE + HOLD)
    other.line()
    first.process.send_signal(signal.SIGCONT)
    status, errors = first.end()
    assert (status, "another host took" in errors) == (5, True)
    assert f"process {other.process.pid} on elsewhere" in refusal(tmp_path)


def test_a_child_with_the_token_enters_and_leaves_the_lock_alone(tmp_path: Path, start: Start) -> None:
    with RunLock(tmp_path) as held:
        child = start(HOLD, **part_of(tmp_path))
        assert child.line() == held.token
        child.say()
        assert child.end() == (0, "")
        assert f"process {os.getpid()}" in refusal(tmp_path)


def test_a_child_without_the_token_is_refused(tmp_path: Path, start: Start) -> None:
    environments: tuple[dict[str, str], ...] = (
        {},
        {lock.TOKEN_VARIABLE: "another"},
        {lock.TOKEN_VARIABLE: ""},
        {"RANK": "0"},
    )
    with RunLock(tmp_path):
        for child in [start(HOLD, **environment) for environment in environments]:
            status, errors = child.end()
            assert (status, f"process {os.getpid()}" in errors) == (1, True)


def test_ranks_other_than_the_first_enter_freely(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    first = start(HOLD, RANK="0")
    first.line()
    monkeypatch.setenv("RANK", "1")
    with RunLock(tmp_path):
        pass
    found = holder(tmp_path)
    assert found is not None
    assert found.pid == first.process.pid


START_WATCHED = f"""
watched = '''
lock.watch_holder(folder, poll=0.02)
if os.environ["HEARING"] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("lives", flush=True)
time.sleep(0.3)
print("still lives", flush=True)
time.sleep(1000)
'''
with lock.RunLock(folder) as held:
    environment = {{**os.environ, "{lock.TOKEN_VARIABLE}": held.token}}
    command = [sys.executable, "-c", os.environ["PREPARE"] + watched, str(folder)]
    # What the child says at its end has no reader any more.
    child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    print(child.pid, flush=True)
    sys.stdin.readline()
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # One that has ended stays until its parent asks for its status.
        return sys.platform != "linux" or "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize(
    ("end", "hearing"), [("killed", "hears"), ("killed", "deaf"), ("left", "hears"), ("replaced", "hears")]
)
def test_a_watched_child_lives_as_long_as_its_holder(tmp_path: Path, start: Start, hearing: str, end: str) -> None:
    first = start(START_WATCHED, HEARING=hearing, PREPARE=PREPARE)
    pid = int(first.line())
    assert [first.line(), first.line()] == ["lives", "still lives"]
    if end == "left":
        first.say()
    elif end == "killed":
        first.kill()
    else:
        first.process.send_signal(signal.SIGSTOP)
        (tmp_path / lock.LOCK_FILE).write_text(entry())
    until(lambda: not is_alive(pid))


WATCHED_FROM_ELSEWHERE = """
import socket
socket.gethostname = lambda: "the child's"
lock.HEARTBEAT_S = 0.2
lock.watch_holder(folder, poll=0.02)
print("lives", flush=True)
time.sleep(1.2)
print("still lives", flush=True)
time.sleep(1000)
"""


def test_a_watched_child_on_a_host_that_the_lock_does_not_reach_goes_by_the_beat(tmp_path: Path, start: Start) -> None:
    first = start(BEATS_ELSEWHERE + HOLD)
    child = start(WATCHED_FROM_ELSEWHERE, **{lock.TOKEN_VARIABLE: first.line()})
    assert [child.line(), child.line()] == ["lives", "still lives"]
    first.kill()
    status, errors = child.end()
    assert (status, "this one ends too" in errors) == (RunLocked.exit_status, True)


def test_a_process_that_no_holder_started_watches_nobody(tmp_path: Path) -> None:
    lock.watch_holder(tmp_path)
    assert "watch_holder" not in [thread.name for thread in threading.enumerate()]


GARBAGE = [b"", b"{", b"[1]", b"null", b"\xff\x00" * 400, b"{" * 5000, entry(pid="7").encode(), entry(more=1).encode()]


@pytest.mark.parametrize("content", GARBAGE)
def test_a_file_that_says_nothing_is_a_released_one(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / lock.LOCK_FILE).write_bytes(content)
    assert holder(tmp_path) is None
    with RunLock(tmp_path):
        found = holder(tmp_path)
        assert found is not None
        assert found.pid == os.getpid()
    assert capsys.readouterr().err == ""


def test_every_torn_write_leaves_a_file_that_can_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RETRY_PAUSE_S", 0.0)
    whole = entry(host=socket.gethostname())
    for length in range(len(whole) + 1):
        (tmp_path / lock.LOCK_FILE).write_text(whole[:length])
        assert_free(tmp_path)


def test_a_forked_process_that_leaves_does_not_release_the_lock(tmp_path: Path, start: Start) -> None:
    first = start(HOLD.replace("print", "os.fork() or sys.exit(); os.wait(); print"))
    first.line()
    assert f"process {first.process.pid}" in refusal(tmp_path)


FORK = """
with lock.RunLock(folder):
    child = os.fork() or time.sleep(1000)
    print(child, flush=True)
    sys.stdin.readline()
print("left", flush=True)
"""


def test_a_forked_process_keeps_the_lock_of_a_killed_holder(tmp_path: Path, start: Start) -> None:
    first = start(FORK)
    child = int(first.line())
    first.kill()
    ended = f"as {first.process.pid} itself has ended, find the process that it left behind: fuser {tmp_path}/lock"
    assert ended in refusal(tmp_path)
    os.kill(child, signal.SIGKILL)
    until(lambda: not is_alive(child))
    assert_free(tmp_path)


def test_a_forked_process_does_not_keep_the_lock_that_was_left(tmp_path: Path, start: Start) -> None:
    first = start(FORK)
    child = int(first.line())
    first.say()
    assert first.line() == "left"
    assert is_alive(child)
    assert_free(tmp_path)
    os.kill(child, signal.SIGKILL)


def test_a_program_that_the_holder_starts_does_not_keep_the_lock(tmp_path: Path, start: Start) -> None:
    script = "child = subprocess.Popen(['sleep', '1000'], close_fds=False, stdout=2); print(child.pid, flush=True)"
    first = start(HOLD.replace("print(held.token, flush=True)", script))
    child = int(first.line())
    first.kill()
    assert is_alive(child)
    assert_free(tmp_path)
    os.kill(child, signal.SIGKILL)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / lock.LOCK_FILE).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"), RunLock(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, kind: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(ValueError, match=r"the file system of .*/lock has no locks: .*\. Mount it with locks"):
        RunLock(tmp_path).__enter__()


def test_a_beat_that_fails_is_reported_and_the_next_one_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error")]
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if failures and threading.current_thread().name == "lock":
            raise failures.pop(0)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with RunLock(tmp_path):
        until(lambda: '"beat": 5' in (tmp_path / lock.LOCK_FILE).read_text())
    errors = capsys.readouterr().err
    assert ("No space left on device" in errors, "Input/output error" in errors) == (True, True)
