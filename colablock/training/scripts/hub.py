"""Read and write repositories on the hub, in the target.

`ask_target` passes the source of this file to ``python -c`` with two paths: of the job (JSON) to
read, and of the answer to write.  It needs the standard library and huggingface_hub, which finds
the token in ``HF_TOKEN`` by itself.
"""

# Modules of the target are imported where they are used.  They are not installed where this is checked.
# ruff: noqa: PLC0415
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from colablock.training.scripts.job_answer import JobRefused, answer_job

#: The exceptions of httpx (huggingface_hub 1), requests (before) and the hub's offline mode.
NOT_REACHED = frozenset(
    (
        "ConnectError",
        "ConnectTimeout",
        "ConnectionError",
        "OfflineModeIsEnabled",
        "ProxyError",
        "ReadTimeout",
        "SSLError",
    )
)


def main(asked: str, answered: str) -> None:
    """Do the job in the file *asked*, and write the answer to the file *answered*."""
    answer_job(asked, answered, _done, has_traceback=False)


def _done(job: dict[str, Any]) -> Any:
    """Do *job*.  Raises JobRefused if the hub cannot be reached."""
    try:
        return JOBS[job.pop("do")](**job)
    except Exception as error:
        if type(error).__name__ not in NOT_REACHED:
            raise
        host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname  # no credentials
        raise JobRefused(
            f"the hub `{host}` cannot be reached: {error}", "Try again with a network"
        ) from error


def names(repo: str) -> list[str]:
    """Return the names of the files in *repo*; empty if there is no such repository."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import RepositoryNotFoundError

    try:
        return list(HfApi().list_repo_files(repo))
    except RepositoryNotFoundError:
        return []


def put(repo: str, files: dict[str, str], digest: str) -> bool:
    """Add *files* (name: local path) to *repo* in one commit.

    Returns whether the hub reports the SHA-256 *digest* for the first of them.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    api.create_repo(repo, private=True, exist_ok=True)
    added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
    first = next(iter(files))
    api.create_commit(repo, operations=added, commit_message=f"Add {first}")
    return any(one.lfs is not None and one.lfs.sha256 == digest for one in api.get_paths_info(repo, [first]))


def get(repo: str, name: str, into: str) -> None:
    """Download the file *name* of *repo* to *into*, without the cache."""
    from huggingface_hub import hf_hub_download

    folder = Path(into).parent / f"{Path(into).name}.fetched"
    try:
        found = hf_hub_download(repo, name, local_dir=str(folder))
        Path(found).replace(into)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove(repo: str, files: list[str]) -> None:
    """Delete *files* from *repo* in one commit.  They stay in its history."""
    from huggingface_hub import CommitOperationDelete, HfApi

    deleted = [CommitOperationDelete(path_in_repo=name) for name in files]
    HfApi().create_commit(repo, operations=deleted, commit_message="Delete older checkpoints")


def push(repo: str, folder: str, *, private: bool) -> str:
    """Upload the files of *folder* to *repo*, and return its address.

    Raises JobRefused if *private* is true and the repository exists and is public.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    url = str(api.create_repo(repo, private=private, exist_ok=True))
    if private and not api.repo_info(repo).private:
        raise JobRefused(f"the repository `{repo}` is public", "`private=False` pushes to it anyway")
    api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Trained with colablock")
    return url


JOBS: dict[str, Callable[..., Any]] = {
    "names": names,
    "put": put,
    "get": get,
    "remove": remove,
    "push": push,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
