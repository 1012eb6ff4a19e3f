"""Loop metrics to accelerate's trackers (TensorBoard, Weights & Biases, trackio, MLflow, ...)."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from selfreward.recipe.loader import suggest
from selfreward.runs.run import Run


class Trackers:
    """The trackers that the recipe names; none by default, and then nothing is imported."""

    def __init__(self, run: Run) -> None:
        settings = run.recipe.tracking
        self._trackers: list[Any] = []
        for name in settings.report_to:
            self._trackers.append(_start(name, settings.project, run))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracker in self._trackers:
            tracker.finish()

    def log(self, iteration: int, stage: str, summary: dict[str, Any]) -> None:
        """Logs a stage's figures as ``stage/figure``, with the iteration."""
        figures = {f"{stage}/{name}": value for name, value in summary.items() if isinstance(value, int | float)}
        for tracker in self._trackers:
            # Trackers that the trainer logs to as well drop what has a step before its last one.
            step = iteration if tracker.name == "tensorboard" else None
            tracker.log({**figures, "iteration": iteration}, step=step)


def _start(name: str, project: str, run: Run) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:
        raise ValueError(
            f"tracking.report_to: accelerate has no tracker {name!r}. {suggest(name, list(LOGGER_TYPE_TO_CLASS))}"
        )
    if name not in [getattr(tracker, "value", tracker) for tracker in get_available_trackers()]:
        raise ValueError(f"tracking.report_to: {name} is not installed. Install it, or take it out of the recipe")
    tracker_class = LOGGER_TYPE_TO_CLASS[name]
    folder = {"logging_dir": str(run.path / "tracking")} if tracker_class.requires_logging_directory else {}
    tracker = tracker_class(project, **folder)
    tracker.start()
    tracker.store_init_configuration({"run": run.recipe.name, "seed": run.recipe.seed})
    return tracker
