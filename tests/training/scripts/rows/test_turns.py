"""What is learnt of a conversation: shapes of public chat templates, each with many conversations."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
import pytest
from jinja2.ext import Extension
from jinja2.nodes import CallBlock
from jinja2.sandbox import ImmutableSandboxedEnvironment

from colablock._common.toml import load_toml
from colablock.training.chat_templates import TEMPLATES
from colablock.training.scripts.rows.conversations import Place, conversation_of
from colablock.training.scripts.rows.messages import UnusableData
from colablock.training.scripts.rows.tokens import tokenised
from colablock.training.scripts.rows.turns import Rendered, TemplateFault, TurnFinder
from tests.support.paths import DATA

TABLE = load_toml((DATA / "chat_turns.toml").read_bytes())


class Generation(Extension):
    """The blocks that transformers adds to Jinja."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Any) -> str:
        return str(caller())


def refuse(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


@functools.cache
def compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(template)


class Jinja:
    """A tokenizer that renders as transformers does, with a token for each character."""

    is_fast = False

    def __init__(self, template: str) -> None:
        self.chat_template = template

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tokenize: bool,
        chat_template: str = "",
        **options: Any,
    ) -> str:
        assert not tokenize
        template = compiled(chat_template or self.chat_template)
        return template.render(messages=messages, bos_token="<s>", eos_token="</s>", **options)

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [ord(one) for one in text]}


def message(role: str, content: str, call: str | None = None) -> dict[str, Any]:
    if call is None:
        return {"role": role, "content": content}
    function = {"name": call, "arguments": '{"city": "Paris"}'}
    return {"role": role, "content": None, "tool_calls": [{"type": "function", "function": function}]}


CONVERSATIONS = {
    name: [message(*one) for one in messages] for name, messages in TABLE["conversations"].items()
}


def template_of(name: str) -> str:
    case = TABLE["templates"][name]
    return TEMPLATES[case["named"]] if "named" in case else str(case["text"])


def texts_of(
    template: str, row: Mapping[str, Any], *, whole: bool = False, form: str = "messages"
) -> list[Rendered]:
    finder = TurnFinder(Jinja(template))
    return list(finder.rows(conversation_of(row, form, Place(1, "d"), template), whole=whole))


def learnt_in(found: Sequence[Rendered]) -> list[list[str]]:
    """Return the learnt texts, decoded from the tokens that are learnt."""
    decoded = []
    for one in found:
        ids, learnt = tokenised(Jinja(""), one.text, one.spans)
        assert "".join(map(chr, ids)) == one.text
        decoded.append(list(parts(ids, learnt)))
    return decoded


def parts(ids: Sequence[int], learnt: Sequence[bool]) -> Iterator[str]:
    text = ""
    for token, is_learnt in zip(ids, learnt, strict=True):
        if is_learnt:
            text += chr(token)
        elif text:
            yield text
            text = ""
    if text:
        yield text


def expected(case: Mapping[str, Any], name: str) -> list[list[str]]:
    if name in case.get("learnt", {}):
        return list(case["learnt"][name])
    messages = CONVERSATIONS[name]
    ends = [case["end"]] * len(messages)
    ends[-1] = case.get("last", case["end"])
    pairs = zip(messages, ends, strict=True)
    return [[one["content"] + end for one, end in pairs if one["role"] == "assistant"]]


def outcome(template: str, row: Mapping[str, Any]) -> list[list[str]] | str:
    """Return what is learnt of *row*, or why it is refused."""
    try:
        return learnt_in(texts_of(template, row))
    except (TemplateFault, UnusableData) as fault:
        return str(fault)


@pytest.mark.parametrize("name", TABLE["templates"])
def test_the_answers_are_learnt_or_the_row_is_refused(name: str) -> None:
    case = TABLE["templates"][name]
    template, refuses = template_of(name), case.get("refuses", {})
    for talk, messages in CONVERSATIONS.items():
        given = copy.deepcopy(messages)
        found = outcome(template, {"messages": given})
        if talk in refuses:
            assert refuses[talk] in found, talk
        else:
            assert found == expected(case, talk), talk
        assert given == messages


QWEN3, CHATML = TEMPLATES["qwen3"], TEMPLATES["chatml"]
END = "<|im_end|>\n"
SMOL = TABLE["templates"]["smollm3"]["text"]


