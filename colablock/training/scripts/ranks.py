"""Several ranks: they agree on lock and checkpoint, and see that one was killed.

``shim.py`` runs this file in the target.  It needs the standard library and the target.
colablock itself asks it for the ranks that were killed.
"""

# Modules of the target are imported where they are used.  They are not installed where this is checked.
# ruff: noqa: PLC0415
# mypy: disable-error-code="import-not-found"

import hashlib
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

#: Keys of a config: of the data, which is compared itself, of reports, and of folders that are written to.
_WRITTEN = ("output_dir", "dataset_prepared_path", "lora_out_dir", "logging_dir")
_OF_A_HOST = (*_WRITTEN, "datasets", "report_to", "wandb_project")
_FILES = (".json", ".yaml", ".yml", ".jinja")  # ends of values that may name a file of a setting
_NOTES = (".md", ".lock", "LICENSE", "NOTICE")  # ends of files that change no training
_WHOLE = 16 << 20  # bytes: of a larger file its size, beginning and end are compared
_PART = 1 << 20
_MOST = 20_000  # files of a folder that a setting names
_READ = 1 << 30  # bytes that each rank reads of what a setting names; of a larger folder it compares sizes
_OF_THE_RUN = (
    "precision",
    "dtype",
    "attention",
    "warmup_steps",
    "eval_steps",
    "save_steps",
    "cast_trainable",
    "mends",
    "shards",
    "shards_recompute",
    "chat_template",
    "data",
    "rows",
    "processes",
)
COMMIT = "the commit of base_model"
RANK_FILE = 512  # bytes: two numbers and the name of a host
RANKS_SECONDS = 0.5  # between two looks at the other ranks
ENDING_SECONDS = 1.0  # for a killed process to end, after its connections
LAST_SECONDS = 2.0  # for a rank to end by itself once another one has


def note_rank(folder: Path, rank: int, end: Any) -> Path:
    """Write the process of this rank to a file, so that others see if it is killed, and look at theirs.

    *end* is the `RunEnd` of the shim.
    """
    (file := folder / "ranks" / str(rank)).parent.mkdir(mode=0o700, exist_ok=True)
    own = f"{os.getpid()} {start_time_of(os.getpid())} {socket.gethostname()}"
    new = file.with_name(f".{rank}-{os.getpid()}")
    new.unlink(missing_ok=True)
    with new.open("x", encoding="utf-8") as opened:  # follows no link, and nobody reads a part of it
        opened.write(own)
    new.replace(file)
    threading.Thread(target=follow_ranks, args=(folder, file, end), daemon=True).start()
    return file


