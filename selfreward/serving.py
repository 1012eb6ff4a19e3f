"""The engines of a run: which model they serve, and when they make room."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from selfreward import registry
from selfreward.config import EngineSettings, ModelSettings, Recipe
from selfreward.engines import Engine


class Engines:
    """Starts engines when they are first needed and hands them new weights where they can stay up."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._policy: Engine | None = None
        self._judge: Engine | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def policy(self, model_path: str) -> Engine:
        """The engine that samples, serving the weights at ``model_path``."""
        if self._policy is None:
            self.make_room()
            self._policy = _start(model_path, self._recipe.model, self._recipe.engine)
        elif self._policy.model != model_path:
            self._policy.reload(model_path)
        return self._policy

    def judge(self, model_path: str) -> Engine:
        """The engine that judges: the policy's own, unless the recipe names another engine or model."""
        settings = self._recipe.judge
        if settings.engine is None and settings.model is None:
            return self.policy(model_path)
        if self._judge is None:
            model = settings.model or self._recipe.model
            if settings.model is not None:
                self.make_room()
            self._judge = _start(model.path, model, settings.engine or self._recipe.engine)
        return self._judge

    def make_room(self) -> None:
        """Gives memory back for training or another engine, unless the recipe or the lack of a GPU lets it be."""
        keep = self._recipe.launch.keep_engine
        if keep is None:
            keep = not has_gpu()
        if not keep:
            self._close()

    def _close(self) -> None:
        for engine in (self._policy, self._judge):
            if engine is not None:
                engine.close()
        self._policy = self._judge = None


def _start(model_path: str, model: ModelSettings, settings: EngineSettings) -> Engine:
    engine: Engine = registry.load(settings.name, registry.ENGINES, "engine")(model_path, model, settings)
    return engine


def has_gpu() -> bool:
    """Whether torch sees an NVIDIA or AMD GPU.

    The driver library is asked rather than CUDA, which would take memory and forbid to fork processes.
    """
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    return bool(torch.cuda.is_available())
