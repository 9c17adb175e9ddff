"""Read the rows of the usual datasets: their form, their messages, and what else means something.

Forms: ``text``, ``prompt`` and ``completion`` (texts, or messages as in trl), Alpaca's ``instruction``,
``input``, ``output``, ``system`` and ``history``, lists of messages with ``role`` and ``content``
(OpenAI) or ``from`` and ``value`` (ShareGPT), and axolotl's ``segments`` with ``text`` and ``label``.
"""

from __future__ import annotations

import ast
import datetime as dt
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

from colablock.training.scripts.rows.messages import (
    THINKING,
    Conversation,
    NotJson,
    UnusableData,
    misspelt,
    parsed_json,
)

Row = Mapping[str, Any]

MESSAGES = ("messages", "conversations", "conversation")
ROLE_KEYS = ("role", "from")  # of a message
CONTENT_KEYS = ("content", "value")
FORMS = {
    "completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "input_output": ("segments",),
    "text": ("text",),
}
# The columns that each form uses besides those that it needs.
USED = {
    "messages": ("tools", "functions", "system", "chat_template_kwargs"),
    "completion": ("tools", "functions", "chat_template_kwargs"),
    "alpaca": ("input", "system", "history"),
    "input_output": (),
    "text": (),
}
_NAMES = tuple(dict.fromkeys((*MESSAGES, *chain(*FORMS.values()), *chain(*USED.values()))))
_PREFERENCES = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))
_NO_USE = frozenset({"id", "idx", "index", "uuid", "_id", "__index_level_0__", "Unnamed: 0", ""})
# The prompts of the Stanford Alpaca project, as in axolotl.
_PREAMBLE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
_PREAMBLE_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)

ROLES = dict.fromkeys(
    ("assistant", "gpt", "chatgpt", "bot", "chatbot", "ai", "model", "bing", "bard"), "assistant"
) | {
    "user": "user",
    "human": "user",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
_CALLS = frozenset({"function_call", "tool_call"})
WEIGHTS = ("weight", "train", "training")  # columns of a row, and keys of a message
_LARGEST_TEXT = 1 << 20  # characters of a list that stands as text in a cell


class Missing(str):
    """A cell of a table that has no value: empty, or one of the marks for that, such as ``NA``."""

    __slots__ = ()


@dataclass(frozen=True)
class Place:
    """A row of a source, for messages."""

    number: int  # from 1
    source: str

    def __str__(self) -> str:
        return f"row {self.number} of `{self.source}`"

    def fault(self, what: str) -> UnusableData:
        return UnusableData(f"{self}: {what}")


def form_of(columns: Sequence[str], path: str) -> str:
    """Return the form of a dataset by its columns.  Raises UnusableData."""
    if any(name in columns for name in MESSAGES):
        return "messages"
    for form, needed in FORMS.items():
        if all(name in columns for name in needed):
            return form
    shown = ", ".join(f"`{name}`" for name in columns)
    if any(set(pair) <= set(columns) for pair in _PREFERENCES):
        raise UnusableData(
            f"`{path}` has preferences (columns {shown}), and this is not training on preferences: "
            "to learn the preferred answers, write them as `prompt` and `completion`, or as `messages`"
        )
    raise UnusableData(
        f"the columns of `{path}` ({shown}) match no format: `text`; `prompt` and `completion`; "
        f"`messages` or `conversations`; `instruction` and `output`; `segments`{misspelt(columns, _NAMES)}"
    )


def unused_columns(columns: Sequence[str], form: str) -> list[str]:
    """Return the columns that are not used, without those that only number the rows."""
    used = {*FORMS.get(form, ()), *USED[form]}
    if form == "messages":
        used.add(next((name for name in MESSAGES if name in columns), "messages"))
    return [name for name in columns if name not in used and name not in _NO_USE]


def described(value: object) -> str:
    """Return what *value* is instead of a text."""
    if value is None:
        return "it is `null`"
    if isinstance(value, Missing):
        return f"it is `{value}`, which stands for a missing value" if value else "the cell is empty"
    if isinstance(value, bool):
        return f"it is `{str(value).lower()}`, not text"
    if isinstance(value, float) and value != value:  # noqa: PLR0124 (NaN)
        return "it is `NaN`, which stands for a missing value"
    if isinstance(value, (int, float)):
        return f"it is the number {value}, not text"
    if isinstance(value, (dt.date, dt.time)):
        return f"it is the date {value}, not text"
    if isinstance(value, Mapping):
        return "it is an object, not text"
    if isinstance(value, (list, tuple)):
        return "it is a list, not text"
    return f"it is of type {type(value).__name__}, not text"


def text_of(row: Row, key: str, place: Place) -> str:
    """Return the text in a column.  Raises UnusableData."""
    value = row.get(key)
    if isinstance(value, str) and not isinstance(value, Missing):
        return value
    there = ", ".join(f"`{other}`" for other, text in row.items() if isinstance(text, str))
    absent = (
        f"it is not there, and this row has {there}{misspelt(row, (key,))}" if there else "it is not there"
    )
    raise UnusableData(f"{place} has no text in `{key}`: {described(value) if key in row else absent}")


def optional_text(row: Row, key: str, place: Place) -> str:
    """Return the text in a column, empty if it has no value.  Raises UnusableData for other values."""
    if not row.get(key) or (isinstance(row[key], Missing) and key != "instruction"):
        return ""
    return text_of(row, key, place)


# Alpaca


def alpaca_prompt(instruction: str, more: str = "", system: str = "", *, is_first: bool = True) -> str:
    """Return the prompt of an instruction.  *system* replaces the preamble, which only the first has."""
    preamble = system or (_PREAMBLE_INPUT if more else _PREAMBLE)
    text = f"{preamble}\n\n" if is_first else "\n\n"
    text += f"### Instruction:\n{instruction}\n\n"
    if more:
        text += f"### Input:\n{more}\n\n"
    return f"{text}### Response:\n"


def alpaca_turns(row: Row, place: Place) -> Iterator[tuple[str, str]]:
    """Yield each prompt of the row with its answer: those of `history`, then its own."""
    system = optional_text(row, "system", place)
    is_first = True
    for pair in _list_of(row.get("history"), "history", place):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(x, str) for x in pair):  # noqa: PLR2004
            raise place.fault("`history` must be a list of pairs of texts, an instruction and its answer")
        yield alpaca_prompt(pair[0], "", system, is_first=is_first), pair[1]
        is_first = False
    more = optional_text(row, "input", place)
    instruction = optional_text(row, "instruction", place)
    yield alpaca_prompt(instruction, more, system, is_first=is_first), text_of(row, "output", place)


