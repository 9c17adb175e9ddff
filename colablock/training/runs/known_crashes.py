"""The known causes of failed runs, read from ``known_crashes.toml``, which describes its keys."""

from __future__ import annotations

import enum
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from colablock._common.limits import CRASH_LINE, CRASH_WORD

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "Advice",
    "Cause",
    "Detail",
    "Framed",
    "Program",
    "cause_in",
    "cause_of_signal",
    "general_cause_in",
    "known_causes",
    "named_cause",
    "raising_package",
    "shortened",
    "without_prose",
]

#: What an option of `colablock train` is called in a config.
_KEYS = {"--model": "base_model", "--dataset": "datasets", "--output-dir": "output_dir"}
_TABLE = Path(__file__).with_name("known_crashes.toml")
# A line that states an error: an exception, as Python writes it, or a program's own word for one.
_ERROR_LINE = re.compile(
    r"^(?:\[\w+\]:? ?)?(?:[A-Za-z_]\w*\.)*"
    r"(?:[A-Za-z_]*(?:Error|Exception|Interrupt|Exit|Failed|Unsupported)\b|(?<=\.)[A-Z]\w*)(?:: |:?$)"
    r"|^.{0,80}?(?:\b(?:ERROR|FATAL|CRITICAL)\b|\b(?:error|fatal|fatal error|\w*Error(?: #\d+)?|Exception): )"
    r"|^.{0,80}?\b[Ee]rror (?:while|in|during|when|loading|running|building|reading|opening)\b"
    r"|^.{0,80}NCCL WARN |^dlopen\(|^!* ?Exception |^[EF]\d{4} \d\d:\d\d:"
    r"|^.{0,400}: Assertion .{1,200} failed\.?$|^.{0,80}: command not found$"
    r"|^.{0,60}is not recognized as (?:an internal or external command|the name of a cmdlet)"
)
_NO_ERROR_LINE = re.compile(
    r"\w*Warning: |^\W*(?:WARN|INFO|DEBUG|If|When|Hint|Note|Tip|Avoid)|deprecated", re.IGNORECASE
)
_CLASS = r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Failed|Unsupported)"
_BEGINS_WITH_CLASS = re.compile(rf"{_CLASS}(?:: |:?$)")
# Many patterns take quadratic time for a long word or line.
_LONG_WORD = re.compile(rf"([\w.]{{{CRASH_WORD}}})[\w.]+")
_LONG_LINE = re.compile(rf"^(.{{{CRASH_LINE}}}).+", re.MULTILINE)
# Libraries whose errors are of other programs: general words about servers and values do not count.
_FOREIGN = re.compile(
    r"(?:pymongo|redis|psycopg2?|sqlalchemy|elasticsearch|openai|anthropic|django|flask|werkzeug|discord|telegram"
    r"|selenium|playwright|celery|kafka|grpc|kubernetes|docker|paramiko|smtplib|ftplib|mysql|sqlite3|asyncpg|pika"
    r"|jwt|boto3\.dynamodb|scrapy|bs4)\.\w"
    # Keras, which raises plain errors
    r"|ValueError: (?:Input \d+ of layer|Unknown layer: |Layer \S+ (?:expects|was called))"
    r"|ValueError: Exception encountered when calling"
)
# A line that speaks of errors and states none: comment, code, template, test report, turn of a chat,
# row of data, advice, warning, or an error that the program has dealt with.
_PROSE = re.compile(
    r"^(?:\W*(?:WARNING: )?Retrying\b|\w*Warning: |WARNING\[)"
    r"|^\s*(?:#+ |//|- \[[ x]\]|raise [A-Z])"
    r"|^\s*(?:(?:print|log(?:ger|ging)?\.\w+|warnings\.warn)\(|\w+\.add_argument\()"
    r"|^\s*(?:except [\w.(]+.*:$|assert [\"']|def \w+\(|\w+ = (?:[\"']|.*  # )|\"\"\")"
    r"|^\s*\{[{%#]|^(?:FAILED|PASSED|ERROR|XFAIL|XPASS|SKIPPED)(?: \[\d+\])? \S+\.\w+(?:::|:\d+)"
    r"|^\S+\.py:\d+: \w*Warning: |^(?:error|exception|reason)\w* (?:caught )?was: "
    r"|^\W*(?:fix|add|stop|remove|change|support|bump|update|handle|improve|allow|drop|guard)"
    r"(?:e?[sd]|ing)? [\w`'\"](?!.*\b\w+\.so\b)"
    r"|^\W*(?:with )?(?:pytest\.|self\.)?(?:raises|assertRaises\w*)\("
    r"|^.{0,80}\bCannot use FA version"
    r"|^(?![\w.]*(?:Error|Exception): ).{0,200}\b(?:accepting this|will not be enabled|falling back to"
    r"|(?:ignored|skipped|continuing|proceeding) (?:with|anyway)|(?:defaulting to|returning) existing"
    r"|ignore (?:the )?error and continue)\b"
    r"|^Error while fetching `HF_TOKEN` secret value|^/\S*ld: cannot find -l(?:aio|cufile)\b"
    r"|^.{0,120}/select_algorithm\.py:"
    r"|^.{0,60}\b(?:(?:if|when(?:ever)?) (?:you|we|one) (?:see|get|hit)s?|kept getting"
    r"|used to (?:get|see|fail))\b"
    r"|^\s+at [\w.$<>]+\(|^(?:java|javax|org|com|kotlin|scala)\.[\w.$]+(?:Exception|Error)\b"
    r"|^\W*(?:commit [\da-f]{6}|(?:fix(?:e[sd])?|feat|docs|changelog|faq)(?:\(|: | \d))"
    r"|^.{0,20}(?:<\|\w+\|>|<start_of_turn>|\[INST\])|^.{0,60}\bINFO\b(?!.*\b\w+Error: )"
    r"|^\W*(?:user|assistant|human|gpt|question|answer|instruction|response|prompt|completion|generated|generation"
    r"|prediction|reference|expected|row|sample|example|q|a)(?: ?\d+)?[\"'*]*\s?[:=] "
    r"|^\s*[{\"'].{0,80}\b(?:text|content|title|description)[\"']: "
    r"|^\s*\{ ?[\"'](?:messages|conversations|prompt|instruction|question|input|role|id)[\"']: "
    r"|^\W*(?:if|when|to (?:avoid|fix|solve|prevent)|in case|avoid|hint|note|tip)\b(?!.*\b\w+Error: )"
    r"|^(?!.*\b\w+Error: ).{0,40}\b(?:in case of|to avoid|why do|how (?:do|to)|what does|means that)\b",
    re.IGNORECASE,
)
# A line after an error that the program has dealt with: it tries again, or has reached another address.
_DEALT_WITH = re.compile(
    r"^.{0,80}\b(?:Trying to resume\b|Retrying (?:in|after) \d)|^Connecting to .{1,200}\bconnected\.$"
)
# What a log, a launcher or a program writes before an exception: a rank, a time, a level, a name.
_AFTER_PREFIX = re.compile(rf"^.{{0,160}}?(?<![\w.'`])(?P<name>{_CLASS})(?:: |\(['\"])(?P<message>.*)")
# Messages that Python itself writes, as programs quote them without the class.
_MESSAGES = {
    "ImportError": r"cannot import name '",
    "ModuleNotFoundError": r"No module named '",
    "NameError": r"name '\w+' is not defined",
    "AttributeError": r"(?:(?:partially initialized )?module |type object )?'[\w.]+'(?: object)?"
    r" has no attribute '",
    "TypeError": r"[\w.]+\(\) (?:got an unexpected keyword argument '|got multiple values"
    r"|missing \d+ required|takes (?:from )?\d)",
}
_MESSAGE = re.compile(
    r"^(?:.{0,40}\b(?i:error|failed|exception)\b.{0,60}?: )?"
    rf"(?P<message>(?:{'|'.join(f'(?P<{name}>{form})' for name, form in _MESSAGES.items())}).*)"
)
# A frame of a traceback: as Python, IPython (two forms), and rich write it.
_FRAME = re.compile(
    r"""^[\s│❱]*(?:(?:File )?"?(?P<path>(?!<frozen)[^\s"]+\.py)"?(?:, line \d+|:\d+| in )"""
    r"""|Cell In|<ipython|File <(?!frozen))"""
)
_RAISE = re.compile(r"^[\s│❱\d>-]*raise [A-Z]")
_SUBSCRIPT = re.compile(r"^(?:-+> ?\d+ |[│ ]*❱ *\d+ | {4}(?! *\d+ ))[^\n]*\w\[")
_PACKAGE = re.compile(r"(?:site|dist)-packages/(\w+)")


