"""A finished data set to the hub."""

from __future__ import annotations

from pathlib import Path

from selfreward.data.job import FOLDER
from selfreward.runs.folders import StageFolder
from selfreward.runs.stored import MARKER

PRIVATE = f"{FOLDER}/removed.jsonl"  # it may hold what a filter for personal data took out


def check(name: str) -> None:
    """Raises ValueError for a name that no data set of the hub can have."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"--push {name}: {error}") from None
    if name.count("/") != 1:
        raise ValueError(f"--push is {name}. Write OWNER/NAME")


def push(out: Path, name: str, public: bool) -> str:
    """Uploads rows, card and marker, and returns the address. What filters took out stays here.

    Args:
        out: a finished data set.
        name: OWNER/NAME on the hub; it is made if it is not there.
        public: who may see a new one; else its owner alone.

    Raises:
        ValueError: nobody is signed in, or the hub refuses or can't be reached.
        Damaged: a file is not what was written.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    StageFolder(out.resolve(), FOLDER).check()
    files = ["README.md", f"{FOLDER}/*.jsonl", f"{FOLDER}/{MARKER}"]
    try:
        address = HfApi().create_repo(name, repo_type="dataset", private=not public, exist_ok=True)
        HfApi().upload_folder(
            repo_id=name, repo_type="dataset", folder_path=out, allow_patterns=files, ignore_patterns=[PRIVATE]
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        refused = isinstance(error, LocalTokenNotFoundError) or status in (401, 403)
        advice = "Sign in with HF_TOKEN in the environment or `hf auth login`. " if refused else ""
        raise ValueError(
            f"{name} was not pushed: {str(error).rstrip('.')}. {advice}The data set is whole in {out}, and the same "
            "command pushes it"
        ) from None
    return str(address)
