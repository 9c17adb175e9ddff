"""Recorded runtimes: what there is, what changed, and how a new one is recorded."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock._common.urls import checked_index, redacted
from colablock.cli.common import Call, add_command, print_json
from colablock.errors import ExitCode, InvalidInput

if TYPE_CHECKING:
    from colablock.runtimes.document import Recording

__all__ = ["add"]

_ONE = "a recorded runtime by name, or the path of its document"


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    parser = commands.add_parser(
        "runtime",
        help="recorded runtimes: what hosted notebooks have installed",
        description="Recorded runtimes: what hosted notebooks have installed.",
    )
    below = parser.add_subparsers(dest="action", metavar="COMMAND", required=True)
    parser = add_command(below, "list", "the recorded runtimes, oldest first")
    parser.set_defaults(handler=_list)
    parser = add_command(below, "show", "one recorded runtime, and what matrices say of it")
    parser.add_argument("name", metavar="NAME|FILE", help=_ONE)
    parser.add_argument("--all", action="store_true", help="name every distribution")
    parser.add_argument("--freeze", action="store_true", help="print what `pip freeze` printed there")
    parser.set_defaults(handler=_show)
    parser = add_command(below, "diff", "what changed between two runtimes, and which matrices that concerns")
    parser.add_argument("before", metavar="NAME|FILE", help=_ONE)
    parser.add_argument("after", metavar="NAME|FILE", help="the later one")
    parser.set_defaults(handler=_diff)
    _add_import(below)
    parser = add_command(
        below, "record", "record an interpreter as it stands: on a hosted notebook, its image"
    )
    parser.add_argument("--python", metavar="EXE", help="the interpreter; default: the one that runs this")
    _add_result(parser)
    parser.set_defaults(handler=_record)


def _add_import(below: Any) -> None:
    parser = add_command(below, "import", "make a recorded runtime of what `pip freeze` printed")
    parser.add_argument("freeze", metavar="FREEZE", help="the file; `-` for standard input")
    _add_result(parser)
    parser.add_argument("--python-version", metavar="X.Y.Z", required=True, help="the runtime's Python")
    parser.add_argument(
        "--platform", metavar="TAG", help="the runtime's platform, such as manylinux_2_35_x86_64"
    )
    parser.add_argument(
        "--host",
        choices=["colab", "kaggle", "plain"],
        help="what protects its own distributions; by default by the first word of its name",
    )
    parser.add_argument(
        "--flavour",
        choices=["cpu", "gpu"],
        help="by default gpu where a driver is given or torch is a CUDA build",
    )
    parser.add_argument("--label", metavar="L", default="", help="how the host's own version menu calls it")
    parser.add_argument("--driver", metavar="X", help="version of the accelerator's driver")
    parser.add_argument("--date", metavar="D", help="of the image, as 2026-08-19; default: today")
    parser.add_argument("--source", metavar="TEXT", help="where the freeze is from, in words")
    parser.add_argument("--offline", action="store_true", help="take over what is known, and ask no index")
    parser.add_argument("--default-index", metavar="URL", help="simple index in place of the default one")
    parser.set_defaults(handler=_import)


def _add_result(parser: Any) -> None:
    parser.add_argument(
        "--name", metavar="N", required=True, help="of the runtime, such as kaggle-2026.10-gpu"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="where it is written; default: runtimes/N.json"
    )


def _list(call: Call) -> int:
    from colablock.display.runtimes import render_runtimes
    from colablock.runtimes.describe import runtime_listing

    facts = runtime_listing(call.environ)
    if call.args.json:
        print_json(facts, call.out)
    else:
        render_runtimes(facts, call.out)
    return ExitCode.DONE


def _show(call: Call) -> int:
    from colablock.display.runtimes import render_runtime
    from colablock.runtimes.describe import runtime_facts

    if call.args.freeze and not call.args.json:
        from colablock.runtimes.catalog import recorded_distributions

        lines = (item.line for item in recorded_distributions(call.args.name, environ=call.environ))
        call.out.file.write("".join(f"{line}\n" for line in lines))
        return ExitCode.DONE
    facts = runtime_facts(call.args.name, call.environ)
    if call.args.json:
        print_json(facts, call.out)
    else:
        render_runtime(facts, call.out, everything=call.args.all or call.args.verbose)
    return ExitCode.DONE


def _diff(call: Call) -> int:
    from colablock.display.runtimes import render_diff
    from colablock.runtimes.describe import compared, diff_facts

    diff = compared(call.args.before, call.args.after, call.environ)
    if call.args.json:
        print_json(diff_facts(diff), call.out)
    else:
        render_diff(diff, call.out, verbose=call.args.verbose)
    return ExitCode.DONE


def _import(call: Call) -> int:
    from colablock.display.reporters import reporter_for
    from colablock.display.runtimes import imported_words
    from colablock.environment.markers_and_tags import environment_for
    from colablock.environment.snapshot import Host
    from colablock.network.fetcher import Fetcher
    from colablock.network.settings import read_settings
    from colablock.runtimes.catalog import load_recording, runtimes
    from colablock.runtimes.document import PLATFORM, RecordedRuntime, check_name, is_date
    from colablock.runtimes.freeze import parse_freeze
    from colablock.runtimes.import_freeze import flavour_of, host_of, import_freeze
    from colablock.runtimes.releases import Releases

    args = call.args
    check_name(args.name)
    date = args.date or _today()
    if not is_date(date):
        raise InvalidInput(f"`{date}` is no date", hint="write it as `2026-08-19`")
    environment = environment_for(args.python_version, args.platform or PLATFORM)
    freeze = parse_freeze(_read(args.freeze), args.freeze)
    settings = read_settings(
        call.environ, default_index=checked_index(args.default_index), offline=args.offline
    )
    about = RecordedRuntime(
        name=args.name,
        flavour=args.flavour or flavour_of(freeze, args.driver),
        python_version=args.python_version,
        date=date,
        distributions=0,
        unknown=0,
        host=Host(args.host) if args.host else host_of(args.name),
        label=args.label,
        source=args.source or f"a freeze of {date}",
        platform=args.platform or PLATFORM,
        driver=args.driver,
    )
    # What an earlier import wrote under this name is what is made anew.
    known = [one.name for one in runtimes(environ=call.environ) if not (one.file and one.name == args.name)]
    recordings = [load_recording(name, environ=call.environ) for name in known]
    with reporter_for(call.err, quiet=args.quiet or args.json, environ=call.environ) as reporter:
        fetcher = Fetcher(call.environ)
        releases = None if settings.offline else Releases(fetcher, environment, settings.default_index)
        imported = import_freeze(freeze, about, recordings, releases, reporter)
    facts = {
        "taken": imported.taken,
        "learnt": imported.learnt,
        "stand_ins": list(imported.stand_ins),
        "unknown": dict(imported.unknown),
        "left_out": list(imported.left_out),
    }
    return _written(
        call, imported.recording, facts, list(imported_words(imported, redacted(settings.default_index)))
    )


def _record(call: Call) -> int:
    from colablock.environment.snapshot import snapshot_of, take_snapshot
    from colablock.runtimes.capture import record_snapshot
    from colablock.runtimes.document import check_name

    args = call.args
    check_name(args.name)
    if args.python:
        snapshot = snapshot_of(Path(args.python), environ=call.environ)
    else:
        snapshot = take_snapshot(environ=call.environ)
    tag = call.environ.get("COLAB_RELEASE_TAG")
    source = f"the runtime itself, {tag}" if tag and not args.python else "the runtime itself"
    recording, left_out = record_snapshot(snapshot, name=args.name, date=_today(), source=source)
    return _written(call, recording, {"left_out": list(left_out)}, [f"left out: {text}" for text in left_out])


def _written(call: Call, recording: Recording, facts: dict[str, object], notes: list[str]) -> int:
    """Write the document, and say so."""
    from colablock.display.text import Section, render_sections
    from colablock.runtimes.catalog import save_recording

    about = recording.about
    output = call.args.output or Path("runtimes", f"{about.name}.json")
    save_recording(recording, output)
    if call.args.json:
        counts = {"distributions": about.distributions, "unknown_count": about.unknown}
        print_json({"output": str(output), "name": about.name, **counts, **facts}, call.out)
    elif not call.args.quiet:
        title = f"wrote {output}: {about.name}, {about.distributions} distributions"
        render_sections(title, [Section(title="", pairs=[("note:", note) for note in notes])], call.err)
    return ExitCode.DONE


def _read(freeze: str) -> str:
    """Return the text of a freeze.  Raises InvalidInput."""
    try:
        return sys.stdin.read() if freeze == "-" else Path(freeze).read_text("utf-8")
    except OSError as error:
        raise InvalidInput(f"`{freeze}` cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"`{freeze}` is not UTF-8: {error}") from error


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()
