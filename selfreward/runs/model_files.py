"""The files of a model, on this machine or in the hub's cache. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from selfreward.recipe.engine_settings import ModelSettings
from selfreward.recipe.filter_settings import EmbeddingSettings
from selfreward.recipe.prompt_settings import PromptSettings
from selfreward.runtime.atomic import hash_of, json_hash

MISSING = "missing"

WEIGHTS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py")


def folder_hash(folder: Path) -> str:
    """A hash of all files of a folder and their names."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return f"sha256:{json_hash([[str(path.relative_to(folder)), hash_of(path)] for path in files])}"


def model_hash(settings: ModelSettings) -> str:
    """A hash of a model's weights, configuration, tokenizer and code; ``missing`` if they are not on this machine."""
    folder = Path(settings.path)
    if not folder.is_dir():
        folder = _snapshot(settings)
    files = sorted({path for pattern in WEIGHTS for path in folder.glob(pattern)})
    with ThreadPoolExecutor() as threads:
        hashes = threads.map(hash_of, files)
    return f"sha256:{json_hash([[p.name, h] for p, h in zip(files, hashes, strict=True)])}" if files else MISSING


def embedder_hash(settings: EmbeddingSettings) -> str | None:
    """A hash of all files of the model that embeds; ``missing`` if they are not here, None where none is named."""
    if settings.model is None:
        return None
    folder = Path(settings.model)
    if not folder.is_dir():
        folder = _snapshot(ModelSettings.model_construct(path=settings.model, revision=settings.revision))
    return folder_hash(folder) if folder.is_dir() else MISSING


def _snapshot(settings: ModelSettings) -> Path:
    """Where the hub's cache has a model, or the path as it is."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(settings.path, revision=settings.revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return Path(settings.path)


def fetch_all(prompts: PromptSettings, *models: ModelSettings | None) -> None:
    """Brings every hub model to this machine that a recipe names.

    Raises:
        ValueError: there is no such model, or no way to it.
    """
    for model in (*models, *(source.model for source in prompts.sources)):
        if model is not None:
            fetch(model)
    for model in prompts.filter_models:
        fetch(model, ["*"])


def fetch(settings: ModelSettings, patterns: Sequence[str] = WEIGHTS) -> None:
    """Brings a hub model to this machine, so that its bytes are known before a run begins.

    Raises:
        ValueError: there is no such model, or no way to it.
    """
    from huggingface_hub import snapshot_download

    from selfreward.text.chat import model_errors

    if not Path(settings.path).is_dir():
        with model_errors(settings.path):
            snapshot_download(settings.path, revision=settings.revision, allow_patterns=list(patterns))
