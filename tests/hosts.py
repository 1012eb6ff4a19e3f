"""Hosts on one machine, gone without a trace when their block ends.

A host is a network namespace with an address, a name that the others resolve, and the machine's files. It can be killed
whole, or unplugged. Clean-up takes every process in it, also where the test itself was SIGKILLed.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

LIMIT = 120.0  # seconds in which anything here is done, also on a busy machine
_NUMBER = itertools.count()

# Waits for the end of its input, which comes however the test's process ends.
CLEAN_UP = """
cat > /dev/null
link=$1 bridge=$2
shift 2
for host in "$@"; do
    for _ in $(seq 100); do
        pids=$(ip netns pids "$host")
        [ -z "$pids" ] && break
        kill -KILL $pids
        sleep 0.05
    done
    ip link delete "$host"
    ip netns delete "$host"
done
ip link delete "$bridge"
rm -f "$link"
"""
# Its own host name, and an /etc/hosts that knows the others'; then the command in place of the shell.
ENTER = 'mount --bind "$1" /etc/hosts; hostname "$2"; shift 2; exec "$@"'


def require(*tools: str) -> None:
    """Skips the test where this machine can't have hosts with these tools."""
    missing = [tool for tool in ("ip", "mount", "nsenter", "unshare", *tools) if not shutil.which(tool)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (make install-cluster)")
    if subprocess.run(["unshare", "--net", "--mount", "--uts", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no right to make network namespaces: needs root, in a container with CAP_SYS_ADMIN")


@dataclass
class Hosts:
    """Hosts side by side in one network."""

    folder: Path  # a short path to the folder given: that of a Unix socket may have 107 characters
    label: str
    network: str  # such as 10.64.0
    names: tuple[str, ...]
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    def address(self, name: str) -> str:
        return f"{self.network}.{1 + self.names.index(name)}"

    def start(
        self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """A command on a host, with this environment and ``env``; the process is the command itself."""
        inside = ["nsenter", f"--net=/run/netns/{self._namespace(name)}", "unshare", "--uts", "--mount"]
        names = str(self.folder / "hosts")
        inside += ["sh", "-euc", ENTER, "sh", names, name, *command]
        process = subprocess.Popen(inside, env={**os.environ, **(env or {})}, text=True, **options)
        self._started.append(process)
        return process

    def run(
        self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = LIMIT
    ) -> str:
        """What a command on a host prints.

        Raises:
            AssertionError: it failed, with all that it printed.
        """
        process = self.start(name, command, env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        output, errors = process.communicate(timeout=timeout)
        assert process.returncode == 0, f"{command} on {name} ended with {process.returncode}:\n{output}{errors}"
        return output

    def pids(self, name: str) -> list[int]:
        """The processes of a host."""
        return [int(pid) for pid in _ip("netns", "pids", self._namespace(name)).split()]

    def kill(self, name: str) -> None:
        """SIGKILLs all processes of a host, as if it lost power; the others are told that connections are closed."""
        while pids := self.pids(name):
            subprocess.run(["kill", "-KILL", *map(str, pids)], check=False, stderr=subprocess.DEVNULL)
            time.sleep(0.01)

    def unplug(self, name: str) -> None:
        """Cuts a host's cable: nobody is told anything."""
        _ip("link", "set", self._namespace(name), "down")

    def plug_in(self, name: str) -> None:
        _ip("link", "set", self._namespace(name), "up")

    def _namespace(self, name: str) -> str:
        return f"{self.label}-{self.names.index(name)}"

    def _connect(self, name: str) -> None:
        namespace = self._namespace(name)
        _ip("netns", "add", namespace)
        _ip("link", "add", namespace, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("link", "set", namespace, "master", self.label, "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", namespace, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")


@contextmanager
def hosts(folder: Path, names: Sequence[str] = ("n1", "n2")) -> Iterator[Hosts]:
    """Hosts of these names, at 10.X.0.1, 10.X.0.2 and so on; this process reaches them from 10.X.0.254.

    They have no way out to the internet.
    """
    require()
    label = f"sr{os.getpid()}-{next(_NUMBER)}"
    link = Path(tempfile.gettempdir()) / label
    made = Hosts(link, label, _free_network(), tuple(names))
    command = ["sh", "-c", CLEAN_UP, "sh", str(link), label, *(made._namespace(name) for name in names)]
    quiet = subprocess.DEVNULL
    # In a session of its own, as Ctrl-C in the terminal is not for it.
    cleaner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder.resolve())
        known = [f"127.0.0.1 localhost\n::1 localhost\n{made.network}.254 {socket.gethostname()}\n"]
        (folder / "hosts").write_text("".join([*known, *(f"{made.address(name)} {name}\n" for name in names)]))
        _ip("link", "add", label, "type", "bridge")
        _ip("address", "add", f"{made.network}.254/24", "dev", label)
        _ip("link", "set", label, "up")
        for name in names:
            made._connect(name)
        yield made
    finally:
        assert cleaner.stdin
        cleaner.stdin.close()
        cleaner.wait()
        for process in made._started:
            process.wait()


def _free_network() -> str:
    used = _ip("-4", "address") + _ip("-4", "route")
    # Other test runs may be looking for one at this moment.
    choices = [f"10.{64 + (os.getpid() + step) % 128}.0" for step in range(128)]
    return next(network for network in choices if f" {network}." not in used)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=False, text=True, capture_output=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
