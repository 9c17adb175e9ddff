"""Run commands of colablock on a machine with something wrong, each in a process of its own.

A script, so that it can be started without the privileges of root.  Each line of
standard input is JSON: the folder of a `Machine`, the folder of its copy, the name
of a condition, and the commands.  Standard output gets a JSON line for each command.
Where only files are spoiled, the processes are forks of this one, which has then
imported colablock.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.machine import Machine
from tests.support.warm import become, load

__all__ = ["CONDITIONS", "Condition"]

_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What is wrong with the machine: its folders, the environment variables, or the process."""

    spoil: Callable[[Machine], None] = lambda _: None
    environ: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    closed: tuple[int, ...] = ()
    open_files: int | None = None
    full_output: bool = False
    deleted_folder: bool = False

    @property
    def is_of_files(self) -> bool:
        """Whether only files are spoiled, so that an interpreter starts and imports as ever."""
        return self == Condition(spoil=self.spoil)


def _lock(*names: str) -> Callable[[Machine], None]:
    def spoil(machine: Machine) -> None:
        for name in names:
            (machine.folder / name).chmod(0)

    return spoil


def _read_only(*names: str) -> Callable[[Machine], None]:
    def spoil(machine: Machine) -> None:
        for name in names:
            for path in [machine.folder / name, *(machine.folder / name).rglob("*")]:
                if not path.is_symlink():
                    path.chmod(0o500 if path.is_dir() or os.access(path, os.X_OK) else 0o400)

    return spoil


def _file(name: str) -> Callable[[Machine], None]:
    def spoil(machine: Machine) -> None:
        shutil.rmtree(machine.folder / name)
        (machine.folder / name).write_text("x")

    return spoil


def _places(place: str) -> dict[str, str]:
    return {"COLABLOCK_HOME": f"{place}h", "COLABLOCK_CACHE_DIR": f"{place}c"}


_OWN = ("COLABLOCK_HOME", "COLABLOCK_CACHE_DIR")
CONDITIONS: Mapping[str, Condition] = {
    "a deleted working folder": Condition(deleted_folder=True),
    "a home without permission": Condition(spoil=_lock("home")),
    "a read-only home": Condition(spoil=_read_only("home")),
    "records without permission": Condition(spoil=_lock("home/applied/tiny.json", "home/runs/run-1.json")),
    "folders of records without permission": Condition(spoil=_lock("home/applied", "home/runs")),
    "a home that is a file": Condition(spoil=_file("home")),
    "a cache without permission": Condition(spoil=_lock("cache")),
    "a read-only cache": Condition(spoil=_read_only("cache")),
    "a cache that is a file": Condition(spoil=_file("cache")),
    "a read-only environment": Condition(spoil=_read_only("env")),
    "state without permission": Condition(spoil=_lock("env/.colablock")),
    "history without permission": Condition(spoil=_lock("env/.colablock/changes/0001")),
    "state that is a file": Condition(spoil=_file("env/.colablock")),
    "matrices without permission": Condition(spoil=_lock("work/matrices")),
    "a matrix without permission": Condition(spoil=_lock("work/matrices/tiny.toml")),
    "a run without permission": Condition(spoil=_lock("work/run-1")),
    "a read-only working folder": Condition(spoil=_read_only("work")),
    "no temporary folder": Condition(spoil=lambda machine: shutil.rmtree(machine.folder / "tmp")),
    "a read-only temporary folder": Condition(spoil=_read_only("tmp")),
    "a relative home": Condition(without=_OWN, environ={"HOME": "relative"}),
    "a home of nobody": Condition(environ=_places("~nobody-of-this-name/")),
    "names that are too long": Condition(environ=_places("/tmp/" + "x" * 300)),  # noqa: S108
    "paths that are too long": Condition(environ=_places("/tmp/" + "x" * 200 + ("/" + "x" * 200) * 25)),  # noqa: S108
    "names that are not UTF-8": Condition(environ=_places("{folder}/\udcff\udcfe-")),
    "the locale C": Condition(environ={"LC_ALL": "C"}),
    "64 open files": Condition(open_files=64),
    "few open files": Condition(open_files=16),
    "hardly any open files": Condition(open_files=8),
    "a closed input": Condition(closed=(0,)),
    "a closed output": Condition(closed=(1,)),
    "closed errors": Condition(closed=(2,)),
    "nothing open": Condition(closed=(0, 1, 2)),
    "a full output": Condition(full_output=True),
    "a drive without locks": Condition(environ={"LD_PRELOAD": "{no_locks}"}),
    "no more threads": Condition(environ={"LD_PRELOAD": "{no_threads}"}),
    "no more processes": Condition(environ={"LD_PRELOAD": "{no_processes}"}),
    "neither threads nor processes": Condition(environ={"LD_PRELOAD": "{no_threads}:{no_processes}"}),
}


def _run(
    machine: Machine, condition: Condition, argv: list[str], libraries: Mapping[str, str]
) -> dict[str, object]:
    out, err = machine.folder / "out", machine.folder / "err"
    child = os.fork()
    if child == 0:
        signal.alarm(_SECONDS)
        os.setsid()
        _redirect(condition, out, err)
        values = {
            name: text.format(folder=machine.folder, **libraries) for name, text in condition.environ.items()
        }
        os.environ.clear()
        os.environ.update({**machine.environ(), **values})
        for name in condition.without:
            os.environ.pop(name, None)
        os.chdir(machine.work)
        if condition.deleted_folder:
            (machine.folder / "gone").mkdir()
            os.chdir(machine.folder / "gone")
            (machine.folder / "gone").rmdir()
        if condition.open_files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (condition.open_files,) * 2)
        if condition.is_of_files:
            sys.path[0] = str(machine.work)
            become(argv)
        os.execv(sys.executable, [sys.executable, "-m", "colablock", *argv])  # noqa: S606
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    texts = [path.read_text(errors="replace") if path.exists() else "" for path in (out, err)]
    return {"argv": argv, "code": code, "out": texts[0], "err": texts[1]}


def _redirect(condition: Condition, out: Path, err: Path) -> None:
    place = Path("/dev/full") if condition.full_output else out
    for number, path, flags in ((0, Path(os.devnull), os.O_RDONLY), (1, place, _NEW), (2, err, _NEW)):
        descriptor = os.open(path, flags, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    for number in condition.closed:
        os.close(number)


_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def main() -> None:
    is_loaded = False
    for line in sys.stdin:
        job = json.loads(line)
        machine, condition = Machine(Path(job["folder"])), CONDITIONS[job["condition"]]
        if condition.is_of_files and not is_loaded:
            load()
            is_loaded = True
        for argv in job["commands"]:
            machine.restore(Path(job["kept"]))
            condition.spoil(machine)
            print(json.dumps(_run(machine, condition, argv, job["libraries"])), flush=True)


if __name__ == "__main__":
    main()
