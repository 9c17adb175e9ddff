"""Use a trained adapter: generate text, merge it into its base model, download it, push it to the hub.

A process in the environment of the run does the work that needs torch or huggingface_hub
(``scripts/generate.py``, ``scripts/merge.py``, ``scripts/hub.py``).
"""

from __future__ import annotations

import json
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from colablock._common.reporter import Reporter
from colablock._common.scratch import scratch_folder
from colablock._common.text import command_line
from colablock.environment.accelerator import NF4_ON_CPU
from colablock.environment.target_script import ask_target
from colablock.errors import InvalidInput, NotFound, Refused, Unmet
from colablock.training.chat_templates import chosen_template
from colablock.training.prepared_data import local_path
from colablock.training.runs.checkpoints.finder import newest_valid
from colablock.training.runs.config import OWN_DATA
from colablock.training.runs.folder import RunFolder, RunRecord, State, record_to_json
from colablock.training.scripts import FOLDER as SCRIPTS
from colablock.training.scripts.rows.conversations import alpaca_prompt
from colablock.training.secrets import find_token, is_on_hub
from colablock.transaction.apply_record import home_folder, load
from colablock.transaction.isolated_envs import is_own_interpreter

__all__ = ["adapter_of", "download", "generate", "merge", "push"]

_CONFIG = "adapter_config.json"
_NO_MODULE = "ModuleNotFoundError: No module named"
_WEIGHTS, _PICKLED = "adapter_model.safetensors", "adapter_model.bin"
_ADAPTER_FILES = re.compile(
    r"adapter_.*|README\.md|tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\..*|merges\.txt"
    r"|chat_template.*|.*\.model"
)
_SECRET_KEY = re.compile(r"(?:hf|hub|auth|access)_token$|api_?key|secret|password", re.IGNORECASE)
_TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def adapter_of(folder: Path, *, reporter: Reporter) -> Path:
    """Return the folder of the adapter of the run in *folder*.

    It is the final adapter of a run that is done or stopped, else the newest valid checkpoint,
    which *reporter* is told.  The final adapter of an earlier stop is outdated once the run has
    been resumed, so it is used only if there is no checkpoint.  Raises NotFound if there is neither.
    """
    run = RunFolder(folder)
    has_result = (run.adapter / _CONFIG).is_file()
    if has_result and run.state() not in (State.RUNNING, State.FAILED, State.KILLED):
        return run.adapter
    checkpoint = newest_valid(folder, reporter)
    if checkpoint is not None and (checkpoint / _CONFIG).is_file():
        reporter.note(f"the run is not done: using the adapter of {checkpoint.name}")
        return checkpoint
    if has_result:
        return run.adapter
    raise NotFound(f"`{folder}` has no adapter", hint="A run writes one with its first checkpoint")


