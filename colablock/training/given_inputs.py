"""What a call of `train` names: local paths, what is missing, and then datasets on the hub.

The first takes milliseconds and comes before anything else, the hub a request.  The content of the
data comes later, and takes minutes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any, TypeVar

from colablock._common.fs import expanded, nearest_beside
from colablock.errors import FetchFailed, InvalidInput, NotFound, Refused
from colablock.training.preflight.hub import check_reachable, hub_endpoint, query_dataset
from colablock.training.preflight.hub_cache import hub_home, is_offline
from colablock.training.runs.config import TrainConfig, read_yaml
from colablock.training.scripts.rows.sources import FORMATS, format_of

__all__ = ["check_given", "check_on_hub"]

T = TypeVar("T")

_BUILDERS = frozenset(FORMATS.values()) | {"arrow", "webdataset", "imagefolder", "audiofolder"}
_MODEL, _DATA = "Qwen/Qwen2.5-1.5B", "data.jsonl"  # of an example
_PATIENCE = 10  # seconds for one answer of the hub


def check_given(
    config: Path | None, values: Mapping[str, Any], *, example: Callable[[str, str], str]
) -> None:
    """Raise for a file that is not there or cannot be data, and for a call that names no model or no data.

    *values* are the keys of a config that a call gives beside the file *config*.  *example* returns a
    complete call, with a model and a dataset, in the language of the caller.  Raises NotFound,
    InvalidInput, InvalidConfig.
    """
    given = {**(read_yaml(config) if config is not None else {}), **values}
    for path in _data_of(given):
        _check_data(path)
    model = given.get("base_model")
    if isinstance(model, str) and _is_local(model) and not expanded(model, "the model").exists():
        raise NotFound(
            f"the model `{model}` does not exist{_where(model)}",
            hint=_near(model, is_folder=True) or "Name a folder with `config.json`, or a model on the Hub",
        )
    # With other keys, one of them may be a slip for the one that is missing: the config says so.
    if config is None and not given.keys() - {"base_model", "datasets", "output_dir"}:
        missing = [
            word for key, word in (("base_model", "model"), ("datasets", "dataset")) if not given.get(key)
        ]
        if missing:
            them = "Pass them" if len(missing) > 1 else "Pass it"
            call = example(str(model or _MODEL), next(_data_of(given), _DATA))
            raise InvalidInput(f"no {' and no '.join(missing)} to train with", hint=f"{them}: `{call}`")


def check_on_hub(
    config: TrainConfig, secrets: Mapping[str, str], environ: Mapping[str, str], *, reads: bool = True
) -> None:
    """Raise for a model or a dataset that is not here, if the hub cannot be asked for it.

    Raise also for a dataset that the hub does not have, or that is gated; without *reads*, none is
    needed.  Files, folders and what is cached are not asked for.  Raises FetchFailed, NotFound,
    Refused, InvalidInput.
    """
    token = secrets.get("HF_TOKEN")
    model = config.base_model
    ask = partial(check_reachable, model, config.revision, token, environ)
    _answer_on("model", model, ask, environ)
    cache = Path(environ.get("HF_DATASETS_CACHE") or hub_home(environ) / "datasets")
    for name in dict.fromkeys(source.path for source in (config.datasets if reads else ())):
        if name in _BUILDERS or _is_local(name) or expanded(name, "a dataset").exists():
            continue
        if (cache / name.replace("/", "___")).is_dir():
            continue
        status = _answer_on("dataset", name, partial(query_dataset, name, token, environ), environ)
        if status == "missing":
            raise NotFound(
                f"the hub has no dataset `{name}`, or it is private",
                hint=_near(name)
                or "Check the name; for a private dataset, set HF_TOKEN to a token that "
                "may read it; for a file, give its path with the suffix",
            )
        if status == "gated":
            raise Refused(
                f"the dataset `{name}` is gated",
                hint="Request access on its page on the hub, then set HF_TOKEN",
            )


def _answer_on(kind: str, name: str, ask: Callable[[], T], environ: Mapping[str, str]) -> T | None:
    """Return what *ask* returns of the model or dataset *name*; None if the status of the hub tells nothing.

    Raises FetchFailed, with what to do, if the hub does not answer soon or must not be asked.
    """
    what = f"the {kind} `{name}`"
    try:
        return _soon(ask, hub_endpoint(environ))
    except FetchFailed as error:
        if error.status is not None:
            return None  # what loads the files asks again
        if is_offline(environ):
            message = f"{what} is not on this machine, and HF_HUB_OFFLINE forbids to ask the hub"
            hint = "Unset HF_HUB_OFFLINE, or give the path of a local copy"
        else:
            message = f"{what} is not on this machine, and the hub cannot be asked: {error.message}"
            hint = (
                "Give the path of a local copy, or set HF_ENDPOINT to a mirror of the hub; with"
                " HF_HUB_OFFLINE=1, what is in its cache is used and the hub is not asked"
            )
        if (nearest := _near(name, is_folder=kind == "model")) is not None:
            hint = f"{nearest} Else {hint[0].lower()}{hint[1:]}"
        raise error.reworded(message, hint=hint) from error


def _soon(ask: Callable[[], T], url: str) -> T:
    """Return what *ask* returns.  Raises FetchFailed after `_PATIENCE`: a host may have many addresses."""
    box: Queue[T | Exception] = Queue()

    def work() -> None:
        try:
            box.put(ask())
        except Exception as error:  # noqa: BLE001 - raised again below
            box.put(error)

    Thread(target=work, daemon=True).start()
    try:
        found = box.get(timeout=_PATIENCE)
    except Empty:
        raise FetchFailed(f"`{url}` did not answer within {_PATIENCE} seconds", url=url) from None
    if isinstance(found, Exception):
        raise found
    return found


def _data_of(given: Mapping[str, Any]) -> Iterator[str]:
    """Yield the paths and names of the datasets of a config, ours or axolotl's."""
    sources = given.get("datasets")
    for source in sources if isinstance(sources, list) else [sources]:
        path = source.get("path") if isinstance(source, Mapping) else source
        if isinstance(path, str) and path and "\0" not in path:
            yield path


