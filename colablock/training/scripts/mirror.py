"""The hub's side of a mirror, run in the target: the standard library and huggingface_hub.

Its source is given to ``python -c`` with two paths: of a job (JSON) to read, and
of the answer to write.  The token is in ``HF_TOKEN``, where the hub's library
looks for it by itself.
"""

# What is used is imported where it is used, and not there where this is checked.
# ruff: noqa: PLC0415
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(asked: str, answered: str) -> None:
    """Do the job in the file *asked*, and write what came of it to *answered*."""
    job = json.loads(Path(asked).read_text(encoding="utf-8"))
    try:
        answer: dict[str, Any] = {"answer": JOBS[job.pop("do")](**job)}
    except Exception as error:  # noqa: BLE001 (whatever it is, it is told)
        answer = {"error": f"{type(error).__name__}: {error}"}
    Path(answered).write_text(json.dumps(answer), encoding="utf-8")


def names(repo: str) -> list[str]:
    """Return the files of *repo*; none where there is no such repository."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import RepositoryNotFoundError

    try:
        return list(HfApi().list_repo_files(repo))
    except RepositoryNotFoundError:
        return []


def put(repo: str, files: dict[str, str], digest: str) -> bool:
    """Put *files* into *repo* in one commit; return whether the hub has *digest* for the first of them."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    api.create_repo(repo, private=True, exist_ok=True)
    added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
    first = next(iter(files))
    api.create_commit(repo, operations=added, commit_message=f"Add {first}")
    return any(one.lfs is not None and one.lfs.sha256 == digest for one in api.get_paths_info(repo, [first]))


def get(repo: str, name: str, into: str) -> None:
    """Fetch the file *name* of *repo* to *into*, past the cache."""
    from huggingface_hub import hf_hub_download

    folder = Path(into).parent / f"{Path(into).name}.fetched"
    try:
        found = hf_hub_download(repo, name, local_dir=str(folder))
        Path(found).replace(into)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove(repo: str, files: list[str]) -> None:
    """Take *files* out of *repo* in one commit; the hub's history keeps them."""
    from huggingface_hub import CommitOperationDelete, HfApi

    gone = [CommitOperationDelete(path_in_repo=name) for name in files]
    HfApi().create_commit(repo, operations=gone, commit_message="Take away what is older")


JOBS: dict[str, Callable[..., Any]] = {"names": names, "put": put, "get": get, "remove": remove}

if __name__ == "__main__":
    main(*sys.argv[1:])