# Segments


def segments_of(row: Row, place: Place) -> Iterator[tuple[str, bool]]:
    """Yield each text of the row, and whether it is learnt.  Raises UnusableData."""
    for at, one in enumerate(_list_of(row.get("segments"), "segments", place, required=True), 1):
        if not isinstance(one, Mapping):
            raise place.fault(f"segment {at} must be an object with `text` and `label`")
        label, text = one.get("label"), one.get("text")
        if not isinstance(text, str) or isinstance(text, Missing):
            cause = described(text) if "text" in one else "it is not there"
            raise place.fault(f"segment {at} has no text in `text`: {cause}")
        if label not in (True, False):  # 0 and 1 too
            shown = f"is {label!r}" if "label" in one else "is not there"
            raise place.fault(f"`label` of segment {at} must be true or false, but {shown}")
        yield text, bool(label)


# Messages


def is_conversational(row: Row) -> bool:
    """Whether `prompt` or `completion` has messages, as in trl."""
    return any(isinstance(row.get(key), (list, tuple, dict)) for key in ("prompt", "completion"))


def conversation_of(row: Row, form: str, place: Place, template: str) -> Conversation:
    """Return the messages of a row.  Raises UnusableData.

    Learnt are the messages of the assistant, with a prompt and its completion those of the completion,
    unless a message has a weight.  A role that is not known may be one of the *template*.
    """
    if form == "completion":
        given = _side(row, "prompt", "user", place)
        answer = _side(row, "completion", "assistant", place)
        messages, first = [*given, *answer], len(given)
    else:
        key = next((name for name in MESSAGES if name in row), None)
        if key is None:
            raise place.fault(f"it has no `messages`{misspelt(row, MESSAGES)}")
        messages, first = _list_of(row.get(key), key, place, required=True), 0
    roles: list[str] = []
    read = [_Message(one, at, place, template).read(roles) for at, one in enumerate(messages, 1)]
    unknown = [role for role in dict.fromkeys(roles) if role]
    if unknown:
        seen = ", ".join(f"`{role}`" for role in unknown)
        which = f"the roles {seen} are" if len(unknown) > 1 else f"the role {seen} is"
        meant = misspelt(unknown, ("system", "user", "assistant", "tool"))
        raise place.fault(f"{which} not known: use `system`, `user`, `assistant` and `tool`{meant}")
    learnt, kept_out = [], set()
    for at, (message, weight) in enumerate(read):
        learnt.append(message["role"] == "assistant" and at >= first if weight is None else weight)
        if weight is False:
            kept_out.add(at)
    found = [message for message, _ in read]
    options = dict(_options_of(row, place))
    system = optional_text(row, "system", place) if form == "messages" else ""
    if system and (not found or found[0]["role"] not in ("system", "developer")):
        found, learnt = [{"role": "system", "content": system}, *found], [False, *learnt]
        kept_out = {at + 1 for at in kept_out}
    return Conversation(found, learnt, frozenset(kept_out), options)


