"""Read the datasets: their forms become ours, or axolotl reads them itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from colablock._common.fs import expanded
from colablock.errors import InvalidInput
from colablock.training.foreign_configs.reading import Reading, asks_nothing, table
from colablock.training.runs.config import OWN_DATA, DataFormat
from colablock.training.scripts.rows.conversations import (
    CONTENT_KEYS,
    FORMS,
    MESSAGES,
    ROLE_KEYS,
    ROLES,
    USED,
)
from colablock.training.scripts.rows.sources import FORMATS

__all__ = ["read_data"]

_FORMS = {
    "alpaca": DataFormat.ALPACA,
    "chat_template": DataFormat.MESSAGES,
    "completion": DataFormat.TEXT,
    "input_output": DataFormat.INPUT_OUTPUT,
    "messages": DataFormat.MESSAGES,
    "sharegpt": DataFormat.MESSAGES,
    "text": DataFormat.TEXT,
}
#: Types of datasets that are ours, and mean another thing to axolotl, or nothing.
_OUR_FORMS = ("completion", "messages", "text")
_TEMPLATE = "tokenizer_default"  # axolotl's name of the template without `chat_template`
_OF_DATA = ("path", "type", "split", "name")
#: Keys of a dataset of axolotl that name a format, or what our script finds by its own names.
_KEYS: Mapping[str, Collection[str]] = {
    "ds_type": {"jsonl", *FORMATS.values()},
    "field": FORMS["text"],
    "field_messages": MESSAGES,
    **{f"field_{name}": (name,) for name in (*FORMS["alpaca"], *USED["alpaca"])},
    "message_field_role": ROLE_KEYS,
    "message_field_content": CONTENT_KEYS,
}
#: Settings of the data, which axolotl gets beside data that it reads itself.
_DATA_SETTINGS = (
    "chat_template",
    "chat_template_jinja",
    "processor_type",
    "processor_kwargs",
    "skip_prepare_dataset",
    "remove_unused_columns",
    "image_size",
    "image_resize_algorithm",
)


def read_data(reading: Reading) -> None:
    """Map the forms of the datasets to ours, or leave the data to axolotl."""
    given = reading.values.get("datasets")
    sources = list(given) if isinstance(given, list) else []
    _lift_template(reading, sources)
    mapped = [_source(reading, one) for one in sources if isinstance(one, Mapping)]
    others = [words for _, problems in mapped for words in problems]
    others += _of_tokens(reading, sources)
    images = reading.take("processor_type")
    if images is not None:
        others.append(f"`processor_type: {images}`: rows may have images or audio")
    if len(mapped) != len(sources) or not mapped:
        return
    if others and reading.is_axolotl:
        _leave_data(reading, sources, images, others)
        return
    if images is not None:
        hint = "use the runner axolotl (`--runner axolotl`), which reads such data itself"
        reading.fault("processor_type", f"the runner {reading.runner} trains on text only", hint)
    for at, (source, problems) in enumerate(mapped):
        for words in problems:
            hint = "use the runner axolotl, or convert the data to one of our forms"
            reading.fault(f"datasets[{at}]", words, hint)
        if sources[at].get("type") == "completion" and reading.is_of_axolotl:
            reading.tell(f"datasets[{at}].type", "completion", "raw text, as axolotl means it")
        sources[at] = source
    reading.values["datasets"] = sources
    jinja = reading.take("chat_template_jinja")
    if jinja is not None and reading.values.get("chat_template") in (None, "jinja"):
        reading.values["chat_template"] = jinja
    reading.values.pop("skip_prepare_dataset", None)


def _of_tokens(reading: Reading, sources: Sequence[Any]) -> list[str]:
    """Return the settings of tokens and rows that only axolotl does, if it can read the data itself.

    Otherwise they are told and left out: our script reads the data.
    """
    found = {
        key: value
        for key, usual in table()["tokens"].items()
        if (value := reading.values.get(key)) not in usual and not asks_nothing(value, key)
    }
    tokens = found.get("special_tokens")
    if isinstance(tokens, Mapping) and tokens.keys() <= {"pad_token"}:
        del found["special_tokens"]  # padding is masked, whatever its token is
    if found.get("tokenizer_config") == reading.values.get("base_model"):
        found.pop("tokenizer_config", None)
    if not reading.is_axolotl:
        return []
    kinds = [one.get("type") if isinstance(one, Mapping) else None for one in sources]
    if kinds and all(
        kind is not None and (reading.is_of_axolotl or kind not in _OUR_FORMS) for kind in kinds
    ):
        return [f"`{key}` changes the tokens or the rows" for key in found]
    for key, value in found.items():
        reading.values.pop(key)
        reading.tell(key, value, table()["instead"][key])
    return []


def _talks(reading: Reading, one: object) -> bool:
    """Whether a dataset may have conversations."""
    kind = one.get("type") if isinstance(one, Mapping) else None
    if kind == "completion" and not reading.is_of_axolotl:
        return True
    return kind is None or (isinstance(kind, str) and _FORMS.get(kind) is DataFormat.MESSAGES)


def _lift_template(reading: Reading, sources: Sequence[Any]) -> None:
    """Make the chat template of datasets that of the run, if all with conversations name the same."""
    named = [
        (one.get("conversation") or one.get("chat_template")) if isinstance(one, Mapping) else None
        for one in sources
        if _talks(reading, one)
    ]
    agree = bool(named and named[0]) and named.count(named[0]) == len(named)
    if agree and reading.values.get("chat_template") is None:
        reading.values["chat_template"] = named[0]


def _source(reading: Reading, one: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a dataset in our keys, and what of it we cannot read."""
    found = {key: one[key] for key in _OF_DATA if one.get(key) is not None}
    problems = []
    kind = found.pop("type", None)
    if kind == "completion" and not reading.is_of_axolotl:
        found["type"] = kind
    elif isinstance(kind, str) and kind in _FORMS:
        found["type"] = _FORMS[kind].value
    elif kind is not None:
        shown = kind if isinstance(kind, str) else "of its own"
        problems.append(f"has the type `{shown}`, which is a prompt format of axolotl")
    template = one.get("conversation") or one.get("chat_template")
    if template and _talks(reading, one) and template != (reading.values.get("chat_template") or _TEMPLATE):
        problems.append(f"has a chat template of its own (`{template}`)")
    if (files := one.get("data_files")) is not None:
        if (file := _only_file(found.get("path"), files)) is not None:
            found["path"] = file
        else:
            problems.append("has `data_files`")
    known = (*_OF_DATA, "conversation", "chat_template", "data_files")
    for key, value in one.items():
        if key not in known and not asks_nothing(value) and not _is_done(key, value):
            problems.append(f"has `{key}`")
    return found, problems


