"""What colablock keeps on this machine: isolated environments, and the cache of downloads."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock.cli.common import Call, add_command, print_json
from colablock.cli.usage.parser import add_group
from colablock.errors import ExitCode, InvalidInput

if TYPE_CHECKING:
    from colablock.network.cache_prune import PruneResult

__all__ = ["add"]

_DAY = 86_400.0  # seconds
_MINUTES = 600.0  # a bundle that was just unpacked is perhaps being applied


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    _add_env(commands)
    below = add_group(commands, "cache", "show and prune the cache", "Show and prune the cache of downloads.")
    parser = add_command(below, "dir", "print the folder of the cache")
    parser.set_defaults(handler=_dir)
    parser = add_command(below, "info", "list the contents of the cache, and their size on disk")
    parser.set_defaults(handler=_info)
    parser = add_command(
        below, "prune", "delete unused entries: leftovers, partial downloads, old index pages, unused bundles"
    )
    parser.add_argument(
        "--older-than",
        metavar="DAYS",
        type=float,
        help="also delete files that were not used for DAYS days",
    )
    parser.set_defaults(handler=_prune)
    parser = add_command(below, "clean", "delete the whole cache, or the entries of some projects")
    parser.add_argument(
        "names", metavar="PROJECT", nargs="*", help="delete only the entries of this project (repeatable)"
    )
    parser.set_defaults(handler=_clean)


def _add_env(commands: Any) -> None:
    below = add_group(commands, "env", "isolated environments", "List and remove isolated environments.")
    parser = add_command(below, "list", "list the isolated environments, and show which are current")
    parser.set_defaults(handler=_list_envs)
    parser = add_command(below, "remove", "remove an isolated environment")
    parser.add_argument(
        "name",
        metavar="NAME|HASH",
        help="the current environment of a matrix, or the first characters of a lock's hash",
    )
    parser.set_defaults(handler=_remove_env)


def _dir(call: Call) -> int:
    folder = _folder(call)
    if call.args.json:
        print_json({"folder": str(folder)}, call.out)
    else:
        call.out.print(str(folder))
    return ExitCode.DONE


def _info(call: Call) -> int:
    from colablock._common.text import size_text
    from colablock.network.cache_prune import contents

    folder = _folder(call)
    kinds = contents(folder)
    if call.args.json:
        print_json({"folder": str(folder), "kinds": [asdict(kind) for kind in kinds]}, call.out)
        return ExitCode.DONE
    call.out.print(str(folder))
    for kind in kinds:
        size = size_text(kind.size)
        call.out.print(f"  {size:>9} in {kind.entries:>6}  {kind.about}")
    if not kinds:
        call.out.print("  the cache is empty")
    return ExitCode.DONE


def _prune(call: Call) -> int:
    from colablock.network.cache_prune import prune

    days = call.args.older_than
    if days is not None and not 0 <= days < float("inf"):
        raise InvalidInput("`--older-than` takes a number of days", hint="Write it as `--older-than 30`")
    now = time.time()
    removed = prune(_own_folder(call), now=now, days=days)
    return _print_result(call, _and_bundles(call, removed, before=now - _DAY))


def _clean(call: Call) -> int:
    from colablock.network.cache_prune import clean

    removed = clean(_own_folder(call), call.args.names)
    if not call.args.names:
        removed = _and_bundles(call, removed, before=time.time() - _MINUTES)
    return _print_result(call, removed)


def _and_bundles(call: Call, removed: PruneResult, *, before: float) -> PruneResult:
    """Remove also what bundles have left in the home, if no apply uses it."""
    from colablock.transaction.apply_record import home_folder
    from colablock.transaction.isolated_envs import prune_home

    more = prune_home(home_folder(call.environ), before=before)
    return replace(
        removed,
        entries=removed.entries + more.entries,
        size=removed.size + more.size,
        left=removed.left + more.left,
    )


def _print_result(call: Call, removed: PruneResult) -> int:
    from colablock._common.text import size_text

    if call.args.json:
        print_json(asdict(removed), call.out)
    elif not call.args.quiet:
        what = (
            f"removed {removed.entries} entries: {size_text(removed.size)} freed" if removed.entries else ""
        )
        call.err.print(what or "there was nothing to remove")
        if removed.left:
            words = f"left {removed.left}: in use by another process, or not yours to remove"
            call.err.print(words)
    return ExitCode.DONE


def _folder(call: Call) -> Path:
    from colablock.network.cache import cache_folder

    return cache_folder(call.environ)


def _own_folder(call: Call) -> Path:
    """Return the folder to delete from.  Raises InvalidInput if other users can change it."""
    from colablock._common.ownership import require_trusted

    folder = _folder(call)
    require_trusted(
        folder, what="the cache", hint="Delete it yourself, or set `COLABLOCK_CACHE_DIR` to another folder"
    )
    return folder


def _list_envs(call: Call) -> int:
    from colablock.display.info_view import envs_document
    from colablock.display.text import render
    from colablock.transaction.apply_record import home_folder
    from colablock.transaction.isolated_envs import list_envs
    from colablock.transaction.serialise import built_to_json

    built = list_envs(home_folder(call.environ))
    if call.args.json:
        print_json({"environments": [built_to_json(one) for one in built]}, call.out)
    else:
        render(envs_document(built), call.out)
    return ExitCode.DONE


def _remove_env(call: Call) -> int:
    from colablock.display.info_view import tree_text
    from colablock.matrix.catalog import find_matrix
    from colablock.matrix.reader import is_path
    from colablock.transaction.apply_record import home_folder
    from colablock.transaction.isolated_envs import remove_env
    from colablock.transaction.serialise import built_to_json

    name = call.args.name
    if is_path(name):
        name = find_matrix(name, environ=call.environ).name
    removed = remove_env(home_folder(call.environ), name)
    if call.args.json:
        print_json({"removed": built_to_json(removed)}, call.out)
    elif not call.args.quiet:
        call.err.print(f"removed {removed.folder}: {tree_text(removed.size, removed.shared)}")
    return ExitCode.DONE
