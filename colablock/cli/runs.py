"""List, show, follow, stop and plot training runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock.cli.common import Call, add_command, print_json
from colablock.cli.usage.parser import add_group
from colablock.errors import ExitCode, InvalidInput

if TYPE_CHECKING:
    from colablock.training.runs.folder import RunFolder
    from colablock.training.runs.summary import RunSummary

__all__ = ["add", "follow_run"]


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    below = add_group(commands, "runs", "training runs", "List, show, follow, stop and plot training runs.")
    parser = add_command(below, "list", "list the training runs that were started here, newest first")
    parser.set_defaults(handler=_list)
    parser = add_command(below, "show", "show one run: its configuration, its progress, and why it ended")
    _add_id(parser)
    parser.set_defaults(handler=_show)
    parser = add_command(
        below, "follow", "show the progress of a run until it ends; an interrupt leaves it running"
    )
    _add_id(parser)
    parser.set_defaults(handler=_follow)
    parser = add_command(below, "stop", "ask a run to save a checkpoint after its current step, and to end")
    _add_id(parser)
    parser.add_argument("--wait", action="store_true", help="wait until it has ended")
    parser.set_defaults(handler=_stop)
    parser = add_command(below, "plot", "draw the loss curve of a run")
    _add_id(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        required=True,
        help="output file, with the extension .png or .svg",
    )
    parser.set_defaults(handler=_plot)


def _add_id(parser: Any) -> None:
    parser.add_argument(
        "id",
        metavar="ID",
        nargs="?",
        help="name or folder of a run; default: the one that is running, else the newest",
    )


def follow_run(
    call: Call, run_id: str, folder: RunFolder, *, stops: bool = True, mirror: str | None = None
) -> int:
    """Show the progress of a run until it ends, print its summary, and return the exit code.

    With *stops* an interrupt asks the run to stop at a checkpoint; without, it leaves the run running.
    It waits until the mirror, which *mirror* names, has the last checkpoint and the adapter: the machine may
    be gone after this call.  Raises Unmet if they do not get there.
    """
    from colablock.training.runs.summary import await_mirror

    summary = _watched(call, run_id, folder, stops=stops)
    is_quiet = call.args.quiet or call.args.json
    summary, fault = await_mirror(
        summary,
        lambda text: None if is_quiet else call.err.print(text),
        environ=call.environ,
        target=mirror,
    )
    code = _ended(call, summary)
    if fault is None or code != ExitCode.DONE:
        return code
    if call.args.json:  # the summary is the only output, and has the last note
        return ExitCode.UNMET
    raise fault


def _list(call: Call) -> int:
    from colablock.display.run_view import runs_document
    from colablock.display.text import render
    from colablock.training.runs.summary import summaries, summary_to_json
    from colablock.transaction.apply_record import home_folder

    found = list(summaries(home_folder(call.environ), explained=call.args.json))
    if call.args.json:
        print_json({"runs": [summary_to_json(one) for one in found]}, call.out)
    else:
        render(runs_document(found), call.out)
    return ExitCode.DONE


def _show(call: Call) -> int:
    from colablock.display.run_view import run_document
    from colablock.display.text import render
    from colablock.training.runs.summary import summary_of, summary_to_json

    summary = summary_of(*_chosen(call))
    if call.args.json:
        print_json(summary_to_json(summary), call.out)
    else:
        render(run_document(summary), call.out, verbose=call.args.verbose)
    return ExitCode.DONE


def _follow(call: Call) -> int:
    run_id, folder = _chosen(call)
    return follow_run(call, run_id, folder, stops=False)


def _stop(call: Call) -> int:
    from colablock.training.runs.folder import stop_run

    run_id, folder = _chosen(call)
    stop_run(run_id, folder)
    if call.args.wait:
        return follow_run(call, run_id, folder, stops=False)
    if call.args.json:
        print_json({"id": run_id, "asked_to_stop": True}, call.out)
    elif not call.args.quiet:
        call.err.print(
            f"asked {run_id} to stop: it saves a checkpoint after its current step, and ends",
        )
    return ExitCode.DONE


def _plot(call: Call) -> int:
    from colablock.training.runs.loss_curve import write_curve

    run_id, folder = _chosen(call)
    output = call.args.output
    write_curve(folder, output, environ=call.environ)
    if call.args.json:
        print_json({"id": run_id, "written": str(output.absolute())}, call.out)
    elif not call.args.quiet:
        call.err.print(f"wrote {output}")
    return ExitCode.DONE


def _chosen(call: Call) -> tuple[str, RunFolder]:
    """Return the named run, else the default.  Raises NotFound; InvalidInput if several are running."""
    from colablock.training.runs.folder import find_run, list_runs
    from colablock.transaction.apply_record import home_folder

    home = home_folder(call.environ)
    if call.args.id is None:
        running = [(run_id, folder) for run_id, folder in list_runs(home) if folder.is_alive()]
        if len(running) > 1:
            names = ", ".join(f"`{run_id}`" for run_id, _ in running)
            raise InvalidInput(f"{len(running)} runs are in progress: {names}", hint="Name one of them")
        if running:
            return running[0]
    return find_run(home, call.args.id)


def _watched(call: Call, run_id: str, folder: RunFolder, *, stops: bool) -> RunSummary:
    is_interrupted = False
    while True:
        try:
            from colablock.display.run_progress import run_display_for
            from colablock.training.runs.summary import watch

            quiet = call.args.quiet or call.args.json
            display = run_display_for(run_id, folder, console=call.err, quiet=quiet, environ=call.environ)
            with display:
                return watch(run_id, folder, display, stops=stops, is_interrupted=is_interrupted)
        except KeyboardInterrupt:  # noqa: PERF203 - before `watch` handles them, and the run has started
            if is_interrupted or not stops:
                raise
            is_interrupted = True


def _ended(call: Call, summary: RunSummary) -> int:
    """Print the summary of a run; return the exit code, INTERRUPTED for a run that is still running."""
    from colablock.display.run_view import summary_document
    from colablock.display.text import render
    from colablock.training.runs.folder import State
    from colablock.training.runs.summary import summary_to_json

    if call.args.json:
        print_json(summary_to_json(summary), call.out)
    elif summary.state is not State.RUNNING:
        render(summary_document(summary), call.out, verbose=call.args.verbose)
    if summary.state is State.RUNNING:
        return ExitCode.INTERRUPTED
    return ExitCode.DONE if summary.state in (State.DONE, State.STOPPED) else ExitCode.UNMET