def generate(
    folder: Path,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    chat: bool | None = None,
    python: str | None = None,
    environ: Mapping[str, str] = os.environ,
    reporter: Reporter | None = None,
    on_line: Callable[[str], None] | None = None,
) -> list[str]:
    """Return the text that the trained model generates for each prompt.

    The base is loaded in 4 bits if the run was QLoRA.  A *temperature* of 0 decodes greedily.
    Each prompt is wrapped as in training: after messages it is a user's message in the chat template,
    after Alpaca's rows an instruction in their prompt, after other rows it is used as it is.  With
    *chat* it is always a message, with ``chat=False`` always used as it is.  *python* replaces the
    interpreter of the run: a path, or the name of an applied matrix.  *on_line* gets each line
    that the process prints.  Raises Refused if the interpreter is not ours or the adapter a pickle.
    """
    if isinstance(prompts, str):
        raise InvalidInput("`prompts` must be a list of strings, not a string")
    record = _record_of(folder)
    interpreter = _interpreter_of(folder, record, python, environ)
    adapter = adapter_of(folder, reporter=reporter or Reporter())
    style = _style_of(record) if chat is None else "messages" if chat else "text"
    if not (adapter / _WEIGHTS).is_file() and (adapter / _PICKLED).exists():
        raise Refused(
            f"`{adapter / _PICKLED}` is a pickle, which can run code when it is loaded",
            hint=f"Convert it to `{_WEIGHTS}` if you trust it. A run of colablock writes no pickle there",
        )
    texts = _ask(
        interpreter,
        "generate",
        matrix=record.source or record.matrix,
        answers=list[str],
        doing="generate text",
        environ=environ,
        needs_hub=is_on_hub(record.config.get("base_model")),
        on_line=on_line,
        adapter=str(adapter.absolute()),
        base=record.config.get("base_model"),
        revision=record.config.get("revision"),
        prompts=[alpaca_prompt(prompt) if style == "alpaca" else prompt for prompt in prompts],
        quantize=record.config.get("adapter", "qlora") == "qlora",
        nf4_on_cpu=NF4_ON_CPU,
        precision=record.precision,
        chat=style == "messages",
        thinks=record.thinks,
        **_template_of(record),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    return list(map(str, texts))


def merge(
    folder: Path,
    output: Path,
    *,
    base: str | None = None,
    python: str | None = None,
    environ: Mapping[str, str] = os.environ,
    reporter: Reporter | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Path:
    """Write the base with the adapter merged to the new folder *output*, and return it.

    A few blocks of one tensor are in memory at a time, whatever the size of the model.  *base*
    replaces the base model of the run; it has to have unquantised weights.  *python* as for
    `generate`.  Raises Unmet, and leaves no files, if a tensor of the adapter has no match in the
    base.
    """
    output = output.absolute()
    if output.exists():
        raise InvalidInput(f"`{output}` already exists", hint="Name a folder that does not exist")
    if not output.parent.is_dir():
        raise NotFound(f"the folder `{output.parent}` does not exist")
    record = _record_of(folder)
    source = local_path(base) if base else record.config.get("base_model")
    _ask(
        _interpreter_of(folder, record, python, environ),
        "merge",
        matrix=record.source or record.matrix,
        doing="merge the adapter",
        environ=environ,
        needs_hub=is_on_hub(source),
        on_line=on_line,
        adapter=str(adapter_of(folder, reporter=reporter or Reporter()).absolute()),
        output=str(output),
        base=source,
        revision=record.config.get("revision") if base is None else None,
        **_template_of(record),
    )
    return output


def download(
    folder: Path,
    path: Path | None = None,
    *,
    merged: Path | None = None,
    reporter: Reporter | None = None,
    offer: Callable[[str], None] | None = None,
) -> Path:
    """Write the adapter, or the folder *merged*, and the record of the run to a zip file; return its path.

    Tokens are removed from the record.  *offer* is called with the path; in Colab it defaults
    to a download in the browser.
    """
    record = _record_of(folder)
    path = path or folder / f"{record.id}.zip"
    partial = path.with_name(f".{path.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:  # weights do not compress
            for name, file in _files(folder, merged, reporter or Reporter()):
                archive.write(file, name)
            archive.writestr("run.json", _public_record(record))
        partial.replace(path)
    except OSError as error:
        raise Unmet(f"cannot write `{path}`: {error.strerror}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    offer = offer or _colab_download()
    if offer is not None:
        offer(str(path))
    return path


def push(
    folder: Path,
    repo: str,
    *,
    token: str | None = None,
    private: bool = True,
    merged: Path | None = None,
    python: str | None = None,
    environ: Mapping[str, str] = os.environ,
    reporter: Reporter | None = None,
    on_line: Callable[[str], None] | None = None,
) -> str:
    """Upload the adapter, or the folder *merged*, and the record to a repository on the hub; return its URL.

    The process gets *token* as ``HF_TOKEN`` and by no other way.  *python* as for
    `generate`.  Raises Unmet if *private* is
    true and the repository exists and is public.
    """
    if not _REPOSITORY.fullmatch(repo):
        raise InvalidInput(f"`{repo}` is not a repository on the hub", hint="Write `user/name`")
    record = _record_of(folder)
    interpreter = _interpreter_of(folder, record, python, environ)
    environ = environ if token is None else {**environ, "HF_TOKEN": token}
    with _upload_folder(folder, merged, record, reporter or Reporter()) as upload:
        return str(
            _ask(
                interpreter,
                "hub",
                matrix=record.source or record.matrix,
                doing=f"push to `{repo}`",
                environ=environ,
                needs_hub=True,
                on_line=on_line,
                do="push",
                folder=str(upload),
                repo=repo,
                private=private,
            )
        )


def _ask(
    python: str,
    script: str,
    *,
    matrix: str,
    doing: str,
    environ: Mapping[str, str],
    needs_hub: bool,
    on_line: Any,
    answers: Any = object,
    **job: Any,
) -> Any:
    """Run a script in the environment of the run, of the stack of *matrix*.

    It gets the token of the hub only if it *needs_hub*.
    """
    try:
        return ask_target(
            python,
            SCRIPTS / f"{script}.py",
            job,
            doing=doing,
            environ=environ,
            secrets=_hub_token(environ) if needs_hub else {},
            said=on_line,
            answers=answers,
        )
    except Unmet as error:
        if _NO_MODULE not in error.message:
            raise
        command = command_line("apply", matrix)
        hint = f"`{command}` installs the stack of the run, which a rollback may have removed"
        raise Unmet(error.headline, hint=hint) from error


def _interpreter_of(folder: Path, record: RunRecord, python: str | None, environ: Mapping[str, str]) -> str:
    """Return *python*, a path or an applied matrix, or else the interpreter of the run if it is ours.

    The folder may come from somebody else.  Raises Refused if its record names another program.
    """
    home = home_folder(environ)
    if python is not None:
        last = load(python, home)
        return last.python if last is not None else python
    if is_own_interpreter(record.python, home):
        return record.python
    raise Refused(
        f"not starting `{record.python}`, which the record of the run in `{folder}` names:"
        " it is not an environment that colablock has applied here",
        hint="Pass `python=` with the name of an applied matrix, or with an interpreter",
    )


def _hub_token(environ: Mapping[str, str]) -> dict[str, str]:
    found, _ = find_token("HF_TOKEN", environ)
    return {"HF_TOKEN": found.value} if found is not None else {}


def _record_of(folder: Path) -> RunRecord:
    run = RunFolder(folder)
    record = run.record()
    if (fault := run.fault()) is not None:
        raise InvalidInput(fault)
    if record is None:
        raise NotFound(f"`{folder}` is not the folder of a run", hint="`colablock runs list` lists them")
    return record


def _style_of(record: RunRecord) -> str:
    """Return the form whose prompts the run has learnt to answer: "messages", "alpaca" or "text"."""
    own = record.config.get(OWN_DATA)
    if isinstance(own, Mapping):  # axolotl has read the data itself
        return next(filter(None, map(_style_of_axolotl, own.get("datasets") or ())), "text")
    if not record.forms:  # of an early version
        return "messages" if record.config.get("chat_template") else "text"
    return next((form for form in ("messages", "alpaca") if form in record.forms), "text")


def _style_of_axolotl(dataset: object) -> str | None:
    """Return the form of a dataset in axolotl's keys, if its prompts are wrapped."""
    kind = str(dataset.get("type")) if isinstance(dataset, Mapping) else ""
    if kind.startswith(("chat_template", "sharegpt")):
        return "messages"
    return "alpaca" if kind == "alpaca" else None


def _template_of(record: RunRecord) -> dict[str, Any]:
    """Return the chat template of the run, as the scripts take it.

    The record may come from somebody else, so that it names no file.
    """
    value = record.config.get("chat_template")
    try:
        chosen = chosen_template(value if isinstance(value, str) else None, reads_files=False)
    except InvalidInput:  # a name of another version: the adapter has the template too
        return {}
    return {"chat_template": chosen.text, "keeps_template": chosen.is_fallback}


def _files(folder: Path, merged: Path | None, reporter: Reporter) -> Iterator[tuple[str, Path]]:
    """Yield the files to publish: all of a merged model; of a checkpoint, no optimizer state."""
    source = merged if merged is not None else adapter_of(folder, reporter=reporter)
    if not source.is_dir():
        raise NotFound(f"the folder `{source}` does not exist")
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_file() and (merged is not None or _ADAPTER_FILES.fullmatch(name)):
            yield name, path


@contextmanager
def _upload_folder(
    folder: Path, merged: Path | None, record: RunRecord, reporter: Reporter
) -> Iterator[Path]:
    """Yield a temporary folder with links to the files to publish, and the record."""
    with scratch_folder() as scratch:
        for name, file in _files(folder, merged, reporter):
            link = scratch / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.absolute())
        (scratch / "run.json").write_text(_public_record(record), encoding="utf-8")
        yield scratch


def _public_record(record: RunRecord) -> str:
    """Return the record as JSON, without keys that hold secrets and text that looks like a token."""
    return json.dumps(_without_secrets(record_to_json(record)), indent=2) + "\n"


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_secrets(one) for key, one in value.items() if not _SECRET_KEY.search(str(key))}
    if isinstance(value, (list, tuple)):
        return [_without_secrets(one) for one in value]
    return _TOKEN.sub("***", value) if isinstance(value, str) else value


def _colab_download() -> Callable[[str], None] | None:
    """Return Colab's function that downloads a file in the browser; None outside a Colab kernel."""
    if "google.colab" not in sys.modules:  # it works only in the kernel
        return None
    try:
        from google.colab import files  # noqa: PLC0415
    except ImportError:
        return None
    offer: Callable[[str], None] = files.download
    return offer