def _side(row: Row, key: str, role: str, place: Place) -> list[Any]:
    value = row.get(key)
    if isinstance(value, Mapping):
        return [value]
    if isinstance(value, (list, tuple)):
        return list(value)
    return [{"role": role, "content": text_of(row, key, place)}]


def _list_of(value: object, key: str, place: Place, *, required: bool = False) -> list[Any]:
    """Return a list, which may stand as text in a cell."""
    if isinstance(value, str) and value.strip()[:1] == "[" and len(value) <= _LARGEST_TEXT:
        value = _parsed(value)
    if isinstance(value, Mapping) and value and all(isinstance(one, list) for one in value.values()):
        # Older releases of `datasets` store a list of objects as an object of lists.
        lengths = {len(one) for one in value.values()}
        if len(lengths) == 1:
            return [dict(zip(value, row)) for row in zip(*value.values())]  # noqa: B905 (Python 3.9)
    if isinstance(value, (list, tuple)):
        return list(value)
    if not required and (value is None or isinstance(value, Missing) or value == ""):
        return []
    cause = described(value).replace(", not text", "") if not isinstance(value, str) else "it is text"
    if isinstance(value, Missing):
        cause = described(value)
    raise place.fault(f"`{key}` must be a list, but {cause}")


def _parsed(text: str) -> object:
    """Return the value of JSON, or of Python's notation, which pandas writes to tables; else the text."""
    try:
        return parsed_json(text)
    except NotJson:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def _options_of(row: Row, place: Place) -> Iterator[tuple[str, Any]]:
    """Yield what a template gets besides the messages: the tools, and keywords of its own."""
    tools = _list_of(row.get("tools"), "tools", place)
    if not tools:
        functions = _list_of(row.get("functions"), "functions", place)
        tools = [{"type": "function", "function": one} for one in functions]
    if tools:
        if not all(isinstance(one, Mapping) for one in tools):
            raise place.fault("`tools` must be a list of objects")
        yield "tools", tools
    keywords = row.get("chat_template_kwargs")
    if isinstance(keywords, str):
        keywords = _parsed(keywords)
    if isinstance(keywords, Mapping):
        known = {"tokenize", "add_generation_prompt", "tools", "chat_template"}
        yield from ((str(key), value) for key, value in keywords.items() if key not in known)


@lru_cache(maxsize=256)
def _has_role(template: str, role: str, *, is_known: bool) -> bool:
    """Whether *template* has a case for *role*.

    It compares the role with the word, or with a list of words.  For a role that we do not know, it is
    enough that the word is in quotes: the word may be a key of a table.
    """
    word = rf"""(?P<quote>["']){re.escape(role)}(?P=quote)"""
    if not is_known:
        return re.search(word, template) is not None
    before = r"""\brole\b["']?(?:[\s\])]|\|\s*\w+)*"""
    after = r"""[\w.\["']*\brole\b"""
    listed = r"""[\[(](?:\s*["'][^"']*["']\s*,)*\s*"""
    return bool(
        re.search(rf"{before}(?:==|!=|\bis\s+(?:eq|equalto))\s*{word}", template)
        or re.search(rf"{before}(?:not\s+)?in\s*{listed}{word}", template)
        or re.search(rf"{word}\s*(?:==|!=)\s*{after}", template)
    )


