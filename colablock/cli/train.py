"""Train, and prove with a tiny run that a stack trains."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock._common.text import PROGRAM, command_line, option_words
from colablock.cli.common import MATRIX, Call, add_command, print_json, session_of
from colablock.errors import ExitCode, TrainingFailed
from colablock.matrix.schema import RUNNERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from colablock.training.find_or_start import NamedRun, TrainOptions
    from colablock.training.hosts import RepeatedCall
    from colablock.training.runs.config import TrainConfig

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    _add_train(commands)
    _add_smoke(commands)


def _add_train(commands: Any) -> None:
    parser = add_command(commands, "train", "train in the environment of the last apply")
    parser.add_argument("name", metavar="NAME", help=MATRIX)
    parser.add_argument("--config", metavar="FILE", type=Path, help="training config (see `new-config`)")
    parser.add_argument("--model", metavar="M", help="base model: a folder, or a name on the Hub")
    parser.add_argument(
        "--dataset",
        metavar="D",
        action="append",
        default=[],
        help="training data: a file, or a name on the Hub (repeatable)",
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="set a key of the config (repeatable)"
    )
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        help="folder of the run; default: `outputs/MODEL-DATA`, numbered if a run elsewhere has that name",
    )
    parser.add_argument("--runner", choices=RUNNERS, help="training library; default: the matrix's own")
    parser.add_argument(
        "--mirror", metavar="TARGET", help="folder or hf://NAME/REPO to copy complete checkpoints to"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="move an existing run in the folder aside, and start a new one"
    )
    parser.add_argument(
        "--resume-anyway", action="store_true", help="resume even if config, data or lock have changed"
    )
    parser.add_argument(
        "--shard",
        choices=("auto", "fsdp", "none"),
        default="auto",
        help="share one model among the cards; `auto` does if a card does not hold it",
    )
    parser.add_argument("--anyway", action="store_true", help="start even if a preflight check refuses")
    parser.add_argument(
        "--strict", action="store_true", help="refuse a config with a setting that is not done as written"
    )
    parser.add_argument(
        "--no-wait", dest="wait", action="store_false", help="start the run, and do not follow it"
    )
    _add_hosts(parser)
    parser.epilog = (
        "Arguments after `--` are passed to accelerate, after colablock's own. `--hosts` prints those for "
        "several hosts; `--num_processes` is the number of processes on all of them."
    )
    parser.settings = _settings  # type: ignore[attr-defined]  # our Parser
    parser.set_defaults(launch=[])
    parser.set_defaults(handler=_train)


def _add_hosts(parser: argparse.ArgumentParser) -> None:
    """Add the options for runs on several hosts."""
    parser.add_argument(
        "--hosts",
        metavar="A,B",
        help="print what to run on each of several hosts, and start nothing; the first is where they meet",
    )
    parser.add_argument(
        "--launcher",
        choices=("slurm",),
        help="write a batch script and submit it; in a job, start its tasks with srun",
    )
    parser.add_argument(
        "--sbatch",
        metavar="OPTION",
        action="append",
        default=[],
        help="option of the batch script, such as nodes=2 or time=1:00:00 (repeatable)",
    )


def _add_smoke(commands: Any) -> None:
    parser = add_command(commands, "smoke", "train ten tiny steps offline, to prove that the stack trains")
    parser.add_argument("name", metavar="NAME", help=MATRIX)
    parser.add_argument("--runner", choices=RUNNERS, help="training library; default: the matrix's own")
    parser.add_argument(
        "--receipt", metavar="FILE", type=Path, help="write the receipt to FILE, to contribute it"
    )
    parser.set_defaults(handler=_smoke)


def _settings() -> list[str]:
    from colablock.training.runs.config import TrainConfig

    return [one.name for one in fields(TrainConfig) if one.name != "extra"]


def _train(call: Call) -> int:
    from colablock.cli.runs import follow_run
    from colablock.display.briefing_view import briefing_document
    from colablock.display.text import render
    from colablock.operations.run import proven_environment
    from colablock.training.find_or_start import train
    from colablock.training.given_inputs import check_given
    from colablock.training.hosts import check_places, job_arguments, needs_card, submits_job
    from colablock.transaction.apply_record import home_folder

    args = call.args
    is_quiet = args.quiet or args.json
    check_places(args.hosts.split(",") if args.hosts is not None else (), args.launcher, args.sbatch)
    if args.hosts is not None:
        return _print_hosts(call)
    if not args.resume_anyway:
        check_given(args.config, _values(args), example=partial(_example, args.name))
    with session_of(call) as session:
        proven = proven_environment(session, args.name)
        options = _train_options(args, proven.runner)
        if args.launcher is not None:
            if submits_job(args.sbatch, call.environ):
                return _submit(call, options.config, proven.versions)
            has_card = needs_card(proven.versions)
            launch = job_arguments(call.environ, options.launch_arguments, has_card=has_card)
            options = replace(options, launch_arguments=launch)
        run = train(
            proven,
            options,
            home=home_folder(call.environ),
            environ=call.environ,
            reporter=session.reporter,
            show=lambda briefing: None if is_quiet else render(briefing_document(briefing), call.err),
        )
    if not args.wait:
        return _print_started(call, run)
    return follow_run(call, run.id, run.folder, mirror=args.mirror)


def _example(name: str, model: str, data: str) -> str:
    return command_line("train", name, "--model", model, "--dataset", data)


def _print_hosts(call: Call) -> int:
    """Print the command for each host; their outputs are in folders of their own."""
    args = call.args
    found = _repeated(args, *([] if args.wait else ["--no-wait"])).on(args.hosts.split(","))
    if args.json:
        print_json({"hosts": [{"host": host, "command": words} for host, words in found.items()]}, call.out)
        return ExitCode.DONE
    for host, words in found.items():
        call.out.print(f"# on {host}\n{shlex.join(words)}", highlight=False)
    return ExitCode.DONE


def _submit(call: Call, config: TrainConfig, versions: Mapping[str, str]) -> int:
    """Write the batch script of a run in a stack with *versions*, and submit it."""
    from colablock.training.hosts import needs_card
    from colablock.training.runs.output_folder import default_folder, with_own_folder
    from colablock.transaction.apply_record import home_folder

    args = call.args
    done = _repeated(args).submit(
        default_folder(with_own_folder(config, tuple(args.launch), home_folder(call.environ))),
        args.sbatch,
        is_named=bool(config.output_dir),
        has_card=needs_card(versions),
        environ=call.environ,
    )
    if args.json:
        print_json({"script": str(done.script), "job": done.job}, call.out)
    elif not args.quiet:
        call.out.print(f"submitted job {done.job}: `{done.script}`")
    return ExitCode.DONE


def _repeated(args: argparse.Namespace, *flags: str) -> RepeatedCall:
    from colablock.training.hosts import RepeatedCall

    return RepeatedCall(
        words=_command(args), flags=[*_flags(args), *flags], fresh=args.fresh, launch=args.launch
    )


def _command(args: argparse.Namespace) -> list[str]:
    """Return the words of the same call, without its flags."""
    given = {
        "--config": args.config,
        "--model": args.model,
        "--dataset": args.dataset,
        "--set": args.set,
        "--output-dir": args.output_dir,
        "--runner": args.runner,
        "--mirror": args.mirror,
        "--shard": args.shard if args.shard != "auto" else None,
    }
    return [PROGRAM, "train", args.name, *option_words(given)]


def _flags(args: argparse.Namespace) -> list[str]:
    flags = {"--resume-anyway": args.resume_anyway, "--anyway": args.anyway, "--strict": args.strict}
    return list(option_words(flags))


def _values(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options as keys of a config."""
    from colablock.training.find_or_start import values_of
    from colablock.training.runs.config import values_from

    return values_of(args.model, args.dataset or None, args.output_dir, values_from(args.set))