class Program(enum.Enum):
    """What wrote a log: its settings have their own names in each."""

    COLABLOCK = enum.auto()  # a run of it
    AXOLOTL = enum.auto()
    OTHER = enum.auto()  # a script, mostly with transformers and trl


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Something to do; *unless* and *for_hub* say when it does not help.

    *text* is for a run of colablock, *foreign* for other programs and *axolotl* for axolotl; None is the
    same as the one before.
    """

    text: str
    foreign: str | None = None
    axolotl: str | None = None
    unless: Mapping[str, Any] = field(default_factory=dict)
    for_hub: bool = False

    def said_of(self, program: Program) -> str:
        """Return the text in the words of *program*; "" if there is nothing to do in it."""
        if program is Program.AXOLOTL and self.axolotl is not None:
            return self.axolotl
        is_own = program is Program.COLABLOCK or self.foreign is None
        return self.text if is_own else self.foreign or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """A sentence with the named groups of *pattern*, for its first match or for each."""

    pattern: re.Pattern[str]
    text: str
    is_each: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Framed:
    """A pattern that applies if *frame* matches the path of the code that raised the exception."""

    pattern: re.Pattern[str]
    frame: re.Pattern[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One known cause; *first*, *pattern*, *general* and *whole* are None if it is not recognised by text.

    *first* comes before the *pattern* of every cause.  *general* and *framed* count only in messages of
    errors for which no *pattern* is found.
    """

    name: str
    means: str
    first: re.Pattern[str] | None = None
    pattern: re.Pattern[str] | None = None
    general: re.Pattern[str] | None = None
    whole: re.Pattern[str] | None = None
    framed: tuple[Framed, ...] = ()
    signal: int | None = None
    advice: tuple[Advice, ...] = ()
    details: tuple[Detail, ...] = ()
    is_consequence: bool = False
    is_in_log: bool = False
    look_up: str = ""  # "disk", "memory", "kills" or "shared-memory"
    packages: tuple[str, ...] = ()  # the distributions that matter, the one at fault first


