"""What a run was made with: ``environment.json``, and the versions in each marker."""

from __future__ import annotations

import os
import platform
import sys
from typing import TYPE_CHECKING

from selfreward.runs.stored import ENVIRONMENT
from selfreward.runtime.atomic import write_sealed
from selfreward.runtime.versions import versions

if TYPE_CHECKING:
    from selfreward.runs.run import Run


def determinism() -> str:
    """``exact``: a CPU, where a response depends on its request alone. ``seeded``: a GPU, whose kernels may round
    differently with what else is in the batch, so that the same seed may give another token."""
    from selfreward.runtime.gpus import has_gpu

    return "seeded" if has_gpu() else "exact"


def record_environment(run: Run) -> None:
    """Writes ``environment.json`` at the first start of a run; a later start has a line in ``metrics.jsonl``."""
    content = {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "command": [os.path.basename(sys.argv[0]), *sys.argv[1:2]],
        "determinism": determinism(),
        "versions": versions(),
    }
    path = run.path / ENVIRONMENT
    if path.exists():
        run.log({"stage": "start", **content})
    else:
        write_sealed(path, content)