def _check_data(path: str) -> None:
    found = expanded(path, "a dataset")
    try:
        if found.is_dir():
            problem = "" if any(found.iterdir()) else "is an empty folder"
        elif found.exists():
            problem = _problem_of(found)
        elif _is_local(path):
            raise NotFound(
                f"the dataset `{path}` does not exist{_where(path)}",
                hint=_near(path) or "Name a file or a folder, or a dataset on the Hub",
            )
        else:
            return  # a name on the hub
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    if problem:
        raise InvalidInput(f"the dataset `{path}` {problem}")


def _problem_of(file: Path) -> str:
    if file.is_file() and format_of(file) is None:
        return f"has an unknown format: supported suffixes are {', '.join(FORMATS)}, also with .gz"
    if file.is_file() and not file.stat().st_size:
        return "is an empty file"
    return "" if os.access(file, os.R_OK) else "cannot be read: it belongs to another user"


def _is_local(path: str) -> bool:
    """Whether *path* cannot be a name on the hub, which is `name` or `owner/name`."""
    if "://" in path:
        return False
    starts = path.startswith(("/", "./", "../", "~", "."))
    return starts or "\\" in path or path.count("/") > 1 or format_of(Path(path)) is not None


def _where(path: str) -> str:
    """Return which folder was looked in, or is missing."""
    folder = expanded(path, "a path").parent
    if not folder.is_dir():
        return f": there is no folder `{folder}`"
    return f" in `{folder.absolute()}`"


def _near(path: str, *, is_folder: bool = False) -> str | None:
    """Return a hint at the file or folder beside *path* whose name is nearest; *is_folder*: at a folder."""
    found = nearest_beside(expanded(path, "a path"), is_folder=is_folder)
    return f"did you mean `{Path(path).parent / found}`?" if found else None