def process_facts(process: int) -> "list[str]":
    """Return the fields of ``/proc/PID/stat`` from the state on; empty if the process is gone or a zombie."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    facts = text.rpartition(")")[2].split()
    return [] if facts[0] in ("Z", "X") else facts


def start_time_of(process: int) -> int:
    """Return the start of *process* in clock ticks since boot; 0 if it is gone or a zombie (proc(5))."""
    facts = process_facts(process)
    return int(facts[19]) if facts else 0


def killed_ranks(folder: Path) -> "list[int]":
    """Return the ranks of this host whose processes were killed: they have ended, and not written how."""
    return sorted(rank for rank, is_alive in noted_ranks(folder) if not is_alive)


def noted_ranks(folder: Path) -> "Iterator[tuple[int, bool]]":
    """Yield each rank of this host that has not ended by itself, and whether its process is alive."""
    for file in (folder / "ranks").glob("[0-9]*"):
        # ValueError: it is being written, or not ours.
        with suppress(OSError, ValueError):
            process, began, host = (file.read_bytes() if is_small(file) else b"").decode().split()
            if host == socket.gethostname():
                yield int(file.name), start_time_of(int(process)) == int(began)


def is_small(file: Path) -> bool:
    """Whether *file* is a regular file of the size that `note_rank` writes."""
    facts = file.stat()
    return stat.S_ISREG(facts.st_mode) and facts.st_size <= RANK_FILE


def killed_before(folder: Path, error: BaseException) -> "list[int]":
    """Return the ranks that were killed, so that this one got *error*: a connection ends before a process."""
    until = time.monotonic() + (ENDING_SECONDS if isinstance(error, RuntimeError) else 0.0)
    while not (found := killed_ranks(folder)) and time.monotonic() < until:
        time.sleep(ENDING_SECONDS / 10)
    return found


def follow_ranks(folder: Path, alive: Path, end: Any) -> None:
    """End this process if another rank of this host was killed or has failed: it would wait for it in vain.

    The launcher would end it only after half a minute, since a rank takes the first signal as a wish to stop.
    """
    since = 0.0
    while True:
        time.sleep(RANKS_SECONDS)
        if not (killed_ranks(folder) or end.has_failed()):
            since = 0.0
        elif not since:
            since = time.monotonic()
        elif time.monotonic() - since > LAST_SECONDS:  # its own exception may come first
            end.lost(killed_ranks(folder))
            alive.unlink(missing_ok=True)
            os._exit(1)


def check_ranks(job: Mapping[str, Any], rank: int, world: int, folder: "Path | None" = None) -> None:
    """Exit unless every rank has the lock, checkpoint, installed versions, settings and data of rank 0.

    *folder* is that of the run.

    Otherwise their gradients would come from different programs or from different steps.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    from datetime import timedelta

    from torch.distributed import TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=timedelta(minutes=10))
    own = [job["lock"], checkpoint_of(job), installed_versions(), settings_of(job, folder)]
    store.set(f"colablock/{rank}", json.dumps(own))
    facts = [json.loads(store.get(f"colablock/{one}")) for one in range(world)]
    for at, message in enumerate(
        (
            "has a different lock than rank 0: {:.12} instead of {:.12}",
            "resumes from a different checkpoint than rank 0: {} instead of {}",
        )
    ):
        odd = [one for one in range(world) if facts[one][at] != facts[0][at]]
        if odd:
            ranks = ", ".join(str(one) for one in odd)
            raise SystemExit(f"rank {ranks} {message.format(facts[odd[0]][at], facts[0][at])}")
    for one, (_, _, versions, _) in enumerate(facts):
        here, there = ([*set(a) - set(b)] for a, b in ((versions, facts[0][2]), (facts[0][2], versions)))
        if here or there:
            words = f"{min(here, default='nothing')} instead of {min(there, default='nothing')}"
            raise SystemExit(f"rank {one} has other distributions than rank 0, such as {words}")
    for one, (*_, settings) in enumerate(facts):
        first = facts[0][-1]
        if names := differing(first, settings):
            raise SystemExit(f"rank {one} has another job than rank 0: {in_words(names, first, settings)}")


def differing(first: Mapping[str, Any], other: Mapping[str, Any]) -> "list[str]":
    """Return the names of the settings that differ; a host that asks the hub has no commit to compare."""
    names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
    asks_hub = None in (first.get(COMMIT), other.get(COMMIT))
    return [name for name in names if name != COMMIT or not asks_hub]