def talk(*messages: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row: questions, with *messages* of the assistant in between."""
    questions = [{"role": "user", "content": f"q{at}"} for at in range(len(messages))]
    pairs = zip(questions, messages, strict=True)
    return {"messages": [one for pair in pairs for one in ({**pair[0]}, {"role": "assistant", **pair[1]})]}


ONE_BY_ONE = """
{%- for m in messages -%}
  {{- '<' + m.role + '>' + (m.content if loop.last or m.role == 'user' else m.content | length | string) -}}
{%- endfor -%}
"""
QUESTION = {"role": "user", "content": "q"}
ASKED = {"from": "human", "value": "q"}
CALLED = '{"name": "f", "arguments": {"x": null}}'
TOOLS = [{"type": "function", "function": {"name": "weather"}}]
ROWS: dict[str, tuple[str, dict[str, Any], list[list[str]]]] = {
    "a weight of 0 is not learnt": (
        CHATML,
        talk({"content": "a", "weight": 0}, {"content": "b", "weight": 1}),
        [["b" + END]],
    ),
    "so with generation blocks": (
        SMOL,
        talk({"content": "a", "train": False}, {"content": "b"}),
        [["b" + END]],
    ),
    "a user may be learnt": (
        CHATML,
        {
            "messages": [
                {"role": "user", "content": "q", "train": True},
                {"role": "assistant", "content": "a"},
            ]
        },
        [["q" + END, "a" + END]],
    ),
    "thinking in a key": (
        QWEN3,
        talk({"content": "a"}, {"content": "b", "reasoning_content": "t"}),
        [["a" + END, "<think>\nt\n</think>\n\nb" + END]],
    ),
    "thinking in another key": (
        QWEN3,
        talk({"content": "a", "thinking": "t"}),
        [["<think>\nt\n</think>\n\na" + END]],
    ),
    "each answer alone": (
        ONE_BY_ONE,
        talk({"content": "first"}, {"content": "second"}),
        [["first"], ["second"]],
    ),
    "roles of ShareGPT": (
        CHATML,
        {
            "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
            "system": "be kind",
        },
        [["a" + END]],
    ),
    "parts of text": (
        CHATML,
        talk({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
        [["ab" + END]],
    ),
    "a list as JSON": (CHATML, {"messages": json.dumps(talk({"content": "a"})["messages"])}, [["a" + END]]),
    "a list as pandas writes it": (
        CHATML,
        {"messages": str(talk({"content": "a"})["messages"])},
        [["a" + END]],
    ),
    "an object of lists": (
        CHATML,
        {"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}},
        [["a" + END]],
    ),
    "a call of ShareGPT": (
        QWEN3,
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": null}}'},
            ]
        },
        [['<tool_call>\n{"name": "f", "arguments": {"x": null}}\n</tool_call>' + END]],
    ),
    "an old call of OpenAI": (
        QWEN3,
        talk({"content": None, "function_call": {"name": "f", "arguments": "{}"}}),
        [['<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>' + END]],
    ),
    "null is a value": (
        QWEN3,
        talk({"content": "a", "tool_calls": [{"function": {"name": "f", "arguments": {"x": None}}}]}),
        [['a\n<tool_call>\n{"name": "f", "arguments": {"x": null}}\n</tool_call>' + END]],
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_many_kinds_are_learnt(name: str) -> None:
    template, row, learnt = ROWS[name]
    assert outcome(template, row) == learnt


def test_a_prompt_with_messages_is_not_learnt() -> None:
    row = {
        "prompt": talk({"content": "a"})["messages"],
        "completion": [{"role": "assistant", "content": "b"}],
    }
    assert learnt_in(texts_of(CHATML, row, form="completion")) == [["b" + END]]
    row = {"prompt": [{"role": "user", "content": "q"}], "completion": "b"}
    assert learnt_in(texts_of(CHATML, row, form="completion")) == [["b" + END]]


def test_tools_and_keywords_reach_the_template() -> None:
    row = talk({"content": "a"}) | {
        "tools": json.dumps([{"type": "function", "function": {"name": "weather"}}])
    }
    (found,) = texts_of(QWEN3, row)
    assert '{"type": "function", "function": {"name": "weather"}}\n</tools>' in found.text
    asked = conversation_of(row, "messages", Place(1, "d"), "")
    assert TurnFinder(Jinja(CHATML)).ignores_tools(asked)
    assert not TurnFinder(Jinja(QWEN3)).ignores_tools(asked)
    (found,) = texts_of(
        "{{ mode }}" + CHATML, talk({"content": "a"}) | {"chat_template_kwargs": {"mode": "X"}}
    )
    assert found.text.startswith("X")


def test_all_is_learnt_but_what_the_data_excludes() -> None:
    row = talk({"content": "a", "weight": 0}, {"content": "b"})
    (found,) = texts_of(CHATML, row, whole=True)
    assert learnt_in([found])[0] == [
        "<|im_start|>user\nq0<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n",
    ]


@pytest.mark.parametrize(
    ("template", "role", "read"),
    [
        ("{{ tool_call['function'] }}", "function", "tool"),
        ("""{{ '{"type": "function", "function": ' }}""", "function", "tool"),
        ("{% if x == 'observation' %}", "observation", "tool"),
        ("{% if message['role'] == 'function' %}", "function", "function"),
        ('{% if message.role == "observation" %}', "observation", "observation"),
        ("{% if (message['role']|trim) != 'function' %}", "function", "function"),
        ("{% if message.role in ['tool', 'function'] %}", "function", "function"),
        ("{% if message.get('role') not in ('function',) %}", "function", "function"),
        ("{% if 'function' == message['role'] %}", "function", "function"),
        ("{% set role = message.role %}{% if role is eq 'ai' %}", "ai", "ai"),
        ("{% if message['role'] == 'assistant' %}{% set role = 'model' %}", "model", "assistant"),
        ("{% if message['role'] == 'model' %}", "model", "assistant"),
        ("{{ {'narrator': 'N'}[message.role] }}", "narrator", "narrator"),
    ],
)
def test_a_role_is_the_templates_own_if_it_compares_it(template: str, role: str, read: str) -> None:
    row = {"messages": [{"role": role, "content": "x"}]}
    found = conversation_of(row, "messages", Place(1, "d"), template)
    assert [message["role"] for message in found.messages] == [read]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "roles": (
        {"messages": [{"role": "narrator", "content": "x"}, {"role": "boss", "content": "y"}]},
        "row 1 of `d`: the roles `narrator`, `boss` are not known: use `system`",
    ),
    "no role": ({"messages": [{"user": "x"}]}, "message 1 has no role: its keys are `user`"),
    "no content": ({"messages": [{"role": "user"}]}, "message 1 (`user`) has no `content`"),
    "misspelt role": (
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistand", "content": "x"}]},
        "`assistant` and `tool`: did you mean `assistant`, not `assistand`?",
    ),
    "misspelt keys": (
        {"messages": [{"rol": "user", "Content": "x"}]},
        "are needed: did you mean `role`, not `rol` and `content`, not `Content`?",
    ),
    "misspelt content": (
        {"messages": [{"role": "user", "contentt": "x"}]},
        "(`user`) has no `content`: did you mean `content`, not `contentt`?",
    ),
    "misspelt messages of one row": ({"messagess": []}, "did you mean `messages`, not `messagess`?"),
    "null": (talk({"content": None}), "message 2 (`assistant`) has no text in `content`: it is `null`"),
    "number": (talk({"content": 3}), "message 2 (`assistant`) has no text in `content`: it is the number 3"),
    "image": (talk({"content": [{"type": "image_url", "image_url": "x"}]}), "a part of type `image_url`"),
    "text": ({"messages": "hello"}, "`messages` must be a list, but it is text"),
    "missing": ({"messages": None}, "`messages` must be a list, but it is `null`"),
    "no object": ({"messages": ["hello"]}, "message 1 must be an object, but"),
    "weight": (talk({"content": "a", "weight": 0.5}), "message 2 has the weight 0.5, which must be 0 or 1"),
    "arguments": (
        talk({"content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{x"}}]}),
        "message 2 has a call of `f` whose arguments are not JSON",
    ),
    "deep arguments": (
        talk({"content": "", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 100_000}}]}),
        "whose arguments are not JSON: it is nested too deeply",
    ),
    "call": (
        talk({"content": "", "tool_calls": [{"id": 3}]}),
        "a tool call without a `function` and its `name`",
    ),
    "tools": (talk({"content": "a"}) | {"tools": ["f"]}, "`tools` must be a list of objects"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_row_is_refused_with_its_cause(name: str) -> None:
    row, words = REFUSED[name]
    assert words in outcome(CHATML, row)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% if %}", r"the chat template is not valid Jinja: .* \(line 1\)"),
        ("{{ messages[5].content.x }}", "the chat template fails with UndefinedError"),
        ("llama3", r"the chat template leaves out message 1 \(`user`\)"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", r"message 2 .* cannot be found"),
    ],
)
def test_a_template_that_does_not_serve_is_refused(template: str, words: str) -> None:
    with pytest.raises(TemplateFault, match=words):
        texts_of(template, talk({"content": "an answer"}))


class Pairs(Jinja):
    """A fast tokenizer that joins a word with the space before it, and two newlines."""

    is_fast = True

    def __call__(self, text: str, **options: Any) -> dict[str, list[Any]]:
        found = list(re.finditer(r" ?\w+|\n\n|\W", text))
        known: dict[str, list[Any]] = {"input_ids": [one[0] for one in found]}
        if options.get("return_offsets_mapping"):
            known["offset_mapping"] = [one.span() for one in found]
        return known

    def decode(self, ids: Sequence[str], **_: Any) -> str:
        return "".join(ids)


def test_tokens_end_where_an_answer_begins() -> None:
    cases = [
        ("a:\n\nb c.", "\nb c.", ["a", ":", "\n"], ["\n", "b", " c", "."]),
        ("a: b.", "b.", ["a", ":"], [" b", "."]),
    ]
    for text, answer, before, after in cases:
        begin = text.index(answer)
        ids, learnt = tokenised(Pairs(""), text, [(begin, len(text))])
        assert list(map(str, ids)) == before + after
        assert learnt == [False] * len(before) + [True] * len(after)