@dataclass(frozen=True)
class _Message:
    """A message of a row, with its number from 1."""

    value: Any
    number: int
    place: Place
    template: str

    def fault(self, what: str) -> UnusableData:
        return self.place.fault(f"message {self.number} {what}")

    def read(self, unknown: list[str]) -> tuple[dict[str, Any], bool | None]:
        """Return the message as templates expect it, and whether its weight says that it is learnt.

        A role that is not known is added to *unknown*.
        """
        if not isinstance(self.value, Mapping):
            raise self.fault(f"must be an object, but {described(self.value).replace(', not text', '')}")
        value = {key: one for key, one in self.value.items() if one is not None}
        role_key = next((key for key in ROLE_KEYS if key in value), None)
        if role_key is None or not isinstance(value[role_key], str):
            shown = ", ".join(f"`{key}`" for key in self.value)
            meant = misspelt(self.value, (*ROLE_KEYS, *CONTENT_KEYS))
            raise self.fault(f"has no role: its keys are {shown}, and `role` and `content` are needed{meant}")
        given = value.pop(role_key)
        weight = self._weight(value)
        role = self._role(given)
        if role is None:
            unknown.append(given)
            return {"role": given, "content": ""}, weight
        calls = self._calls(value, given)
        message: dict[str, Any] = {"role": role, "content": self._content(value, role, has_calls=bool(calls))}
        if given in _CALLS and calls:
            message["content"] = ""
        more = {key: one for key, one in value.items() if key not in (*CONTENT_KEYS, "tool_calls")}
        if calls:
            message["tool_calls"] = calls
            more.pop("function_call", None)
        return self._with_thinking({**message, **more}), weight

    def _with_thinking(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return *message* with its thinking under the key that the template reads, if it reads another."""
        known = [key for key in THINKING if re.search(rf"\b{key}\b", self.template)]
        given = next((key for key in THINKING if message.get(key)), None)
        if given is None or given in known or not known:
            return message
        return {known[0] if key == given else key: value for key, value in message.items()}

    def _role(self, given: str) -> str | None:
        known = ROLES.get(given.strip().lower())
        if _has_role(self.template, given, is_known=known is not None):
            return "assistant" if given == "model" else given
        return known

    def _weight(self, value: dict[str, Any]) -> bool | None:
        """Return whether the message is learnt by its weight; None if it has none."""
        for key in WEIGHTS:
            if key in value:
                weight = value.pop(key)
                if weight not in (0, 1):
                    raise self.fault(f"has the {key} {weight!r}, which must be 0 or 1")
                return bool(weight)
        return None

    def _content(self, value: Mapping[str, Any], role: str, *, has_calls: bool) -> str:
        key = next((key for key in CONTENT_KEYS if key in value), None)
        if key is None:
            if has_calls:
                return ""
            given = next((key for key in CONTENT_KEYS if key in self.value), None)
            raise self.fault(
                f"(`{role}`) has no text in `{given}`: it is `null`"
                if given
                else f"(`{role}`) has no `content`{misspelt(self.value, CONTENT_KEYS)}"
            )
        content = value[key]
        if isinstance(content, str):
            return content
        if not isinstance(content, (list, tuple)):
            if role == "tool" and isinstance(content, Mapping):  # the result of a call
                return json.dumps(content, ensure_ascii=False)
            raise self.fault(f"(`{role}`) has no text in `{key}`: {described(content)}")
        return "".join(self._part(part) for part in content)

    def _part(self, part: object) -> str:
        if isinstance(part, str):
            return part
        if isinstance(part, Mapping) and isinstance(part.get("text"), str):
            kind = part.get("type", "text")
            if kind in ("text", "input_text", "output_text"):
                return str(part["text"])
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise self.fault(f"has a part of type `{kind}`, and only text can be trained on")

    def _calls(self, value: Mapping[str, Any], role: str) -> list[dict[str, Any]]:
        calls = value.get("tool_calls") or []
        if isinstance(calls, str):
            calls = _parsed(calls)
        if not calls and isinstance(value.get("function_call"), Mapping):
            calls = [{"type": "function", "function": value["function_call"]}]
        if not calls and role in _CALLS:
            text = next((value[key] for key in CONTENT_KEYS if isinstance(value.get(key), str)), "")
            call = _parsed(text)
            if isinstance(call, Mapping) and "name" in call:
                calls = [{"type": "function", "function": call}]
        if not isinstance(calls, (list, tuple)):
            raise self.fault("has `tool_calls` that are no list")
        return [self._call(call) for call in calls]

    def _call(self, call: object) -> dict[str, Any]:
        """Return a call with its arguments as an object, which templates write as JSON themselves."""
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(call, Mapping) or not isinstance(function, Mapping) or "name" not in function:
            raise self.fault("has a tool call without a `function` and its `name`")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = parsed_json(arguments) if arguments.strip() else {}
            except NotJson as error:
                raise self.fault(
                    f"has a call of `{function['name']}` whose arguments are not JSON: {error}"
                ) from error
        changed = {**function, "arguments": {} if arguments is None else arguments}
        return {**(call if "function" in call else {}), "type": "function", "function": changed}
