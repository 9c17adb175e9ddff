"""Find the tokens of a conversation that the loss includes.

A chat template may rewrite earlier turns when a turn is added: it drops their thinking, trims their
text, or merges roles.  Therefore the whole conversation is rendered once, and the learnt text is
located in it: by the template's own ``{% generation %}`` blocks, or else by rendering the conversation
again with a mark in place of each answer.  A location counts only if putting the answers back in place
of the marks gives the very same text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from colablock.training.scripts.rows.messages import (
    Conversation,
    Message,
    called,
    forms_of,
    is_thoughtful,
    names_of_calls,
    thinking_of,
)
from colablock.training.scripts.rows.tokens import Span, spans_between

__all__ = ["Rendered", "TemplateFault", "TurnFinder"]

_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
_PIECE = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]{2,40}\]|\s+|\S", re.DOTALL)
_END = re.compile(r"<[^<>\s]*(?:end|eot|eos|eom|return)[^<>\s]*>", re.IGNORECASE)
_LEAST = 8  # characters of a text that is looked for in others


class TemplateFault(Exception):
    """The chat template does not take a conversation, or its answers cannot be found in the text."""


@dataclass(frozen=True)
class Rendered:
    """A text, and the sorted ranges of it that the loss includes.

    *thinks* is whether a learnt range has the thinking of the data, *forgot* whether the template left
    thinking out, *ending* the text that ends the last learnt turn, None if that is unknown.
    """

    text: str
    spans: Sequence[Span]
    thinks: bool = False
    forgot: bool = False
    ending: str | None = None


def common_start(one: str, other: str) -> int:
    """Return the length of the longest common start."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def common_end(one: str, other: str) -> int:
    """Return the length of the longest common end."""
    return common_start(one[::-1], other[::-1])


def common_pieces(one: str, other: str) -> int:
    """Return the length of the longest common start that cuts no mark such as ``<|end|>`` in two."""
    length = 0
    others = _PIECE.finditer(other)
    for first in _PIECE.finditer(one):
        second = next(others, None)
        if second is None or first[0] != second[0]:
            # Of white space the common part counts.
            if second is not None and first[0].isspace() and second[0].isspace():
                length += common_start(first[0], second[0])
            break
        length = first.end()
    return length