def in_words(names: "list[str]", first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return how the settings *names* differ, each in a few words."""
    words = ", ".join(
        f"{name} is {other.get(name)!s:.40} instead of {first.get(name)!s:.40}" for name in names
    )
    if "processes" in names:  # of all hosts, reckoned from the cards of one
        words += " (hosts with other numbers of cards need the same `--num_processes`)"
    return words


def checkpoint_of(job: Mapping[str, Any]) -> str:
    """Return the name of the checkpoint that *job* goes on from, with the digest of its manifest."""
    if not job["resume"]:
        return "none"
    manifest = Path(job["resume"]) / "colablock.json"
    if not manifest.is_file():
        return manifest.parent.name
    return f"{manifest.parent.name} ({hashlib.sha256(manifest.read_bytes()).hexdigest():.12})"


def settings_of(job: Mapping[str, Any], folder: "Path | None" = None) -> "dict[str, Any]":
    """Return what has to be the same in every rank, by name.

    Paths may differ between hosts, and what is there may not: a model, a setting in a file, the tokens in
    the *folder* of the run.
    """
    folders = [job["config"].get(name) for name in _WRITTEN]
    written = [
        os.path.realpath(one) for one in (folder, *folders) if isinstance(one, (str, Path)) and str(one)
    ]
    config = {
        name: with_digests(one, written) for name, one in job["config"].items() if name not in _OF_A_HOST
    }
    decided = {name: job.get(name) for name in _OF_THE_RUN}
    data = sorted((folder / "data").glob("*.parquet")) if folder is not None else []
    tokens = {f"tokens in {file.name}": with_digests(str(file)) for file in data}
    other = {COMMIT: commit_of(job), "runner": Path(job["entry"]).name, "colablock": own_digest()}
    return {**config, **decided, **tokens, **other}


def own_digest() -> str:
    """Return a digest of the scripts here: a host may have another version of colablock."""
    scripts = sorted(Path(__file__).resolve().parent.glob("*.py"))
    return hashlib.sha256(b"".join(one.read_bytes() for one in scripts)).hexdigest()[:12]


def with_digests(value: Any, written: "Sequence[str]" = ()) -> Any:
    """Return *value* with a digest in place of each path of this host that is there.

    Other ranks write to the folders *written* meanwhile, which may be below such a path.
    """
    if isinstance(value, (list, tuple)):
        return [with_digests(one, written) for one in value]
    if isinstance(value, dict):
        return {name: with_digests(one, written) for name, one in value.items()}
    is_path = isinstance(value, str) and (value.startswith("/") or value.endswith(_FILES))
    if not is_path or not value.strip("/"):
        return value
    try:
        found = files_at(Path(value), written)
        if found is None:
            return f"more than {_MOST} files"
        is_large = sum(min(file.stat().st_size, _WHOLE) for _, file in found) > _READ
        texts = [f"{name} {file.stat().st_size if is_large else digest_of(file)}" for name, file in found]
    except (OSError, ValueError):  # no path: too long, or a null character
        return value
    whole = hashlib.sha256("\n".join(texts).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{len(found)} files ({whole:.12})" if found else value


def files_at(path: Path, written: "Sequence[str]" = ()) -> "list[tuple[str, Path]] | None":
    """Return the files that *path* names, each by its name below *path*; None if there are too many.

    Hidden ones, notes, checkpoints and what is in a folder of *written* below *path* are left out.
    """
    if path.is_file():
        return [("", path)]
    root = os.path.realpath(path)
    outputs = {one for one in written if one.startswith(f"{root}/")}
    found: list[tuple[str, Path]] = []
    looked = 0
    for folder, folders, files in os.walk(root):
        looked += len(folders) + len(files)
        if looked > _MOST:
            return None
        folders[:] = [
            name
            for name in folders
            if not name.startswith((".", "checkpoint-")) and f"{folder}/{name}" not in outputs
        ]
        for name in files:
            file = Path(folder, name)
            if not name.startswith(".") and not name.endswith(_NOTES) and file.is_file():
                found.append((file.relative_to(root).as_posix(), file))
    return sorted(found)


def digest_of(file: Path) -> str:
    """Return a digest of a file; of a large one, such as weights, of its size, beginning and end."""
    size = file.stat().st_size
    hasher = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        if size <= _WHOLE:
            hasher.update(opened.read())
        else:
            hasher.update(opened.read(_PART))
            opened.seek(-_PART, os.SEEK_END)
            hasher.update(opened.read())
    return hasher.hexdigest()


def commit_of(job: Mapping[str, Any]) -> "str | None":
    """Return the commit of a model of the hub in the cache of this host; None if it asks the hub."""
    name, revision = str(job["config"].get("base_model")), job["config"].get("revision") or "main"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() not in ("1", "ON", "YES", "TRUE"):
        return None
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")  # noqa: PTH111
    cache = Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub")
    try:
        folder = cache / f"models--{name.replace('/', '--')}"
        return (folder / "refs" / str(revision)).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None


def installed_versions() -> "list[str]":
    """Return what is installed here as ``name==version``: a lock says what was meant to be."""
    from importlib import metadata

    return sorted({f"{one.metadata['Name']}=={one.version}" for one in metadata.distributions()})
