"""Messages of a conversation, and the texts that chat templates make of them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "THINKING",
    "Conversation",
    "Message",
    "NotJson",
    "UnusableData",
    "called",
    "forms_of",
    "is_thoughtful",
    "misspelt",
    "names_of_calls",
    "parsed_json",
    "thinking_of",
]

Message = Mapping[str, Any]

_LIKENESS = 0.75  # of a name to the one that it may mean

THINKING = ("reasoning_content", "reasoning", "thinking", "thought")  # keys of a message
_OPENS_THINKING = ("<think>", "<thinking>", "[THINK]", "<|channel>thought", "<|channel|>analysis")
_CLOSES_THINKING = ("</think>", "</thinking>", "[/THINK]", "<channel|>", "<|message|>")


class UnusableData(Exception):
    """The data cannot be trained on.  The message says why and what to do."""


class NotJson(Exception):
    """A text is not JSON, or more than Python reads.

    *line* and *column* are from 1, or 0 if not known; *is_at_end* says that the text ends there.
    """

    def __init__(self, reason: str, line: int = 0, column: int = 0, *, is_at_end: bool = False) -> None:
        super().__init__(reason)
        self.line, self.column, self.is_at_end = line, column, is_at_end


def parsed_json(text: str) -> Any:
    """Return the value of *text*.  Raises NotJson, and no other exception."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        # Of a text that is cut short, Python's position is after the line feed: on a line that is not there.
        end = len(text.rstrip())
        at = min(error.pos, end)
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        raise NotJson(error.msg, line, column, is_at_end=at == end) from error
    except RecursionError as error:
        raise NotJson("it is nested too deeply") from error
    except ValueError as error:  # `sys.get_int_max_str_digits`
        raise NotJson("a number has too many digits") from error


def misspelt(names: Collection[object], known: Iterable[str]) -> str:
    """Return which of *known* the others of *names* may mean, to be added to a message; or nothing."""
    keys = list(known)
    found = []
    for name in names:
        if isinstance(name, str) and name not in keys:
            near = difflib.get_close_matches(name.strip().lower(), keys, n=1, cutoff=_LIKENESS)
            found += [f"`{near[0]}`, not `{name}`"] if near and near[0] not in names else []
    return f": did you mean {' and '.join(found)}?" if found else ""


@dataclass(frozen=True)
class Conversation:
    """The messages of a row, whether each is learnt, and what else the template gets.

    *learnt* has True for a message that is learnt, False for one that is not.  *kept_out* has the
    indices of those that the data itself excludes; they are not learnt with `train_on_inputs` either.
    """

    messages: Sequence[Message]
    learnt: Sequence[bool]
    kept_out: frozenset[int] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)

    def until(self, end: int) -> Conversation:
        """Return the conversation up to the message *end*, which is the only one that is learnt."""
        learnt = [at == end for at in range(end + 1)]
        return Conversation(self.messages[: end + 1], learnt, frozenset(), self.options)

    def with_message(self, at: int, message: Message) -> list[Message]:
        return [*self.messages[:at], message, *self.messages[at + 1 :]]


def thinking_of(message: Message) -> str:
    """Return the thinking in *message*, in a key of its own or in its content; empty if it has none."""
    for key in THINKING:
        if isinstance(message.get(key), str) and message[key].strip():
            return str(message[key]).strip()
    content = message.get("content")
    if isinstance(content, str) and message.get("role") == "assistant":
        for close in _CLOSES_THINKING:
            if close in content:
                text = content.rpartition(close)[0]
                for mark in _OPENS_THINKING:
                    text = text.rpartition(mark)[2]
                return text.strip()
    return ""


def is_thoughtful(message: Message) -> bool:
    """Whether *message* has thinking, also an empty one."""
    if any(message.get(key) for key in THINKING):
        return True
    content = message.get("content")
    if not isinstance(content, str) or message.get("role") != "assistant":
        return False
    return any(mark in content for mark in (*_OPENS_THINKING, *_CLOSES_THINKING))


def forms_of(message: Message) -> list[str]:
    """Return the texts that templates make of a message's content, the most faithful first."""
    content = message.get("content")
    if not isinstance(content, str):
        return [""]
    found = [content, content.strip(), content.rstrip(), content.lstrip()]
    if is_thoughtful(message):
        for close in _CLOSES_THINKING:
            answer = content.rpartition(close)[2]
            found += [answer, answer.lstrip("\n"), answer.strip()]
    return list(dict.fromkeys(found))


def called(message: Message, *, as_text: bool, as_null: bool) -> Message:
    """Return *message* with the arguments of its tool calls as JSON text, or null for an empty content."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    if as_null and not message.get("content"):
        message = {**message, "content": None}
    if not as_text:
        return message
    changed = []
    for call in calls:
        text = json.dumps(call["function"].get("arguments"), ensure_ascii=False)
        changed.append({**call, "function": {**call["function"], "arguments": text}})
    return {**message, "tool_calls": changed}


def names_of_calls(message: Message) -> list[str]:
    """Return the names of the functions that *message* calls."""
    calls = message.get("tool_calls") or []
    return [str(call["function"]["name"]) for call in calls]
