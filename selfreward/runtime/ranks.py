"""Which of several processes this one is: what torchrun, accelerate and MPI tell those that they start. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

# A process that is none of theirs would take itself for one of several by them: vLLM does (vllm#3088).
_VARIABLES = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|(GROUP|ROLE)_(RANK|NAME|WORLD_SIZE)|MASTER_(ADDR|PORT)|"
    r"(TORCHELASTIC|ACCELERATE|FSDP|PMI|PMIX|OMPI|MV2|MPI)_\w+"
)


def rank(environment: Mapping[str, str] = os.environ) -> int:
    """The number of this process among those of its launcher; 0 without one."""
    return int(environment.get("RANK", "0"))


def world_size(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes its launcher started on all nodes; 1 without one."""
    return int(environment.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process keeps the books: the only one, or the first of several."""
    return rank() == 0


def has_agent() -> bool:
    """Whether an agent of torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables by which a launcher of several processes tells each which one it is."""
    return {name: value for name, value in environment.items() if _VARIABLES.fullmatch(name)}


def without_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without :func:`rank_variables`."""
    return {name: value for name, value in environment.items() if not _VARIABLES.fullmatch(name)}