class TurnFinder:
    """Renders conversations with the chat template of *tokenizer*, and locates what is learnt in them."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        template = getattr(tokenizer, "chat_template", None)
        self.template = template if isinstance(template, str) else ""
        self._marked_template = _with_marks(self.template)
        self._endings: dict[bool, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"tokenizer": self._tokenizer}  # `datasets` hashes the state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["tokenizer"])  # type: ignore[misc]

    # Rendering

    def render(
        self, messages: Sequence[Message], options: Mapping[str, Any], *, prompts: bool = False
    ) -> str:
        """Return *messages* as the template writes them.  Raises TemplateFault."""
        if not messages:
            return ""
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tokenize=False,
                    add_generation_prompt=prompts,
                    **options,
                )
            )
        except Exception as error:
            raise TemplateFault(_fault_of(error)) from error

    def _attempt(self, messages: Sequence[Message], conversation: Conversation, **more: Any) -> str | None:
        """Return *messages* with the options of *conversation* rendered, or None if the template refuses."""
        try:
            return self.render(messages, {**conversation.options, **more})
        except TemplateFault:
            return None

    def ignores_tools(self, conversation: Conversation) -> bool:
        """Whether the template writes the same text without the tools of *conversation*."""
        without = {key: value for key, value in conversation.options.items() if key != "tools"}
        return self._attempt(conversation.messages, conversation) == self._attempt(
            conversation.messages, Conversation((), (), frozenset(), without)
        )

    # Locating

    def rows(self, conversation: Conversation, *, whole: bool = False) -> Iterator[Rendered]:
        """Yield the conversation as one text or, if not all answers can be found in it, a text for each.

        With *whole*, all of the text is learnt except the messages that the data excludes.  Raises
        TemplateFault if an answer can be found in neither.
        """
        conversation, text = self._taken(conversation)
        if whole:
            spans: Sequence[Span] = [(0, len(text))]
            if conversation.kept_out:
                excluded = [at in conversation.kept_out for at in range(len(conversation.messages))]
                told = Conversation(conversation.messages, excluded, frozenset(), conversation.options)
                spans = list(spans_between(self._located(told, text).spans, len(text)))
            yield Rendered(text, spans)
            return
        self._require_all(conversation, text)
        if not any(conversation.learnt):
            yield Rendered(text, [])
            return
        try:
            yield self._located(conversation, text)
        except TemplateFault:
            answers = [at for at, is_learnt in enumerate(conversation.learnt) if is_learnt]
            if answers == [len(conversation.messages) - 1]:
                raise
            parts = [conversation.until(at) for at in answers]
            yield from [self._located(*self._taken(part)) for part in parts]

    def _taken(self, conversation: Conversation) -> tuple[Conversation, str]:
        """Return the conversation in the form that the template takes, and its text.

        Most templates write the arguments of a tool call as JSON themselves, some expect text, and some
        write a call only if its message has no content.
        """
        calls = [name for message in conversation.messages for name in names_of_calls(message)]
        if not calls:
            return conversation, self.render(conversation.messages, conversation.options)
        fault: TemplateFault | None = None
        leaves_out = False
        for as_text, as_null in ((False, False), (True, False), (False, True), (True, True)):
            messages = [called(one, as_text=as_text, as_null=as_null) for one in conversation.messages]
            try:
                text = self.render(messages, conversation.options)
            except TemplateFault as error:
                fault = fault or error
                continue
            if all(name in text for name in calls):
                return replace(conversation, messages=messages), text
            leaves_out = True
        if leaves_out or fault is None:
            raise TemplateFault("the chat template leaves out the tool calls")
        raise fault

    def _located(self, conversation: Conversation, text: str) -> Rendered:
        """Return *text*, the rendered conversation, with the ranges of the messages that are learnt."""
        learnt = [at for at, is_learnt in enumerate(conversation.learnt) if is_learnt]
        spans = self._by_generation(conversation, text) or self._by_marks(conversation, text, learnt)
        if spans is None:
            spans = {}
            for at in learnt:
                found = self._by_difference(conversation, text, at) or self._after_prompt(
                    conversation, text, at
                )
                if found is None:
                    role = conversation.messages[at].get("role")
                    raise TemplateFault(
                        f"message {at + 1} (`{role}`) cannot be found in the text of the chat template"
                    )
                spans[at] = found
        ordered = [spans[at] for at in sorted(spans)]
        if any(first[1] > second[0] for first, second in zip(ordered, ordered[1:])):  # noqa: B905, RUF007
            raise TemplateFault("the chat template writes the messages in another order")
        return self._described(conversation, text, spans)

    def _described(self, conversation: Conversation, text: str, spans: Mapping[int, Span]) -> Rendered:
        thoughts = {
            at: thinking_of(conversation.messages[at])
            for at in spans
            if is_thoughtful(conversation.messages[at])
        }
        has = {at: thought in text[slice(*spans[at])] for at, thought in thoughts.items() if thought}
        return Rendered(
            text,
            [spans[at] for at in sorted(spans)],
            thinks=any(has.values()),
            forgot=not all(has.values()),
            ending=_ending(conversation.messages[max(spans)], text[slice(*spans[max(spans)])]),
        )

    def _require_all(self, conversation: Conversation, text: str) -> None:
        """Raise TemplateFault if the template leaves out a message."""
        for at, message in enumerate(conversation.messages):
            if conversation.learnt[at] or any(form in text for form in forms_of(message)):
                continue
            mark = _mark_for(text, at)
            marked = self._attempt(conversation.with_message(at, {**message, "content": mark}), conversation)
            if marked == text:
                raise TemplateFault(
                    f"the chat template leaves out message {at + 1} (`{message.get('role')}`)"
                )

    def _by_generation(self, conversation: Conversation, text: str) -> dict[int, Span] | None:
        """Return the ranges of the template's ``{% generation %}`` blocks, if it has one for each answer."""
        if not self._marked_template or conversation.kept_out:
            return None
        marked = self._attempt(conversation.messages, conversation, chat_template=self._marked_template)
        if marked is None:
            return None
        answers = [
            at for at, message in enumerate(conversation.messages) if message.get("role") == "assistant"
        ]
        opened = marked.split(_OPEN)
        spans, length = [], len(opened[0])
        for part in opened[1:]:
            inner, _, outer = part.partition(_CLOSE)
            spans.append((length, length + len(inner)))
            length += len(inner) + len(outer)
        if marked.replace(_OPEN, "").replace(_CLOSE, "") != text or len(spans) != len(answers):
            return None
        found = dict(zip(answers, spans))  # noqa: B905 (Python 3.9 has no strict)
        if any(not is_learnt for at, is_learnt in enumerate(conversation.learnt) if at in found):
            found = {at: span for at, span in found.items() if conversation.learnt[at]}
        if any(at not in found for at, is_learnt in enumerate(conversation.learnt) if is_learnt):
            return None
        fits = (
            any(form in text[slice(*span)] for form in forms_of(conversation.messages[at]))
            and all(name in text[slice(*span)] for name in names_of_calls(conversation.messages[at]))
            for at, span in found.items()
        )
        return found if all(fits) else None

    def _by_marks(
        self, conversation: Conversation, text: str, learnt: Sequence[int]
    ) -> dict[int, Span] | None:
        """Return the ranges of all messages in *learnt*, each marked in one rendering; None if that fails."""
        messages = list(conversation.messages)
        if any(is_thoughtful(messages[at]) or messages[at].get("tool_calls") for at in learnt):
            return None
        marks = {at: _mark_for(text, at) for at in learnt}
        for at, mark in marks.items():
            messages[at] = {**messages[at], "content": mark}
        marked = self._attempt(messages, conversation)
        if marked is None or any(marked.count(mark) != 1 for mark in marks.values()):
            return None
        parts = re.split("|".join(map(re.escape, marks.values())), marked)
        if [marked.index(mark) for mark in marks.values()] != sorted(map(marked.index, marks.values())):
            return None
        if not text.startswith(parts[0]):
            return None
        begin, spans = len(parts[0]), {}
        for number, at in enumerate(learnt):
            after, is_last = parts[number + 1], number + 1 == len(learnt)
            for form in forms_of(conversation.messages[at]):
                end = begin + len(form)
                if text.startswith(form, begin) and (
                    text[end:] == after if is_last else text.startswith(after, end)
                ):
                    break
            else:
                return None
            spans[at] = (begin, end)
            begin = end + len(after)
        return {at: (span[0], self._turn_end(conversation, text, at, span[1])) for at, span in spans.items()}

    def _by_difference(self, conversation: Conversation, text: str, at: int) -> Span | None:
        """Return the range of message *at*, where the text differs with a mark in its place, or None."""
        message = conversation.messages[at]
        mark = _mark_for(text, at)
        span = self._differing(conversation, text, at, mark)
        if span is None:
            return None
        begin, end = span
        region = text[begin:end]
        if not any(form in region for form in forms_of(message)):
            return None
        if any(name not in region for name in names_of_calls(message)):
            raise TemplateFault(
                f"the chat template leaves out the tool calls of message {at + 1}; its answer would be "
                "learnt without them"
            )
        own = repr(dict(message))
        others = (
            form
            for number, other in enumerate(conversation.messages)
            if number != at
            for form in forms_of(other)[:2]
        )
        if any(len(form) >= _LEAST and form in region and repr(form)[1:-1] not in own for form in others):
            return None
        thought = thinking_of(message)
        is_as_written = region in forms_of(message)[:4] and region in (message.get("content") or "")
        if is_thoughtful(message) and not is_as_written and (not thought or thought in region):
            begin = self._after_header(conversation, text, at, begin)
        return begin, self._turn_end(conversation, text, at, end)

    def _differing(self, conversation: Conversation, text: str, at: int, mark: str) -> Span | None:
        plain = {"role": conversation.messages[at].get("role"), "content": mark}
        for stand_in in (plain, {**conversation.messages[at], "content": mark}):
            marked = self._attempt(conversation.with_message(at, stand_in), conversation)
            if marked is None or marked.count(mark) != 1:
                continue
            begin = common_start(text, marked)
            same = common_end(text[begin:], marked[begin:])
            place = marked.index(mark)
            if begin <= place and len(marked) - same >= place + len(mark):
                return begin, len(text) - same
        return None

    def _after_header(self, conversation: Conversation, text: str, at: int, begin: int) -> int:
        """Return where the model begins to write the message: after the prompt of the template."""
        before = conversation.messages[:at]
        if not before:
            return begin
        plain = self._attempt(before, conversation)
        try:
            opened = self.render(before, conversation.options, prompts=True)
        except TemplateFault:
            return begin
        header = opened[common_start(opened, plain or "") :]
        ends = [piece.end() for piece in _PIECE.finditer(header)]
        for end in reversed(ends):
            place = text.rfind(header[:end], 0, begin)
            if place >= 0 and place + end <= begin:
                return place + end
        return begin

    def _after_prompt(self, conversation: Conversation, text: str, at: int) -> Span | None:
        """Return the range of the last message if the text goes on where the template's prompt ends."""
        if at != len(conversation.messages) - 1 or at == 0:
            return None
        try:
            opened = self.render(conversation.messages[:at], conversation.options, prompts=True)
        except TemplateFault:
            return None
        content = conversation.messages[at].get("content")
        rest = text[len(opened) :]
        has_content = not content or any(form in rest for form in forms_of(conversation.messages[at]))
        return (len(opened), len(text)) if text.startswith(opened) and rest and has_content else None

    def _turn_end(self, conversation: Conversation, text: str, at: int, end: int) -> int:
        """Return where the turn of message *at* ends, whose text ends at *end*.

        What follows a last message ends its turn.  Of an earlier one that counts which is the same.
        """
        rest = text[end:]
        if at == len(conversation.messages) - 1:
            return len(text)
        kind = bool(conversation.messages[at].get("tool_calls"))
        if not self._endings.get(kind):
            alike = [
                other
                for other, message in enumerate(conversation.messages)
                if message.get("role") == conversation.messages[at].get("role")
                and bool(message.get("tool_calls")) == kind
            ]
            endings = (self._ending_of(conversation.until(other)) for other in (at, *reversed(alike)))
            self._endings[kind] = next(filter(None, endings), "")
        length = common_pieces(rest, self._endings[kind])
        if not rest[:length].strip():
            marked = _END.match(rest, length)
            length = marked.end() if marked else length
        return end + length

    def _ending_of(self, conversation: Conversation) -> str:
        at = len(conversation.messages) - 1
        text = self._attempt(conversation.messages, conversation)
        span = self._differing(conversation, text, at, _mark_for(text, at)) if text is not None else None
        return text[span[1] :] if text is not None and span is not None else ""


