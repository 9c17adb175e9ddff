"""List, show, compare, import and record runtimes."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock._common.fs import expanded
from colablock._common.limits import TEXT_FILE
from colablock._common.text import decoded
from colablock._common.toml import read_text_file
from colablock._common.urls import checked_index, redacted
from colablock.cli.common import Call, add_command, print_json
from colablock.cli.usage.parser import add_group
from colablock.errors import ExitCode, InvalidInput

if TYPE_CHECKING:
    from colablock.runtimes.document import Recording

__all__ = ["add"]

_RUNTIME = "a recorded runtime by name, or the path of its file"


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    below = add_group(
        commands,
        "runtime",
        "recorded runtimes: the distributions that hosted notebooks have installed",
        "List, show, compare, import and record runtimes of hosted notebooks.",
    )
    parser = add_command(below, "list", "list the recorded runtimes, oldest first")
    parser.set_defaults(handler=_list)
    parser = add_command(below, "show", "show one recorded runtime, and its distributions that matrices name")
    parser.add_argument("name", metavar="NAME|FILE", help=_RUNTIME)
    parser.add_argument("--all", action="store_true", help="list every distribution")
    parser.add_argument("--freeze", action="store_true", help="print the output that `pip freeze` had there")
    parser.set_defaults(handler=_show)
    parser = add_command(below, "diff", "compare two runtimes, and show which matrices the changes concern")
    parser.add_argument("before", metavar="NAME|FILE", help=_RUNTIME)
    parser.add_argument("after", metavar="NAME|FILE", help="the later runtime")
    parser.set_defaults(handler=_diff)
    _add_import(below)
    parser = add_command(
        below, "record", "record the distributions of an interpreter: on a hosted notebook, of its image"
    )
    parser.add_argument("--python", metavar="EXE", help="the interpreter; default: this one")
    _add_result(parser)
    parser.set_defaults(handler=_record)


def _add_import(below: Any) -> None:
    parser = add_command(below, "import", "make a recorded runtime from the output of `pip freeze`")
    parser.add_argument(
        "freeze", metavar="FREEZE", help="file with the output of `pip freeze`; `-` is standard input"
    )
    _add_result(parser)
    parser.add_argument(
        "--python-version", metavar="X.Y.Z", required=True, help="Python version of the runtime"
    )
    parser.add_argument(
        "--platform", metavar="TAG", help="platform of the runtime, such as manylinux_2_35_x86_64"
    )
    parser.add_argument(
        "--host",
        choices=["colab", "kaggle", "plain"],
        help="host, which decides what is protected; default: from the first word of the name",
    )
    parser.add_argument(
        "--flavour",
        choices=["cpu", "gpu"],
        help="default: gpu if a driver is given or torch is a CUDA build, else cpu",
    )
    parser.add_argument(
        "--label", metavar="L", default="", help="name of the runtime in the host's version menu"
    )
    parser.add_argument("--driver", metavar="X", help="version of the accelerator's driver")
    parser.add_argument("--date", metavar="D", help="date of the image, as 2026-08-19; default: today")
    parser.add_argument("--source", metavar="TEXT", help="source of the freeze, in words")
    parser.add_argument(
        "--offline", action="store_true", help="use only what recorded runtimes tell, and ask no index"
    )
    parser.add_argument(
        "--default-index", metavar="URL", help="simple index to use instead of the default one"
    )
    parser.set_defaults(handler=_import)


def _add_result(parser: Any) -> None:
    parser.add_argument(
        "--name", metavar="N", required=True, help="name of the runtime, such as kaggle-2026.10-gpu"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="output file; default: runtimes/N.json"
    )


def _list(call: Call) -> int:
    from colablock.display.runtimes_view import runtimes_document
    from colablock.display.text import render
    from colablock.runtimes.describe import runtime_listing

    facts = runtime_listing(call.environ)
    if call.args.json:
        print_json(facts, call.out)
    else:
        render(runtimes_document(facts), call.out)
    return ExitCode.DONE


def _show(call: Call) -> int:
    from colablock.display.runtimes_view import runtime_document
    from colablock.display.text import render
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
        everything = call.args.all or call.args.verbose
        render(runtime_document(facts, everything=everything), call.out, verbose=everything)
    return ExitCode.DONE


def _diff(call: Call) -> int:
    from colablock.display.runtimes_view import diff_document
    from colablock.display.text import render
    from colablock.runtimes.describe import compared, diff_facts

    diff = compared(call.args.before, call.args.after, call.environ)
    if call.args.json:
        print_json(diff_facts(diff), call.out)
    else:
        render(diff_document(diff), call.out, verbose=call.args.verbose)
    return ExitCode.DONE


def _import(call: Call) -> int:
    from colablock.display.progress import reporter_for
    from colablock.display.runtimes_view import import_notes
    from colablock.environment.markers_and_tags import environment_for
    from colablock.environment.notebook_host import Host
    from colablock.network.fetcher import Fetcher
    from colablock.network.settings import read_settings
    from colablock.runtimes.catalog import load_recording, runtimes
    from colablock.runtimes.document import PLATFORM, RecordedRuntime, check_name, is_date
    from colablock.runtimes.freeze import parse_freeze
    from colablock.runtimes.import_freeze import flavour_of, host_of, import_freeze
    from colablock.runtimes.package_releases import Releases

    args = call.args
    check_name(args.name)
    date = args.date or _today()
    if not is_date(date):
        raise InvalidInput(f"`{date}` is not a date", hint="Write it as `2026-08-19`")
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
    # An earlier import under this name is replaced, so nothing is learnt from it.
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
        call, imported.recording, facts, list(import_notes(imported, redacted(settings.default_index)))
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
    """Write the recording to its file, and print a summary."""
    from colablock.display.info_view import notes_document
    from colablock.display.text import render
    from colablock.runtimes.catalog import save_recording

    about = recording.about
    output = call.args.output or Path("runtimes", f"{about.name}.json")
    save_recording(recording, output)
    if call.args.json:
        counts = {"distributions": about.distributions, "unknown_count": about.unknown}
        print_json({"output": str(output), "name": about.name, **counts, **facts}, call.out)
    elif not call.args.quiet:
        title = f"wrote {output}: {about.name}, {about.distributions} distributions"
        render(notes_document(title, notes), call.err)
    return ExitCode.DONE


def _read(freeze: str) -> str:
    """Return the text of a freeze.  Raises InvalidInput for a file that cannot be read."""
    try:
        if freeze != "-":
            return decoded(read_text_file(expanded(freeze, "an argument")))
        text = sys.stdin.read(TEXT_FILE + 1)
    except OSError as error:
        raise InvalidInput(f"`{freeze}` cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidInput(f"`{freeze}` is not text: {error}", hint="Save it as UTF-8") from error
    if len(text) > TEXT_FILE:
        raise InvalidInput(f"the freeze on standard input is larger than {TEXT_FILE >> 20} MiB")
    return text


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()
