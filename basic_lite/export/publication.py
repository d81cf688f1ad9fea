"""`export --push`: an exported folder on the Hugging Face hub, private unless asked otherwise."""

from __future__ import annotations

from pathlib import Path

from basic_lite import files
from basic_lite.export.inspection import kind_of

_KEPT_HERE = ["export.json", ".*"]  # not sent: it names folders of this machine


def check_hub_id(hub_id: str) -> None:
    """Raise ValueError, before any work, if a hub id is none, or nobody is logged in."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(hub_id)
    except HFValidationError as error:
        raise ValueError(f"--push {hub_id}: {files.one_line(error)}") from error
    if hub_id.count("/") != 1:
        raise ValueError(f"--push takes OWNER/NAME, not {hub_id!r}")
    if not get_token():
        raise ValueError("--push needs a login at the hub: hf auth login, or set HF_TOKEN")


def question(folder: Path, hub_id: str, public: bool) -> str:
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    seen = "PUBLIC: anyone can read it" if public else "private"
    what = f"{folder} with its README.md ({size / 1e9:.3g} GB)"
    return f"Send {what} to {hub_id} on the hub, {seen}? Type yes"


def push(folder: Path, hub_id: str, public: bool = False) -> str:
    """Send an exported folder with its model card; an existing repository keeps its visibility.

    Returns its address. Raises ValueError if the folder is no export or the hub refuses.
    """
    from huggingface_hub import HfApi

    kind_of(folder)
    if not (folder / "README.md").is_file():
        raise ValueError(f"{folder} has no model card (README.md); export the run again")
    api = HfApi()
    try:
        api.create_repo(hub_id, private=not public, exist_ok=True)
        sent = api.upload_folder(
            repo_id=hub_id,
            folder_path=folder,
            ignore_patterns=_KEPT_HERE,
            commit_message="Export of basic-lite",
        )
    except Exception as error:  # without a network: of the HTTP library that its release brings
        raise ValueError(f"{hub_id} was not sent: {files.one_line(error)}") from error
    return str(getattr(sent, "repo_url", hub_id))
