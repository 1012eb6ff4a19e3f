"""What travels between a worker and the one that asks it. No torch."""

from __future__ import annotations

from typing import Any

# ``do`` names a method of the engine, and its arguments stand beside it; ``number`` tells answers apart.
Request = dict[str, Any]
# ``answer``, or what went wrong: ``died`` (EngineDied), ``refused`` (ValueError) or ``failed``.
Answer = dict[str, Any]

HEARTBEAT_S = 5.0  # seconds between two signs of life
HEARTBEAT: Answer = {"beat": True}
