"""What follows a run: text of the trained model, the merged model, the files to take along or to push.

What needs torch is done by a child in the environment of the run (``scripts/after.py``).
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from colablock._common.reporter import Reporter
from colablock.environment.target_script import ask_target
from colablock.errors import InvalidInput, NotFound, Unmet
from colablock.training.runs.checkpoints import newest_valid
from colablock.training.runs.folder import RunFolder, RunRecord, State, record_to_json
from colablock.training.scripts import FOLDER as SCRIPTS
from colablock.training.start import local_path

__all__ = ["adapter_of", "download", "generate", "merge", "push"]

_CONFIG = "adapter_config.json"
_ADAPTER = re.compile(
    r"adapter_.*|README\.md|tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\..*|merges\.txt"
    r"|chat_template.*|.*\.model"
)
_SECRET = re.compile(r"(?:hf|hub|auth|access)_token$|api_?key|secret|password", re.IGNORECASE)
_TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def adapter_of(folder: Path, *, reporter: Reporter) -> Path:
    """Return where the adapter of the run in *folder* is: its result, or its newest whole checkpoint.

    A run that was stopped has a result, which is an old one once it goes on.  *reporter* is told
    where it is a checkpoint's.  Raises NotFound where there is neither.
    """
    run = RunFolder(folder)
    has_result = (run.adapter / _CONFIG).is_file()
    if has_result and run.state() not in (State.RUNNING, State.FAILED, State.KILLED):
        return run.adapter
    checkpoint = newest_valid(folder, reporter)
    if checkpoint is not None and (checkpoint / _CONFIG).is_file():
        reporter.note(f"the run is not done: the adapter is that of {checkpoint.name}")
        return checkpoint
    if has_result:
        return run.adapter
    raise NotFound(f"there is no adapter in `{folder}`", hint="It comes with the first checkpoint of a run")


def generate(
    folder: Path,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    chat: bool | None = None,
    environ: Mapping[str, str] = os.environ,
    reporter: Reporter | None = None,
    said: Callable[[str], None] | None = None,
) -> list[str]:
    """Return what the trained model says to each prompt; with a temperature of nought the likeliest words.

    The base is loaded in 4 bits where the run had it so.  *chat* puts each
    prompt into the model's template as a user's message (default: when the run
    was told a template or messages).  *said* gets what the child prints.
    """
    if isinstance(prompts, str):
        raise InvalidInput("prompts are a list of texts, and this is one text")
    record = _record_of(folder)
    return [
        str(text)
        for text in _ask(
            record,
            "generate",
            doing="generate text",
            environ=environ,
            said=said,
            adapter=str(adapter_of(folder, reporter=reporter or Reporter()).absolute()),
            base=record.config.get("base_model"),
            revision=record.config.get("revision"),
            prompts=list(prompts),
            quantize=record.config.get("adapter", "qlora") == "qlora",
            precision=record.precision,
            chat=_is_chat(record) if chat is None else chat,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
    ]


def merge(
    folder: Path,
    output: Path,
    *,
    base: str | None = None,
    environ: Mapping[str, str] = os.environ,
    reporter: Reporter | None = None,
    said: Callable[[str], None] | None = None,
) -> Path:
    """Write the base with the adapter added, as a model of its own, to the new folder *output*; return it.

    At most some blocks of one tensor are in memory, whatever the model's size.
    *base* stands in for the run's own (a model that is not quantised).  Raises
    Unmet, and leaves nothing, where a tensor of the adapter has no place in the base.
    """
    output = output.absolute()
    if output.exists():
        raise InvalidInput(f"`{output}` exists already", hint="Name a folder that does not")
    if not output.parent.is_dir():
        raise NotFound(f"there is no folder `{output.parent}`")
    record = _record_of(folder)
    _ask(
        record,
        "merge",
        doing="merge the adapter",
        environ=environ,
        said=said,
        adapter=str(adapter_of(folder, reporter=reporter or Reporter()).absolute()),
        output=str(output),
        base=local_path(base) if base else record.config.get("base_model"),
        revision=record.config.get("revision") if base is None else None,
    )
    return output


def download(
    folder: Path,
    path: Path | None = None,
    *,
    merged: Path | None = None,
    reporter: Reporter | None = None,
    hand_over: Callable[[str], None] | None = None,
) -> Path:
    """Write a zip file of the adapter, or of the folder *merged*, with the run's record; return it.

    The record is without tokens.  In Colab the browser is offered the file, or
    *hand_over* gets its name.
    """
    record = _record_of(folder)
    path = path or folder / f"{record.id}.zip"
    partial = path.with_name(f".{path.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:  # weights do not get smaller
            for name, file in _files(folder, merged, reporter or Reporter()):
                archive.write(file, name)
            archive.writestr("run.json", _plain(record))
        partial.replace(path)
    except OSError as error:
        raise Unmet(f"`{path}` cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    hand_over = hand_over or _colab()
    if hand_over is not None:
        hand_over(str(path))
    return path


def push(
    folder: Path,
    repo: str,
    *,
    token: str | None = None,
    private: bool = True,
    merged: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    reporter: Reporter | None = None,
    said: Callable[[str], None] | None = None,
) -> str:
    """Put the adapter, or the folder *merged*, and the record into a repository of the hub; return where.

    *token* reaches the child as ``HF_TOKEN`` only.  Raises Unmet for a public
    repository unless *private* is false.
    """
    if not _REPOSITORY.fullmatch(repo):
        raise InvalidInput(f"`{repo}` is no repository of the hub", hint="Write `user/name`")
    record = _record_of(folder)
    environ = environ if token is None else {**environ, "HF_TOKEN": token}
    with _linked(folder, merged, record, reporter or Reporter()) as pushed:
        return str(
            _ask(
                record,
                "push",
                doing=f"push to `{repo}`",
                environ=environ,
                said=said,
                folder=str(pushed),
                repo=repo,
                private=private,
            )
        )


def _ask(
    record: RunRecord, job: str, *, doing: str, environ: Mapping[str, str], said: Any, **more: Any
) -> Any:
    return ask_target(
        record.python, SCRIPTS / "after.py", {"do": job, **more}, doing=doing, environ=environ, said=said
    )


def _record_of(folder: Path) -> RunRecord:
    record = RunFolder(folder).record()
    if record is None:
        raise NotFound(f"`{folder}` is not the folder of a run", hint="`colablock runs list` shows them")
    return record


def _is_chat(record: RunRecord) -> bool:
    return "messages" in record.forms or bool(record.config.get("chat_template"))


def _files(folder: Path, merged: Path | None, reporter: Reporter) -> Iterator[tuple[str, Path]]:
    """Yield what is taken along: of a checkpoint no state of the optimiser, of a merged model everything."""
    source = merged if merged is not None else adapter_of(folder, reporter=reporter)
    if not source.is_dir():
        raise NotFound(f"there is no folder `{source}`")
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_file() and (merged is not None or _ADAPTER.fullmatch(name)):
            yield name, path


@contextmanager
def _linked(folder: Path, merged: Path | None, record: RunRecord, reporter: Reporter) -> Iterator[Path]:
    """Yield a folder that holds what `_files` yields, by links, and the record."""
    with tempfile.TemporaryDirectory(prefix="colablock-") as scratch:
        for name, file in _files(folder, merged, reporter):
            link = Path(scratch) / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.absolute())
        (Path(scratch) / "run.json").write_text(_plain(record), encoding="utf-8")
        yield Path(scratch)


def _plain(record: RunRecord) -> str:
    """Return the record as JSON without what is secret, or looks like a token."""
    return json.dumps(_without_secrets(record_to_json(record)), indent=2) + "\n"


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_secrets(one) for key, one in value.items() if not _SECRET.search(str(key))}
    if isinstance(value, (list, tuple)):
        return [_without_secrets(one) for one in value]
    return _TOKEN.sub("***", value) if isinstance(value, str) else value


def _colab() -> Callable[[str], None] | None:
    """Return what offers a file to the browser, in a kernel of Colab."""
    if "google.colab" not in sys.modules:  # only its own kernel can
        return None
    try:
        from google.colab import files  # noqa: PLC0415
    except ImportError:
        return None
    offer: Callable[[str], None] = files.download
    return offer
