"""Facts that belong to a known cause: from its message, from the installed stack, and from the machine."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from colablock._common.text import nearest, size_text
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import canonicalize_name
from colablock._vendor.packaging.version import InvalidVersion, Version
from colablock.errors import ColablockError
from colablock.matrix.catalog import list_matrices
from colablock.matrix.model import Matrix
from colablock.training.runs.known_crashes import Advice, Cause, Detail, Program, raising_package

__all__ = [
    "advice_for",
    "boot_time",
    "concerns",
    "details_of",
    "fill_in",
    "found_matrices",
    "likely_matrix",
    "machine_facts",
    "mending",
    "missing_project",
    "newer_release",
    "oom_kills",
    "signal_in",
    "stack_details",
    "unknown_module",
]

_VALUE = re.compile(r"\{(\w+)\}")  # of a text
_MAX_PACKAGES = 3  # installed versions in an explanation
_MAX_OF_ONE = 5  # sentences of one detail
_MISSING_MODULE = re.compile(r"No module named '?(\w+)'?(?![\w.])")
_MISSING_PROJECT = re.compile(r"No package metadata was found for ([\w-]+)(?![\w.])")
_UNKNOWN_ARGUMENT = re.compile(
    r"\b(?P<call>\w+)\.__init__\(\) got an unexpected keyword argument '(?P<name>\w+)'"
)
# The package of a class, by the beginning of its name; the first that matches counts.
_CLASSES = {
    "trl": re.compile(r"(?:SFT|DPO|GRPO|KTO|ORPO|CPO|PPO|RLOO|Reward|BCO|GKD)(?:Trainer|Config)"),
    "transformers": re.compile(r"(?:Seq2Seq)?(?:Trainer|TrainingArguments)|BitsAndBytesConfig"),
    "peft": re.compile(r"(?:Lora|Peft|AdaLora|IA3|PromptTuning|PrefixTuning)\w*"),
    "accelerate": re.compile(r"Accelerator|DataLoaderConfiguration|FullyShardedDataParallelPlugin"),
}
# Arguments that a version of these packages has dropped, and those that older ones do not have yet.
_REMOVED = {
    "evaluation_strategy": "4.46",
    "max_seq_length": "0.13",
    "no_cuda": "5",
    "overwrite_output_dir": "5",
    "push_to_hub_token": "5",
}
_ADDED = frozenset(
    {"corda_config", "eva_config", "eval_strategy", "exclude_modules", "layer_replication"}
    | {"lora_bias", "processing_class", "trainable_token_indices", "use_dora", "use_rslora"}
)
_LIKENESS = 0.8  # of a misspelt module: `numpi`
# What launchers, shells and systems write of a process that a signal ended.
_SIGNAL = re.compile(
    r"died with <Signals\.\w+: (?P<a>\d+)>|[Ss]ignal (?P<b>\d+) \(SIG|exitcode\s*: -(?P<c>\d+)"
    r"|(?:exit|return)\s?code\s?(?:=|:|is|of)?\s?-(?P<d>\d+)|(?:[Gg]ot signal:|[Cc]aught signal) (?P<e>\d+)"
    r"|exited on signal (?P<k>\d+)"
    r"|(?:terminated|killed|interrupted) (?:with|by) signal (?:\d+: )?(?P<f>SIG\w+)"
    r"|Fatal Python error: (?P<g>Segmentation fault|Bus error|Illegal instruction|Aborted)"
    r"|Fatal Python error: (?!init)(?P<h>\w+)|Windows fatal exception: (?P<i>access violation)"
    r"|(?:exit(?:ed)?|terminated|status|finished)(?: with)?(?: exit)?(?: (?:code|status)| status code)?"
    r" ?[:=]? ?(?P<j>1[2-5]\d|3221225477|3221226505)\b"
)
_SIGNAL_NUMBERS = {
    "SIGHUP": 1,
    "SIGINT": 2,
    "SIGILL": 4,
    "Illegal instruction": 4,
    "SIGABRT": 6,
    "Aborted": 6,
    "1073740791": 6,  # 0xC0000409 of Windows, as a signed number
    "3221226505": 6,
    "SIGBUS": 7,
    "Bus error": 7,
    "SIGFPE": 8,
    "SIGKILL": 9,
    "SIGSEGV": 11,
    "Segmentation fault": 11,
    "access violation": 11,
    "1073741819": 11,  # 0xC0000005
    "3221225477": 11,
    "SIGTERM": 15,
}
_SHELL = 128  # a shell adds it to the number of a signal


def details_of(cause: Cause, messages: str, trace: str = "") -> tuple[str, ...]:
    """Return the sentences of *cause* with what its patterns find in *messages*, and {caller} in *trace*.

    The caller is the installed package whose code raised the exception.
    """
    found = (
        (detail, match)
        for detail in cause.details
        for match in islice(detail.pattern.finditer(messages), _MAX_OF_ONE if detail.is_each else 1)
    )
    filled = (
        fill_in(detail.text, {**match.groupdict(), "caller": _caller(detail, match, trace)})
        for detail, match in found
    )
    return tuple(dict.fromkeys(text for text in filled if text))


def _caller(detail: Detail, match: re.Match[str], trace: str) -> str:
    """Return the package that raised the exception; "" if it is the one that lacks something."""
    caller = raising_package(trace, detail.pattern) if "{caller}" in detail.text else ""
    module = match.groupdict().get("module") or ""
    return caller if caller != module.partition(".")[0] else ""


def fill_in(text: str, facts: Mapping[str, str | None]) -> str:
    """Return *text* with its values filled in; "" if one is unknown.

    An unknown value in parentheses of its own, ``(now ...)``, is omitted alone.
    """
    short = re.sub(r" \((?:now )?\{(\w+)\}\)", lambda found: found[0] if facts.get(found[1]) else "", text)
    if not all(facts.get(name) for name in _VALUE.findall(short)):
        return ""
    return _VALUE.sub(lambda found: str(facts[found[1]]), short)


def advice_for(
    advice: Sequence[Advice],
    facts: Mapping[str, str],
    settings: Mapping[str, object],
    *,
    for_hub: bool,
    program: Program = Program.COLABLOCK,
) -> Iterator[str]:
    """Yield the texts of *advice* that help with these *settings*, with the values of *facts*.

    *for_hub* tells whether the model is a name on the hub, *program* whose words are used.  The first
    text begins no alternative, and comes after nothing.
    """
    is_first = True
    for one in advice:
        if any(_is_value_of(settings.get(key), value) for key, value in one.unless.items()):
            continue
        if one.for_hub and not for_hub:
            continue
        text = fill_in(one.said_of(program), facts)
        if text:
            other = text.removeprefix("Or ").replace(" afterwards", "") if is_first else text
            yield other[:1].upper() + other[1:]
            is_first = False


def _is_value_of(value: object, unwanted: object) -> bool:
    return value in unwanted if isinstance(unwanted, list) else value == unwanted


def signal_in(text: str) -> int:
    """Return the first signal that a launcher reports to have ended a process; 0 if there is none."""
    for found in _SIGNAL.finditer(text):
        word = next(value for value in found.groups() if value)
        number = (
            int(word[:9]) if word.isdigit() and word not in _SIGNAL_NUMBERS else _SIGNAL_NUMBERS.get(word, 0)
        )
        if found["h"]:
            number = _SIGNAL_NUMBERS["SIGABRT"]  # what Python ends itself with
        elif found["j"] and word not in _SIGNAL_NUMBERS:
            number -= _SHELL
        if 0 < number < _SHELL:
            return number
    return 0


# Facts of the installed stack


def found_matrices(environ: Mapping[str, str]) -> tuple[Matrix, ...]:
    """Return the matrices of the search path that train; an unreadable one is left out."""
    with suppress(ColablockError, OSError):
        found = list_matrices(environ=environ)
        return tuple(
            one.matrix
            for one in found
            if one.matrix is not None and one.shadowed_by is None and one.matrix.train.runner is not None
        )
    return ()


def likely_matrix(matrices: Sequence[Matrix], versions: Mapping[str, str]) -> Matrix | None:
    """Return the matrix that replaces least of what is installed; of equal ones the newest."""

    def rank(matrix: Matrix) -> tuple[int, bool, Version]:
        there = {name: wanted for name, wanted in _ranges(matrix).items() if name in versions}
        kept = sum(1 if _is_accepted(versions[name], wanted) else -1 for name, wanted in there.items())
        newest = _lowest(_ranges(matrix).get("transformers", SpecifierSet())) or Version("0")
        return kept, matrix.train.runner == "trl", newest

    return max(matrices, key=rank, default=None)


def stack_details(
    cause: Cause, messages: str, versions: Mapping[str, str], matrices: Sequence[Matrix], matrix: str
) -> Iterator[str]:
    """Yield the installed versions of the packages of *cause*, and what *matrix* has instead.

    A package that the message names comes first, also if it is not installed.
    """
    ranges = _ranges(next((one for one in matrices if one.name == matrix), None))
    named = [name for name in _named(cause, messages) if name in versions or name in ranges]
    shown = [name for name in dict.fromkeys((*named, *cause.packages)) if name in versions or name in named]
    if not versions:
        return
    for name in shown[:_MAX_PACKAGES]:
        wanted = ranges.get(name)
        if name not in versions:
            yield f"{name} is not installed; the matrix `{matrix}` has it"
        elif wanted is None or _is_accepted(versions[name], wanted):
            yield f"{name} {versions[name]} is installed"
        else:
            yield f"{name} {versions[name]} is installed; the matrix `{matrix}` has {name} {wanted}"


def missing_project(messages: str) -> str:
    """Return the project that the message misses, or that of the module; "" if there is none."""
    found = _MISSING_MODULE.search(messages) or _MISSING_PROJECT.search(messages)
    return found[1].replace("_", "-").lower() if found else ""


def concerns(name: str, cause: Cause, messages: str, matrices: Sequence[Matrix]) -> bool:
    """Whether the matrix *name* has a package of *cause*, or the one that the message misses, if any has."""
    at_fault = _at_fault(cause, messages, matrices)
    has = {one.name: not at_fault.isdisjoint(_ranges(one)) for one in matrices}
    return has.get(name, True) or not any(has.values())


def _at_fault(cause: Cause, messages: str, matrices: Sequence[Matrix]) -> set[str]:
    """Return the package that the message misses if a matrix has it, else it and those of *cause*."""
    missing = missing_project(messages)
    has_it = any(missing in _ranges(one) for one in matrices)
    return {missing} if has_it else {*cause.packages, missing} - {""}


def mending(
    matrices: Sequence[Matrix], cause: Cause, messages: str, versions: Mapping[str, str]
) -> Sequence[Matrix]:
    """Return those of *matrices* that would change a package of *cause*, or all if none would.

    Where the installed version of a known package lacks an argument: those that may have it.
    """
    call = _UNKNOWN_ARGUMENT.search(messages)
    package = _package_of(call["call"]) if call is not None else None
    if call is not None and package is not None and package in versions:
        return [one for one in matrices if _has_argument(one, package, versions[package], call["name"])]
    at_fault = _at_fault(cause, messages, matrices)

    def changes(matrix: Matrix) -> bool:
        wanted = {name: asked for name, asked in _ranges(matrix).items() if name in at_fault}
        return any(
            name not in versions or not _is_accepted(versions[name], asked) for name, asked in wanted.items()
        )

    return [one for one in matrices if changes(one)] or matrices


def _package_of(call: str) -> str | None:
    """Return the package that has the class of *call*; None if it is not known."""
    name = call.partition(".")[0]
    return next((package for package, classes in _CLASSES.items() if classes.fullmatch(name)), None)


def _has_argument(matrix: Matrix, package: str, version: str, argument: str) -> bool:
    """Whether *matrix* has a version of *package* that may have *argument*, which the installed one lacks."""
    wanted = _ranges(matrix).get(package)
    if wanted is None or _is_accepted(version, wanted):
        return False
    lowest = _lowest(wanted)
    with suppress(InvalidVersion):
        is_newer = lowest is not None and lowest > Version(version)
        if argument in _REMOVED:
            last = Version(_REMOVED[argument])
            return lowest is not None and lowest < last and not wanted.contains(last, prereleases=True)
        return is_newer or argument not in _ADDED
    return True


def unknown_module(
    messages: str, versions: Mapping[str, str], matrices: Sequence[Matrix], real: Iterable[str] = ()
) -> tuple[str, str | None] | None:
    """Return the module that the message misses, and the one whose name it may misspell; None if it is known.

    The known modules are those of Python, of the installed *versions*, and of *matrices*; those of the
    *real* projects are known too, and no misspelling is sought among them.
    """
    found = _MISSING_MODULE.search(messages)
    if found is None:
        return None
    module = found[1]
    projects = {*versions, *(name for matrix in matrices for name in _ranges(matrix))}
    known = {name.replace("-", "_") for name in projects} | sys.stdlib_module_names
    others = {name.replace("-", "_").lower() for name in real}
    if module.startswith("_") or module.lower() in known | others:
        return None
    # A longer name is another project: torchao, transformers_modified.
    alike = {name for name in known if not _goes_on(module, name) and not _goes_on(name, module)}
    return module, nearest(module.lower(), alike, likeness=_LIKENESS)


def _goes_on(name: str, start: str) -> bool:
    """Whether *name* is *start* and more than one other character."""
    return name.lower().startswith(start.lower()) and len(name) > len(start) + 1


def newer_release(cause: Cause, versions: Mapping[str, str], matrices: Sequence[Matrix]) -> str:
    """Return which of *matrices* has a newer version of the first package of *cause*; "" if none.

    The first that is installed counts; if none is, any version is newer.
    """
    name = next((one for one in cause.packages if one in versions), next(iter(cause.packages), ""))
    found = []
    for matrix in matrices:
        wanted = _ranges(matrix).get(name, SpecifierSet())
        lowest = _lowest(wanted)
        with suppress(InvalidVersion):
            if lowest is not None and lowest > Version(versions.get(name, "0")):
                found.append((lowest, f"the matrix `{matrix.name}` has {name} {wanted}"))
    return max(found, default=(None, ""))[1]


def _named(cause: Cause, messages: str) -> Iterator[str]:
    """Yield the projects that the message names, as far as *cause* finds a name in it."""
    for detail in cause.details:
        match = detail.pattern.search(messages)
        for group in ("name", "module", "call"):
            text = match.groupdict().get(group) if match is not None else None
            if text:
                yield canonicalize_name(re.split(r"[.<>=!~ ]", text)[0])


def _ranges(matrix: Matrix | None) -> dict[str, SpecifierSet]:
    return {str(entry.name): entry.specifier for entry in (matrix.packages if matrix is not None else ())}


def _is_accepted(version: str, wanted: SpecifierSet) -> bool:
    try:
        return wanted.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def _lowest(wanted: SpecifierSet) -> Version | None:
    bounds = [one.version for one in wanted if one.operator in (">=", "==", "~=", ">")]
    with suppress(InvalidVersion):
        return max(Version(bound) for bound in bounds) if bounds else None
    return None


# Facts of the machine


def machine_facts(what: str, folder: Path | None, system: Path) -> Iterator[str]:
    """Yield the facts of *what*: "disk" (that of *folder*), "shared-memory", "memory" or "kills"."""
    if what == "disk":
        yield from _free_space(folder, "there") if folder is not None else ()
    elif what == "shared-memory":
        yield from _free_space(system / "dev/shm", "in /dev/shm")
    elif what == "memory" or (what == "kills" and oom_kills(system)[0]):
        yield from _oom_facts(system)


def _free_space(path: Path, where: str) -> Iterator[str]:
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return
    yield f"{size_text(usage.free)} of {size_text(usage.total)} are free {where} now"


def _oom_facts(system: Path) -> Iterator[str]:
    """Yield what the kernel's out-of-memory killer has done."""
    killed, where = oom_kills(system)
    if killed is None:
        yield "most often the kernel does that because memory runs out; this machine does not count it"
    elif killed:
        processes = "1 process" if killed == 1 else f"{killed} processes"
        yield (
            f"since its start, the kernel has killed {processes} {where} because memory ran out,"
            " most likely including this one"
        )
    else:
        yield f"memory did not run out: the kernel has not killed any process {where} for that"


def oom_kills(system: Path) -> tuple[int | None, str]:
    """Return how many processes the kernel has killed because memory ran out (None if unknown), and where."""
    for path, where in (
        ("sys/fs/cgroup/memory.events", "in this container"),
        ("sys/fs/cgroup/memory/memory.oom_control", "in this container"),
        ("proc/vmstat", "on this machine"),
    ):
        found = re.search(r"^oom_kill (\d+)$", _read(system / path), re.MULTILINE)
        # Version 1 does not count nested groups, so 0 is not conclusive.
        if found and (found[1] != "0" or not path.endswith("oom_control")):
            return int(found[1]), where
    return None, ""


def boot_time(system: Path) -> float:
    """Return when the machine was started, in seconds since the epoch; 0 if unknown."""
    found = re.search(r"^btime (\d+)$", _read(system / "proc/stat"), re.MULTILINE)
    return float(found[1]) if found else 0.0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
