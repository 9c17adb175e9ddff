"""Runs that begin on other hosts, or in a job of Slurm: the commands for them, and what is shown."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from colablock._common.text import PROGRAM, option_words
from colablock.display.view import Document, Headline, Note, Preformatted, Section, Span, Tone
from colablock.training.find_or_start import TrainOptions
from colablock.training.hosts import RepeatedCall

__all__ = ["commands_document", "job_document", "repeated_call"]


# Characters that YAML refuses in a text, or takes for the end of a line, where JSON does neither.
_NOT_PRINTED = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def repeated_call(
    name: str, file: Path | None, values: Mapping[str, Any], options: TrainOptions, *, strict: bool
) -> RepeatedCall:
    """Return the command line of a call of `colablock.train` with the keys *values* and with *options*."""
    texts = {
        "--config": file,
        "--runner": options.runner,
        "--mirror": options.mirror,
        "--shard": options.shard if options.shard != "auto" else None,
    }
    words = [PROGRAM, "train", name, *option_words(texts)]
    for key, value in values.items():
        words += ["--set", f"{key}={_flow(value)}"]
    flags = {
        "--resume-anyway": options.resume_anyway,
        "--anyway": options.anyway,
        "--strict": strict,
    }
    return RepeatedCall(
        words=words,
        flags=option_words(flags),
        fresh=options.fresh,
        launch=options.launch_arguments,
    )


def _flow(value: object) -> str:
    """Return *value* as YAML in one line: as JSON, whose numbers with an exponent YAML 1.1 takes for text."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(str(key))}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    text = json.dumps(value, default=os.fspath, ensure_ascii=False)
    text = _NOT_PRINTED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return text.replace("e", ".0e") if isinstance(value, float) and "." not in text else text


def commands_document(commands: Mapping[str, str]) -> Document:
    """Return the command for each host; nothing has been started."""
    sections = tuple(
        Section(title=f"on {host}", body=(Preformatted(lines=(command,)),))
        for host, command in commands.items()
    )
    return Document(
        headline=Headline(text=f"start the run on each of {len(commands)} hosts"), blocks=sections
    )


def job_document(job: str, script: Path) -> Document:
    """Return that *job* of Slurm was submitted, and how to look at it."""
    notes = (
        Note(label="script", text=Span(str(script), Tone.CODE)),
        Note(label="state", text=Span(f"squeue --job {job}", Tone.CODE)),
    )
    return Document(headline=Headline(text=f"submitted job {job} of Slurm"), blocks=notes)