def _train_options(args: argparse.Namespace, runner: str | None) -> TrainOptions:
    from colablock.training.find_or_start import options_of

    asked = options_of(
        args.config,
        runner=args.runner or runner,
        values=_values(args),
        strict=args.strict,
    )
    return replace(
        asked,
        runner=args.runner,
        fresh=args.fresh,
        resume_anyway=args.resume_anyway,
        anyway=args.anyway,
        mirror=args.mirror,
        shard=args.shard,
        launch_arguments=tuple(args.launch),
    )


def _print_started(call: Call, run: NamedRun) -> int:
    if call.args.json:
        print_json(
            {"id": run.id, "folder": str(run.folder.path), "state": run.folder.state().value}, call.out
        )
    else:
        follow = command_line("runs", "follow", run.id)
        call.out.print(f"{run.id} is {run.folder.state().value}: `{follow}`")
    return ExitCode.DONE


def _smoke(call: Call) -> int:
    from colablock.display.briefing_view import receipt_document
    from colablock.display.text import render
    from colablock.operations.run import run_smoke
    from colablock.training.receipts import receipt_to, write_receipt

    args = call.args
    with session_of(call) as session:
        receipt = run_smoke(session, args.name, runner=args.runner)
    if args.receipt:
        write_receipt(receipt, args.receipt)
    if args.json:
        print_json(receipt_to(receipt), call.out)
    else:
        render(receipt_document(receipt, path=args.receipt), call.out)
    if not receipt.passed and args.json:  # the receipt says so, and is the only output
        return TrainingFailed.exit_code
    if not receipt.passed:
        raise TrainingFailed(f"`{args.name}` does not train here: the loss is not as expected")
    return ExitCode.DONE