@cache
def known_causes() -> tuple[Cause, ...]:
    """Return every known cause, in the order in which they are matched."""
    table = tomllib.loads(_TABLE.read_text(encoding="utf-8"))
    shared = {f"@{name}": _advice(value) for name, value in table["shared"].items()}
    return tuple(_cause(value, shared, table["names"]) for value in table["cause"])


def cause_in(text: str, *, is_log: bool = False) -> Cause | None:
    """Return the first cause whose pattern matches *text*: exception messages or, with *is_log*, a log."""
    text = "\n".join(without_prose(shortened(text).splitlines()))
    causes = [one for one in known_causes() if one.is_in_log or not is_log]
    for patterns in ([one.first for one in causes], [one.pattern for one in causes]):
        for one, pattern in zip(causes, patterns, strict=True):
            if pattern is not None and pattern.search(text):
                return one
    return None


def general_cause_in(text: str, trace: str = "") -> Cause | None:
    """Return the first cause that an error in *text* proves in general; *trace* has the lines of its code.

    It is for errors for which `cause_in` knows nothing more special.
    """
    stated = _stated_errors(shortened(text))
    if not stated:
        return None
    for one in known_causes():
        if one.general is not None and one.general.search(stated):
            return one
        if any(
            rule.pattern.search(stated) and rule.frame.search(_raising_frame(trace, rule.pattern))
            for rule in one.framed
        ):
            return one
    return None


def without_prose(lines: Sequence[str]) -> list[str]:
    """Return the *lines* of a log that can state an error: not those that speak, quote, or are dealt with."""
    return [
        line
        for line, after in zip_longest(lines, lines[1:], fillvalue="")
        if not (_PROSE.match(line) or _DEALT_WITH.match(after))
    ]


def shortened(text: str) -> str:
    """Return *text* with words, dotted names and lines cut to a length that messages have."""
    return _LONG_WORD.sub(r"\1", _LONG_LINE.sub(r"\1", text))


def raising_package(trace: str, pattern: re.Pattern[str]) -> str:
    """Return the installed package whose code raised the exception that *pattern* matches; "" if unknown."""
    found = _PACKAGE.search(_raising_frame(trace, pattern))
    return found[1] if found else ""