def _is_done(key: str, value: Any) -> bool:
    """Whether a key of a dataset asks for what our script does with every row."""
    if key in ("train_on_eos", "train_on_eot"):
        return bool(value == "turn")
    if key == "roles_to_train":
        return isinstance(value, list) and all(_role_of(one) == "assistant" for one in value)
    if key == "roles":
        return isinstance(value, Mapping) and all(
            _role_of(word) == role
            for role, words in value.items()
            for word in (words if isinstance(words, list) else [words])
        )
    if key == "message_property_mappings":
        return isinstance(value, Mapping) and all(
            one in _KEYS.get(f"message_field_{name}", ()) for name, one in value.items()
        )
    return isinstance(value, str) and value in _KEYS.get(key, ())


def _role_of(word: object) -> str | None:
    return ROLES.get(word) if isinstance(word, str) else None


def _only_file(path: object, files: object) -> str | None:
    """Return the file that `data_files` names in a local folder, or for a reader of files; else None."""
    listed = [files] if isinstance(files, str) else files
    if not isinstance(path, str) or not isinstance(listed, list) or len(listed) != 1:
        return None
    try:
        folder = Path() if path in FORMATS.values() else Path(path)
        if (expanded(str(folder), "a dataset") / str(listed[0])).is_file():
            return str(folder / str(listed[0]))
    except (OSError, ValueError, InvalidInput):  # a name that no file can have, an unknown user
        pass
    return None


def _leave_data(reading: Reading, sources: Sequence[Any], images: object, why: Sequence[str]) -> None:
    """Let axolotl read the data: they are left as they are, beside the settings that are about data."""
    settings = {
        key: reading.values.pop(key) for key in _DATA_SETTINGS if not asks_nothing(reading.values.get(key))
    }
    settings |= {"processor_type": images} if images is not None else {}
    reading.extra[OWN_DATA] = {"datasets": [dict(one) for one in sources], **settings}
    reading.values["datasets"] = [str(one.get("path") or "data") for one in sources]
    reading.instead.append(f"axolotl reads the data itself, so that preflight shows no row: {why[0]}")
