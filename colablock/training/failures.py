"""Explain any traceback or log, of colablock's own runs or not, by the table of known causes."""

from __future__ import annotations

import re
import shlex
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from colablock._common.limits import CRASH_TEXT
from colablock.errors import ColablockError
from colablock.matrix.model import Matrix
from colablock.training.runs.crash import (
    CHAIN_LINES,
    GOES_ON,
    Explanation,
    Traceback,
    first_failure,
    last_trace_lines,
    matching_line,
    tracebacks,
    without_rank,
)
from colablock.training.runs.crash_facts import (
    advice_for,
    concerns,
    details_of,
    fill_in,
    likely_matrix,
    machine_facts,
    mending,
    missing_project,
    newer_release,
    oom_kills,
    signal_in,
    stack_details,
    unknown_module,
)
from colablock.training.runs.known_crashes import (
    Cause,
    Program,
    cause_in,
    cause_of_signal,
    general_cause_in,
    known_causes,
    named_cause,
    shortened,
    without_prose,
)
from colablock.training.runs.progress import START_MARK, plain_text

__all__ = ["explain_error", "explain_text", "text_of"]

# The names of causes.
_MISSING_MODULE = "missing-module"
_MISSING = (_MISSING_MODULE, "package-missing")
# Projects whose modules have other names.
_PROJECTS = {
    "Crypto": "pycryptodome",
    "PIL": "pillow",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "fitz": "pymupdf",
    "git": "gitpython",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
_FEW_LINES = 8  # of a text that is taken for a message, not for a log
_LAST_LINES = 80  # of a log without a traceback
_TRACE_LINES = 200  # of an exception without a plain traceback
_MOST_RAISED = 200  # such exceptions, the last ones: real logs have a few
_MAX_MESSAGE = 20  # lines of an exception's message
_LONGEST_CHAIN = 5  # exceptions, each raised from the one before
# An exception as Python, IPython and rich end a traceback; a warning is none.
_EXCEPTION = re.compile(
    r"^(?:\[\w+\]:? ?)?(?:[A-Za-z_]\w*\.)*[A-Z]\w*"
    r"(?:Error|Exception|Interrupt|Exit|Failed|Unsupported|Invalid)(?:: .*|:)?$|^(?:\[\w+\]:? ?)?Exception: ."
)
_LOOKS_WRONG = re.compile(r"error|exception|fatal|fail|not found|cannot|killed", re.IGNORECASE)
_WARNING = re.compile(r"\w*Warning: |^\s*(?:\[?\W*(?:WARNING|INFO|DEBUG)\b)", re.IGNORECASE)

_OF_VERSIONS = re.compile(r"\{(?:matrix|newer)\}")  # in an advice to use others
# What tells the program that wrote a text: the mark in a log of colablock, or the files of its code.
_OWN = re.compile(rf"^{re.escape(START_MARK)}|/colablock/training/(?:scripts|runs)/", re.MULTILINE)
_AXOLOTL = re.compile(r"\baxolotl\b")

# What a program writes when it goes on: what it wrote before did not end it.
_WENT_ON = re.compile(
    r"^HTTP request sent, awaiting response\.\.\. 200|' saved \[\d|^trainable params: |100%\|█"
    r"|^\W*\{'(?:loss|eval_loss|train_runtime)': |^Training completed"
)
# The same, where an exception comes later that did end it.
_DEALT_WITH = re.compile(
    rf"{_WENT_ON.pattern}|^\W*(?:step|epoch) \d|\dit/s\b|s/it\b"
    r"|\b(?:retry(?:ing)?|fall(?:s|ing)? ?back|continuing|skip(?:ped|ping)|ignor(?:ed|ing)|trying again)\b",
    re.IGNORECASE,
)
# A line of a traceback of Python, IPython or rich: its code and its paths tell nothing of what happened.
_OF_A_FRAME = re.compile(
    r"^(?:\s+\d+ |\s*-+> ?\d+ |\s*[│❱╭╰]|\s*File \W?\S+(?:, line |:)\d|Cell In ?\[|\s{4,}(?!\{'|\d))"
)

# An exception in a destructor, which Python reports and goes on.
_IGNORED = re.compile(r"^Exception ignored in: .*\n(?:Traceback .*\n(?:[ \t].*\n)*)?.*", re.MULTILINE)


def text_of(failure: str | BaseException) -> str:
    """Return the text of a failure: of an exception, its traceback with all that it was raised from."""
    if isinstance(failure, BaseException):
        return "".join(traceback.format_exception(failure))
    return failure


def explain_error(error: ColablockError) -> Explanation:
    """Return the explanation of an error of colablock, which says itself what is wrong and what to do."""
    advice = (error.hint,) if error.hint else ()
    return Explanation(cause=error.reference, means=str(error), advice=advice)


def explain_text(
    text: str,
    *,
    versions: Mapping[str, str],
    matrices: Sequence[Matrix] = (),
    applied: str | None = None,
    source: str = "",
    is_intact: bool = False,
    is_guess: bool = False,
    elsewhere: str = "",
    real: Iterable[str] = (),
    system: Path = Path("/"),
) -> Explanation:
    """Return why the process that wrote *text* failed.

    *versions* are those of the environment in which it ran, *matrices* those that could mend it,
    *applied* is the name of the one that was applied there, *source* its name or path, and
    *is_intact* tells that its versions are still there, so that applying it again mends nothing.
    *is_guess* tells that nothing says that it ran there, and *elsewhere* is the folder of its packages
    if that is not on this machine.  *real* are projects that exist, whose names are therefore not
    misspelt.  *system* is the folder with ``proc`` and ``sys``.  Nothing is asked of a network.  Of a
    long text, the last ``CRASH_TEXT`` characters count.
    """
    plain = shortened(plain_text(text[-CRASH_TEXT:])).strip("\n")
    failure, cause = _recognised(plain)
    likely = likely_matrix(helpful := mending(matrices, cause, failure.messages, versions), versions)
    guessed = applied if is_guess else None
    if applied is not None and not concerns(applied, cause, failure.messages, matrices):
        applied = None  # it has none of the packages at fault
    name = applied or (likely.name if likely is not None else "NAME")
    word = shlex.quote(source) if applied is not None and source else name
    is_vain = (is_intact and bool(cause.packages)) if applied is not None else matrices and not helpful
    facts = {
        "matrix": "" if is_vain else word,
        "stack": word,
        "checkpoint": "the newest checkpoint",
        "killer": "idle" if not elsewhere and oom_kills(system)[0] == 0 else "",
    }
    facts["newer"] = newer_release(cause, versions, matrices)
    if cause.name == _MISSING_MODULE:
        unknown = unknown_module(failure.messages, versions, matrices, real)
        if unknown is not None:
            return _of_unknown_module(failure, *unknown, versions, word)
    if applied and is_intact and cause.name in _MISSING and missing_project(failure.messages) in versions:
        return _of_another_python(cause, failure, versions, applied)
    installed = [*stack_details(cause, failure.messages, versions, matrices, name)]
    installed += _remark_on(cause, installed, guessed, elsewhere)
    return Explanation(
        cause=cause.name,
        means=fill_in(cause.means, facts) or "the loss was not finite, so the model did not learn",
        line=failure.stated,
        details=(
            *details_of(cause, failure.messages, failure.text),
            *installed,
            *(machine_facts(cause.look_up, None, system) if not elsewhere else ()),
        ),
        advice=tuple(_advice(cause, facts, _program_of(plain), applied if is_guess and is_vain else None)),
        trace=last_trace_lines(failure.text),
        rank=failure.rank,
    )


def _advice(cause: Cause, facts: Mapping[str, str], program: Program, guessed: str | None) -> Iterator[str]:
    """Yield what to do: also to start it where *guessed* was applied, if other versions help."""
    yield from advice_for(cause.advice, facts, {"killer": facts["killer"]}, for_hub=False, program=program)
    if guessed is not None and any(_OF_VERSIONS.search(one.text) for one in cause.advice):
        yield f"If it ran in another environment, start it with {_command_in(guessed)}"


def _remark_on(cause: Cause, installed: Sequence[str], guessed: str | None, elsewhere: str) -> Iterator[str]:
    """Yield whose versions the *installed* ones are if the text does not say so, or why there are none."""
    if installed and guessed is not None:
        yield f"the text does not say where the program ran: {guessed} was applied last"
    elif elsewhere and cause.packages:
        yield f"the versions are not known: the packages in {elsewhere} are not on this machine"


def _of_unknown_module(
    failure: Traceback, module: str, meant: str | None, versions: Mapping[str, str], matrix: str
) -> Explanation:
    """Return the explanation for a module that no matrix has, which *meant* may be misspelt as."""
    project = _PROJECTS.get(module, meant or module).replace("_", "-")
    shown = f"`colablock plan {matrix} --with {project}` shows what adding it changes"
    advice: tuple[str, ...]
    if module in _PROJECTS and project in versions:
        means = (
            f"there is no module `{module}`, though its project `{project}` is installed: files are missing"
        )
        advice = (
            f"Install it again: `pip install --force-reinstall --no-deps {project}=={versions[project]}`",
        )
    elif module in _PROJECTS:
        means = f"there is no module `{module}` in the environment: it is of the project `{project}`"
        advice = (shown,)
    elif meant is not None:
        means = f"there is no module `{module}`: did you mean `{meant}`?"
        # Nobody is sent to a project whose name is a misspelling of another.
        advice = (f"Write `{meant}` where the program imports `{module}`",)
    else:
        means = f"there is no module `{module}` in the environment, and no matrix has it"
        advice = (
            f"If `{project}` is a project, {shown}",
            f"If `{module}` is a file of your own, start the program in its folder",
        )
    return Explanation(
        cause=_MISSING_MODULE,
        means=means,
        line=failure.stated,
        details=(f"{project} {versions[project]} is installed",) if project in versions else (),
        advice=advice,
        trace=last_trace_lines(failure.text),
        rank=failure.rank,
    )


def _command_in(applied: str) -> str:
    """Return the command that starts a program where *applied* was applied."""
    return f"`colablock run {applied} -- python YOUR_SCRIPT.py`"


def _of_another_python(
    cause: Cause, failure: Traceback, versions: Mapping[str, str], applied: str
) -> Explanation:
    """Return the explanation for a package of the *versions* where *applied* was applied, but not here."""
    project = missing_project(failure.messages)
    return Explanation(
        cause=cause.name,
        means="the program ran in another Python than the one with the training stack",
        line=failure.stated,
        details=(f"{project} {versions[project]} is installed in the environment of {applied}",),
        advice=(f"Start it there: {_command_in(applied)}",),
        trace=last_trace_lines(failure.text),
        rank=failure.rank,
    )


def _program_of(text: str) -> Program:
    """Return what wrote *text*: its settings are named as it names them."""
    if _OWN.search(text):
        return Program.COLABLOCK
    return Program.AXOLOTL if _AXOLOTL.search(text) else Program.OTHER


def _recognised(text: str) -> tuple[Traceback, Cause]:
    """Return the failure in *text*, and its cause: that of its exceptions, else that of its last lines."""
    lines = _IGNORED.sub("", text).splitlines() or [""]
    text = "\n".join(lines)
    tail = "\n".join(lines[-_LAST_LINES:])
    for known in known_causes():
        if known.whole is not None and known.whole.search(tail):
            return Traceback(text=tail, line=_last_exception(lines), messages=tail), known
    chain = first_failure(tracebacks(text), 1)
    chains = [chain] if chain is not None and chain.line else []
    failures = [*chains, *_raised(lines)]
    if failures:
        went_on = _end_of_what_was_dealt_with(lines, failures[0].at)
        failures = [one for one in failures if one is failures[0] or one.at >= went_on]
        lines = lines[went_on:]
    known_ones = [(one, cause) for one in failures if (cause := cause_in(one.messages)) is not None]
    for one, cause in known_ones:
        if not cause.is_consequence:
            return one, cause
    if known_ones:
        return known_ones[0]
    for one in failures:
        cause = general_cause_in(one.messages, one.text)
        if cause is not None:
            of_signal = cause_of_signal(signal_in(one.messages)) if cause.is_consequence else None
            return one, of_signal or cause
    whole = Traceback(text=tail, line="", messages=tail)
    cause = _cause_of_lines(lines)
    if cause is not None:
        return Traceback(text=tail, line=matching_line(cause, tail), messages=tail), cause
    return next(iter(failures), whole), named_cause("unknown")


def _end_of_what_was_dealt_with(lines: Sequence[str], last: int) -> int:
    """Return the line up to which the program went on after what it wrote; its last failure is at *last*."""
    before = ((at, lines[at - 1]) for at in range(last, 0, -1))
    return next((at for at, line in before if _DEALT_WITH.search(line) and not _OF_A_FRAME.match(line)), 0)


def _last_exception(lines: Sequence[str]) -> str:
    return next((line.strip() for line in reversed(lines) if _EXCEPTION.match(line.strip())), "")


def _raised(lines: Sequence[str]) -> Iterator[Traceback]:
    """Yield the exceptions in *lines* that no plain traceback leads to, the last one first.

    Each has only the last lines before it as its text, so that thousands of them stay cheap.
    """
    starts = [at for at, line in enumerate(lines) if _EXCEPTION.match(line.strip())]
    seen: set[tuple[str, str]] = set()
    for index in range(len(starts) - 1, max(len(starts) - _MOST_RAISED, 0) - 1, -1):
        at = starts[index]
        end = _end_of_message(lines, at)
        chain = starts[_begin_of_chain(lines, starts, index) : index + 1]
        said = (line for one in chain for line in lines[one : _end_of_message(lines, one)])
        message = "\n".join(map(without_rank, said))
        text = "\n".join(lines[max(0, end - _TRACE_LINES) : end])
        if (message, text) in seen:
            continue
        seen.add((message, text))
        yield Traceback(text=text, line=lines[at].strip(), messages=message, at=at)


def _end_of_message(lines: Sequence[str], at: int) -> int:
    end = at + 1
    while end < min(len(lines), at + _MAX_MESSAGE) and (lines[end].strip() or GOES_ON in lines[end - 1]):
        end += 1
    return end


def _begin_of_chain(lines: Sequence[str], starts: Sequence[int], index: int) -> int:
    """Return the index of the first of *starts* from which that at *index* was raised, step by step."""
    first = index
    while 0 < first > index - _LONGEST_CHAIN and any(
        line.strip() in CHAIN_LINES for line in lines[starts[first - 1] : starts[first]]
    ):
        first -= 1
    return first


def _cause_of_lines(lines: Sequence[str]) -> Cause | None:
    """Return the cause that the lines themselves tell: all of a short text, else those that say an error."""
    after = next((at for at in range(len(lines), 0, -1) if _WENT_ON.search(lines[at - 1])), 0)
    lines = lines[after:]
    stated = without_prose(lines[-_LAST_LINES:])
    tail = "\n".join(stated)
    told = [line for line in stated if not _WARNING.search(line)]
    is_log = len(lines) > _FEW_LINES
    if is_log:
        told = [line for line in told if _LOOKS_WRONG.search(line)]
    found = cause_in("\n".join(told))
    if found is not None and not found.is_consequence:
        return found
    return (
        cause_in(tail, is_log=True)
        or cause_of_signal(signal_in(tail))
        or found
        # The lines of a log say one thing each; those of a message belong together.
        or general_cause_in(("\n\n" if is_log else "\n").join(told), "\n".join(lines[-_LAST_LINES:]))
    )
