"""The commit of the user's clone, read so that nothing in it can run a program.

The folder may be a clone of somebody else's project, and the config of a repository names programs:
hooks, file system monitors, filters, helpers for remotes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from colablock._common.child_environment import Purpose, child_environment
from colablock._common.process import ChildFailed, find_program, run_child

__all__ = ["git_revision"]

_TIMEOUT = 10  # seconds
_SETTINGS: Mapping[str, str] = {
    "core.fsmonitor": "false",
    "core.hooksPath": "/dev/null",
    "core.sshCommand": "false",
    "credential.helper": "",
    "protocol.allow": "never",
}
_FILTERS = r"^filter\..*\.(clean|smudge|process|required)$"
_VARIABLES: Mapping[str, str] = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_PAGER": "cat",
    "GIT_TERMINAL_PROMPT": "0",
}


def git_revision(folder: Path, environ: Mapping[str, str]) -> str | None:
    """Return the commit of the clone *folder*, with ``+`` if files changed; None if it is no clone.

    git gets no variable ``GIT_*`` of the user, reads no config but that of the clone, and its filters
    are switched off.
    """
    git = find_program("git", environ)
    if git is None:
        return None

    def ask(settings: Mapping[str, str], *words: str) -> str:
        command = [git, "--no-pager", "-C", str(folder.absolute()), *words]
        variables = child_environment(Purpose.LOCAL, environ, **_VARIABLES, **_as_variables(settings))
        return run_child(command, environ=variables, timeout=_TIMEOUT).text.strip()

    with suppress(ChildFailed):
        commit = ask(_SETTINGS, "rev-parse", "--verify", "--end-of-options", "HEAD")
        filters: list[str] = []
        with suppress(ChildFailed):  # there are none
            words = ("config", "--includes", "--null", "--name-only", "--get-regexp", _FILTERS)
            filters = [one for one in ask(_SETTINGS, *words).split("\0") if one]
        off = {name: "false" if name.endswith(".required") else "" for name in filters}
        changed = ask({**_SETTINGS, **off}, "status", "--porcelain", "-uno", "--ignore-submodules=all")
        return commit + ("+" if changed else "")
    return None


def _as_variables(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that set git's configuration: they win over every file."""
    found = {"GIT_CONFIG_COUNT": str(len(settings))}
    for place, (key, value) in enumerate(settings.items()):
        found |= {f"GIT_CONFIG_KEY_{place}": key, f"GIT_CONFIG_VALUE_{place}": value}
    return found
