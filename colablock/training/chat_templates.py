"""Chat templates by name: the values of the key `chat_template`.

The names are those of axolotl.  The templates write what the models of these families expect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from colablock._common.fs import expanded
from colablock._common.limits import CONFIG_FILE
from colablock._common.text import near
from colablock._common.toml import read_text_file
from colablock.errors import InvalidInput

__all__ = ["TEMPLATES", "ChosenTemplate", "chosen_template", "template_value"]

_SYSTEM_FIRST = """\
{%- set first = messages[0]['content'] if messages[0]['role'] == 'system' else none -%}
{%- set turns = messages[1:] if first is not none else messages -%}
"""
_ALTERNATE = """\
{%- for message in turns -%}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
  {%- endif -%}
{%- endfor -%}
"""
_TOOLS_OF_QWEN = """\
{{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' -}}
{{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' -}}
{%- for tool in tools -%}{{- '\\n' + tool | tojson -}}{%- endfor -%}
{{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments ' -}}
{{- 'within <tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name": <function-name>, "arguments": ' -}}
{{- '<args-json-object>}\\n</tool_call><|im_end|>\\n' -}}
"""
_CALLS_OF_QWEN = """\
{%- for call in message.tool_calls or [] -%}
  {%- set call = call.function or call -%}
  {{- '\\n' if content or not loop.first -}}
  {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' -}}
  {{- call.arguments if call.arguments is string else call.arguments | tojson -}}
  {{- '}\\n</tool_call>' -}}
{%- endfor -%}
"""
_RESPONSE_OF_QWEN = """\
{{- '<|im_start|>user' if loop.first or messages[loop.index0 - 1].role != 'tool' -}}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' -}}
{{- '<|im_end|>\\n' if loop.last or messages[loop.index0 + 1].role != 'tool' -}}
"""
_PROMPT_OF_CHATML = "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"

_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_QWEN_25 = f"""\
{{%- set default = 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' -%}}
{{%- set first = messages[0].content if messages[0].role == 'system' else default -%}}
{{{{- '<|im_start|>system\\n' + first -}}}}
{{%- if tools -%}}{{{{- '\\n\\n' -}}}}{_TOOLS_OF_QWEN}{{%- else -%}}{{{{- '<|im_end|>\\n' -}}}}{{%- endif -%}}
{{%- for message in messages -%}}
  {{%- set content = message.content -%}}
  {{%- if message.role == 'tool' -%}}{_RESPONSE_OF_QWEN}
  {{%- elif message.role == 'assistant' and message.tool_calls -%}}
    {{{{- '<|im_start|>assistant\\n' + content -}}}}{_CALLS_OF_QWEN}{{{{- '<|im_end|>\\n' -}}}}
  {{%- elif message.role != 'system' or not loop.first -%}}
    {{{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' -}}}}
  {{%- endif -%}}
{{%- endfor -%}}
{_PROMPT_OF_CHATML}"""
_QWEN3 = f"""\
{{%- set first = messages[0].content if messages[0].role == 'system' else '' -%}}
{{%- if tools -%}}
  {{{{- '<|im_start|>system\\n' + (first + '\\n\\n' if first else '') -}}}}{_TOOLS_OF_QWEN}
{{%- elif first -%}}{{{{- '<|im_start|>system\\n' + first + '<|im_end|>\\n' -}}}}
{{%- endif -%}}
{{%- set last = namespace(query=-1) -%}}
{{%- for message in messages -%}}
  {{%- if message.role == 'user' and not message.content.startswith('<tool_response>') -%}}
    {{%- set last.query = loop.index0 -%}}
  {{%- endif -%}}
{{%- endfor -%}}
{{%- for message in messages -%}}
  {{%- set content = message.content -%}}
  {{%- if message.role == 'tool' -%}}{_RESPONSE_OF_QWEN}
  {{%- elif message.role == 'assistant' -%}}
    {{%- set thought = message.reasoning_content or '' -%}}
    {{%- if not thought and '</think>' in content -%}}
      {{%- set thought = content.split('</think>')[0].split('<think>')[-1] -%}}
      {{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}}
    {{%- endif -%}}
    {{{{- '<|im_start|>assistant\\n' -}}}}
    {{%- if loop.index0 > last.query and (loop.last or thought) -%}}
      {{{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' -}}}}
      {{%- set content = content.lstrip('\\n') -%}}
    {{%- endif -%}}
    {{{{- content -}}}}{_CALLS_OF_QWEN}{{{{- '<|im_end|>\\n' -}}}}
  {{%- elif message.role != 'system' or not loop.first -%}}
    {{{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' -}}}}
  {{%- endif -%}}
{{%- endfor -%}}
{_PROMPT_OF_CHATML}
{{%- if add_generation_prompt and enable_thinking is defined and not enable_thinking -%}}
  {{{{- '<think>\\n\\n</think>\\n\\n' -}}}}
{{%- endif -%}}"""
_LLAMA3 = """\
{%- for message in messages -%}
  {{- bos_token if loop.first -}}
  {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}
  {{- message['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"""
_LLAMA4 = (
    _LLAMA3.replace("<|start_header_id|>", "<|header_start|>")
    .replace("<|end_header_id|>", "<|header_end|>")
    .replace("<|eot_id|>", "<|eot|>")
)
_GEMMA_TURNS = f"""\
{_ALTERNATE}
{{%- for message in turns -%}}
  {{{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' -}}}}
  {{%- if loop.first and first is not none -%}}{{{{- first + '\\n\\n' -}}}}{{%- endif -%}}
  {{{{- message['content'] | trim + '<end_of_turn>\\n' -}}}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- '<start_of_turn>model\\n' -}}}}{{%- endif -%}}"""
_GEMMA = f"""\
{{{{- bos_token -}}}}
{{%- if messages[0]['role'] == 'system' -%}}
  {{{{- raise_exception('System role not supported') -}}}}
{{%- endif -%}}
{{%- set turns = messages -%}}{{%- set first = none -%}}
{_GEMMA_TURNS}"""
_GEMMA3 = f"{{{{- bos_token -}}}}{_SYSTEM_FIRST}{_GEMMA_TURNS}"


def _mistral(opens: str, closes: str, answers: str) -> str:
    """Return the template of the Mistral models before their system prompts had marks of their own."""
    return f"""\
{{{{- bos_token -}}}}{_SYSTEM_FIRST}{_ALTERNATE}
{{%- for message in turns -%}}
  {{%- if message['role'] == 'user' -%}}
    {{{{- '{opens}' + (first + '\\n\\n' if loop.first and first is not none else '') -}}}}
    {{{{- message['content'] + '{closes}' -}}}}
  {{%- else -%}}{{{{- '{answers}' + message['content'] + eos_token -}}}}
  {{%- endif -%}}
{{%- endfor -%}}"""


_MISTRAL_V7 = """\
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}{{- '[INST]' + message['content'] + '[/INST]' -}}
  {%- elif message['role'] == 'system' -%}{{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' -}}
  {%- elif message['role'] == 'assistant' -%}{{- message['content'] + eos_token -}}
  {%- else -%}{{- raise_exception('Only user, system and assistant roles are supported!') -}}
  {%- endif -%}
{%- endfor -%}"""


def _marked(start: str, end: str, *, assistant: str = "assistant", begins: str = "", prompt: str = "") -> str:
    """Return a template that writes each turn between *start*, in which ROLE is the role, and *end*."""
    before, _, after = start.partition("ROLE")
    return f"""\
{begins}{{%- for message in messages -%}}
  {{%- set role = '{assistant}' if message['role'] == 'assistant' else message['role'] -%}}
  {{{{- '{before}' + role + '{after}' + message['content'] + '{end}' -}}}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- '{prompt or before + assistant + after}' -}}}}{{%- endif -%}}"""


_BOS = "{{- bos_token -}}"
_EXAONE_FIRST = "{{- '[|system|][|endofturn|]\\n' if messages[0]['role'] != 'system' -}}"
_EXAONE = f"""\
{_EXAONE_FIRST}{{%- for message in messages -%}}
  {{{{- '[|' + message['role'] + '|]' + message['content'] -}}}}
  {{{{- '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' -}}}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- '[|assistant|]' -}}}}{{%- endif -%}}"""
_DEEPSEEK = """\
{{- bos_token -}}
{%- for message in messages if message['role'] == 'system' -%}
  {{- message['content'] + 'AFTER_SYSTEM' -}}
{%- endfor -%}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}{{- '<｜User｜>' + message['content'] -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- '<｜Assistant｜>' + message['content'].split('</think>')[-1] + eos_token -}}
  {%- elif message['role'] != 'system' -%}
    {{- raise_exception('Only user, system and assistant roles are supported!') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<｜Assistant｜>' -}}{%- endif -%}"""  # noqa: RUF001 (their own marks)
_ALPACA = """\
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message['role'] == 'system' -%}{{- message['content'] -}}
  {%- elif message['role'] == 'user' -%}{{- '### Instruction:\\n' + message['content'] -}}
  {%- elif message['role'] == 'assistant' -%}{{- '### Response:\\n' + message['content'] + eos_token -}}
  {%- else -%}{{- raise_exception('Only user, system and assistant roles are supported!') -}}
  {%- endif -%}
  {{- '\\n\\n' if not loop.last -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '\\n\\n### Response:\\n' -}}{%- endif -%}"""
_COHERE = """\
{{- bos_token -}}
{%- set names = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'} -%}
{%- for message in messages -%}
  {%- if message['role'] not in names -%}
    {{- raise_exception('Only user, system and assistant roles are supported!') -}}
  {%- endif -%}
  {{- '<|START_OF_TURN_TOKEN|><|' + names[message['role']] + '_TOKEN|>' -}}
  {{- message['content'].strip() + '<|END_OF_TURN_TOKEN|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' -}}{%- endif -%}"""
_VICUNA = f"""\
{{{{- bos_token -}}}}{_SYSTEM_FIRST}
{{{{- first + ' ' if first is not none -}}}}
{{%- for message in turns -%}}
  {{%- if message['role'] == 'user' -%}}{{{{- 'USER: ' + message['content'] + ' ' -}}}}
  {{%- elif message['role'] == 'assistant' -%}}{{{{- 'ASSISTANT: ' + message['content'] + eos_token -}}}}
  {{%- else -%}}{{{{- raise_exception('Only user, system and assistant roles are supported!') -}}}}
  {{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- 'ASSISTANT:' -}}}}{{%- endif -%}}"""

#: The templates by name.
TEMPLATES: Mapping[str, str] = {
    "alpaca": _ALPACA,
    "chatml": _CHATML,
    "cohere": _COHERE,
    "deepseek_v2": _DEEPSEEK.replace("AFTER_SYSTEM", "\\n\\n"),
    "deepseek_v3": _DEEPSEEK.replace("AFTER_SYSTEM", ""),
    "exaone": _EXAONE,
    "gemma": _GEMMA,
    "gemma3": _GEMMA3,
    "llama3": _LLAMA3,
    "llama4": _LLAMA4,
    "mistral_v1": _mistral(" [INST] ", " [/INST]", " "),
    "mistral_v2v3": _mistral("[INST] ", "[/INST]", " "),
    "mistral_v3_tekken": _mistral("[INST]", "[/INST]", ""),
    "mistral_v7_tekken": _MISTRAL_V7,
    "phi_3": _marked("<|ROLE|>\\n", "<|end|>\\n", begins=_BOS),
    "phi_35": _marked("<|ROLE|>\\n", "<|end|>\\n"),
    "phi_4": _marked("<|im_start|>ROLE<|im_sep|>", "<|im_end|>"),
    "qwen3": _QWEN3,
    "qwen_25": _QWEN_25,
    "vicuna": _VICUNA,
    "zephyr": _marked("<|ROLE|>\\n", "' + eos_token + '\\n"),
}
_OWN = ("tokenizer", "tokenizer_default", "default")
_FALLBACK = "tokenizer_default_fallback_"
# Names of axolotl for which there is no template here.
_OF_AXOLOTL = frozenset(
    {
        "aya",
        "command_a",
        "command_a_rag",
        "command_a_tool_use",
        "exaone4",
        "falcon_h1",
        "gemma3n",
        "gemma4",
        "gemma4_unified",
        "jamba",
        "llama3_2_vision",
        "llava",
        "metharme",
        "nemotron_h",
        "pixtral",
        "qwen2_vl",
        "qwen3_5",
    }
)
# Names of FastChat, which old configs of axolotl have, and of Unsloth.
_ALIASES = {
    "gemma2": "gemma",
    "gemma_3": "gemma3",
    "inst": "mistral_v1",
    "llama_3": "llama3",
    "llama_4": "llama4",
    "mistral": "mistral_v1",
    "phi3": "phi_3",
    "phi4": "phi_4",
    "qwen25": "qwen_25",
    "qwen2_5": "qwen_25",
    "qwen_3": "qwen3",
    "vicuna_v1_1": "vicuna",
}
_TAGS = ("{{", "{%")
_SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True, slots=True)
class ChosenTemplate:
    """The text of a template; None for that of the tokenizer.

    With *is_fallback*, a tokenizer that has a template keeps it.  *of_axolotl* is the name of a
    template that only axolotl has.
    """

    text: str | None = None
    is_fallback: bool = False
    of_axolotl: str | None = None


def template_value(value: str | None) -> str | None:
    """Return *value* as a run keeps it: a name, or a text, which may come from a file.

    None stands for the template of the tokenizer.  Raises InvalidInput.
    """
    chosen = chosen_template(value)
    is_name = value is not None and not any(tag in value for tag in _TAGS)
    is_known = is_name and (chosen.of_axolotl or chosen.is_fallback or chosen.text in TEMPLATES.values())
    return value if is_known else chosen.text


def chosen_template(value: str | None, *, reads_files: bool = True) -> ChosenTemplate:
    """Return the template that *value* names or is: a text, a file, or one of `TEMPLATES`.

    Raises InvalidInput.
    """
    if value is None or value in _OWN:
        return ChosenTemplate()
    if value.startswith(_FALLBACK):
        fallback = chosen_template(value[len(_FALLBACK) :], reads_files=reads_files)
        return replace(fallback, is_fallback=True)
    name = value.lower().replace("-", "_").replace(".", "_")
    name = _ALIASES.get(name, name)
    if name in TEMPLATES:
        return ChosenTemplate(TEMPLATES[name])
    if name in _OF_AXOLOTL:
        return ChosenTemplate(of_axolotl=name)
    if any(tag in value for tag in _TAGS):
        return ChosenTemplate(value)
    if reads_files and "\n" not in value and _is_file(path := expanded(value, "chat_template")):
        return ChosenTemplate(_read(path))
    known = ", ".join(f"`{one}`" for one in TEMPLATES)
    hint = f"The names are {known}, and `tokenizer`; or give the text of a template, or the path of a file"
    is_short = len(value) <= _SHOWN and "\n" not in value
    shown = value if is_short else f"{value.splitlines()[0][:_SHOWN]} ..."
    close = near(value, list(TEMPLATES)) if is_short else None
    raise InvalidInput(
        f"`chat_template: {shown}` is neither a name, nor a file, nor a template: it has no Jinja tag",
        hint=f"{close} {hint}" if close else hint,
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _read(path: Path) -> str:
    """Return the template in a file, of transformers' ``chat_template.jinja`` or another."""
    try:
        text = read_text_file(path, CONFIG_FILE).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InvalidInput(f"cannot read the chat template `{path}`: {why}") from error
    if not any(tag in text for tag in _TAGS):
        raise InvalidInput(f"the chat template `{path}` has no Jinja tag")
    return text