def _ending(message: Message, learnt: str) -> str | None:
    """Return what follows the text of *message* in its *learnt* text."""
    if message.get("tool_calls"):
        return None
    ends = (learnt.rpartition(form)[2] for form in forms_of(message) if form and form in learnt)
    return next(ends, learnt if not message.get("content") else None)


# U+E000 and the following are for private use, and not white space, which templates trim.
_OPEN, _CLOSE = "\ue000", "\ue001"


def _mark_for(text: str, at: int) -> str:
    """Return a mark for message *at* that is not in *text*, and neither its first character nor its last."""
    number = 0xE010
    while chr(number) in text or chr(number + 1) in text:
        number += 2
    return f"{chr(number)}{at}{chr(number + 1)}"


def _with_marks(template: str) -> str:
    """Return *template* with marks written in place of its generation blocks; empty if it has none.

    The white space around a block is trimmed as before.
    """
    if not _GENERATION.search(template):
        return ""

    def marked(found: re.Match[str]) -> str:
        mark = _CLOSE if found[2] else _OPEN
        return f"{{%{found[1]} if true %}}{{{{ '{mark}' }}}}{{% endif {found[3]}%}}"

    return _GENERATION.sub(marked, template)


def _fault_of(error: Exception) -> str:
    """Return why a template could not be rendered, in one line."""
    kind, words = type(error).__name__, " ".join(str(error).split())[:300]
    if kind == "TemplateError":  # of `raise_exception` in the template
        return f"the chat template refuses it: {words}"
    if kind == "TemplateSyntaxError":
        return f"the chat template is not valid Jinja: {words} (line {getattr(error, 'lineno', '?')})"
    return f"the chat template fails with {kind}: {words}"