def _raising_frame(trace: str, pattern: re.Pattern[str]) -> str:
    """Return the path of the last frame before the line that *pattern* matches; "" if there is none.

    If that code raises the exception by itself, a line ``raise`` follows; if it looks something up
    with brackets, a line ``subscript``.
    """
    path: str | None = None  # IPython names the exception also before the first frame
    raises = ""
    for line in trace.splitlines():
        frame = _FRAME.match(line)
        if frame:
            path, raises = frame["path"] or "", ""
        elif path is not None and pattern.search(line):
            return path + raises
        elif _RAISE.match(line):
            raises = "\nraise"
        elif not raises and _SUBSCRIPT.match(line):
            raises = "\nsubscript"
    return ""


def _stated_errors(text: str) -> str:
    """Return the lines of *text* that state an error, each with what follows up to an empty line.

    An exception begins with its class, whatever a log wrote before it.
    """
    kept, is_error = [], False
    for line in without_prose(text.splitlines()):
        plain = _as_exception(line.strip())
        is_error = bool(plain) and (is_error or bool(_ERROR_LINE.match(plain)))
        if _FOREIGN.match(plain) or (_NO_ERROR_LINE.search(line) and not _BEGINS_WITH_CLASS.match(plain)):
            is_error = False
        if is_error:
            kept.append(plain)
    return "\n".join(kept)


def _as_exception(line: str) -> str:
    """Return *line* as Python writes an exception, if it quotes one; else as it is."""
    if _BEGINS_WITH_CLASS.match(line) or _NO_ERROR_LINE.search(line):
        return line
    found = _AFTER_PREFIX.match(line)
    if found:
        return f"{found['name']}: {found['message']}"
    message = _MESSAGE.match(line)
    if message:
        name = next(name for name in _MESSAGES if message[name])
        return f"{name}: {message['message']}"
    return line


def cause_of_signal(number: int) -> Cause | None:
    """Return the cause for a process that was ended by the signal *number*."""
    return next((one for one in known_causes() if one.signal == number), None)


def named_cause(name: str) -> Cause:
    """Return the cause with the name *name*."""
    return next(one for one in known_causes() if one.name == name)


def _cause(value: Mapping[str, Any], shared: Mapping[str, Advice], names: Mapping[str, str]) -> Cause:
    general = value.get("general", ())
    return Cause(
        name=value["name"],
        means=value["means"],
        first=_any_of(value.get("first", ()), names),
        pattern=_any_of(value.get("patterns", ()), names),
        general=_any_of([one for one in general if isinstance(one, str)], names),
        whole=_any_of(value.get("whole", ()), names),
        framed=tuple(
            Framed(pattern=_regex(one["pattern"], names), frame=_regex(one["frame"], names))
            for one in general
            if not isinstance(one, str)
        ),
        signal=value.get("signal"),
        advice=tuple(
            shared[one] if isinstance(one, str) and one.startswith("@") else _advice(one)
            for one in value.get("advice", ())
        ),
        details=tuple(
            Detail(
                pattern=re.compile(one["pattern"], re.DOTALL),
                text=one["text"],
                is_each=one.get("each", False),
            )
            for one in value.get("details", ())
        ),
        is_consequence=value.get("consequence", False),
        is_in_log=value.get("log", False),
        look_up=value.get("look-up", ""),
        packages=tuple(value.get("packages", ())),
    )


def _any_of(patterns: Sequence[str], names: Mapping[str, str]) -> re.Pattern[str] | None:
    text = "|".join(f"(?:{one})" for one in patterns)
    return _regex(text, names) if text else None


def _regex(text: str, names: Mapping[str, str]) -> re.Pattern[str]:
    for name, value in names.items():
        text = text.replace(f"<{name}>", value)
    return re.compile(text, re.MULTILINE)


def _advice(value: Any) -> Advice:
    if isinstance(value, str):
        return Advice(text=value)
    axolotl = value.get("axolotl")
    return Advice(
        text=value["text"],
        foreign=value.get("foreign"),
        axolotl=_in_config(value["text"]) if axolotl is True else axolotl,
        unless=value.get("unless", {}),
        for_hub=value.get("for-hub", False),
    )


def _in_config(text: str) -> str:
    """Return *text* with the keys of a config of axolotl in the place of colablock's options."""
    for option, key in _KEYS.items():
        text = text.replace(f"`{option}`", f"`{key}`")
    return text
