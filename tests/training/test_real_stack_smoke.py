"""Training, its data and its failures in a real stack: `nox -s training` runs this in one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from colablock.errors import ExitCode, InvalidInput
from colablock.training.preflight.facts import ProvenEnvironment, precision_for
from colablock.training.prepared_data import prepare_data
from colablock.training.receipts import receipt_from, receipt_to
from colablock.training.runs.config import DataSource, TrainConfig
from colablock.training.runs.crash import explain
from colablock.training.start import Job
from tests.support.reporters import Notes
from tests.support.stack import NAME, NEEDS_STACK, Stack

pytestmark = NEEDS_STACK


# The smoke run


def test_the_stack_trains(stack: Stack, record_property: Callable[[str, object], None]) -> None:
    file = stack.folder / "receipt.json"
    done = stack.run("smoke", NAME, "--receipt", file)
    assert done.code == 0, done.out + done.err
    assert done.out.startswith(f"{NAME} trains: 10 steps of QLoRA with trl on the CPU, fp32, in ")
    assert done.out.count("PASS") == 2
    told = json.loads(file.read_text(encoding="utf-8"))
    receipt = receipt_from(told, source=str(file))
    assert receipt_to(receipt) == {
        **told,
        "losses": receipt.losses,
        "mends": (),
        "notes": (),
        "held": receipt.held,
    }
    assert receipt.passed
    assert receipt.quantized
    assert (receipt.card, receipt.variant, len(receipt.losses)) == ("cpu", "cpu", receipt.steps)
    assert receipt.before - receipt.after > 0.1  # it learns more than what is asked for
    assert receipt.versions["torch"].endswith("+cpu")
    record_property("figures", done.out)


# Data

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ROWS: Mapping[str, list[dict[str, Any]]] = {
    "completion": [{"prompt": "Who begins? ", "completion": "A notebook begins."}],
    "messages": [
        {
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "What is a plan?"},
                {"role": "assistant", "content": "A list of steps."},
                {"role": "user", "content": "And a step?"},
                {"role": "assistant", "content": "It has a reason."},
            ]
        }
    ],
    "alpaca": [{"instruction": "Say it.", "input": "", "output": "It is said."}],
    "text": [{"text": "The night ends."}],
}
GIVEN_IN_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\nSay it.\n\n### Response:\n"
)
LEARNT: list[list[tuple[str, bool]]] = [  # by row: each piece, and whether it is learnt
    [("Who begins? ", False), ("A notebook begins.</s>", True)],
    [
        ("<|system|>Be short.</s>\n<|user|>What is a plan?</s>\n<|assistant|>", False),
        ("A list of steps.</s>\n", True),
        ("<|user|>And a step?</s>\n<|assistant|>", False),
        ("It has a reason.</s>\n", True),
    ],
    [(GIVEN_IN_ALPACA, False), ("It is said.</s>", True)],
    [("The night ends.</s>", True)],
]
# The tokenizer's own words, by the library alone.
DECODE = """
import json, sys
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
told = [tokenizer.decode(ids, skip_special_tokens=False) for ids in json.load(sys.stdin)]
json.dump(told, sys.stdout)
"""


def prepare(stack: Stack, out: str, model: Path, **rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the answer for the rows, with all of them in ``evaluate``."""
    sources = []
    for name, these in rows.items():
        path = stack.folder / f"{out}-{name}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in these), encoding="utf-8")
        sources.append(DataSource(path=str(path)))
    job = Job(
        proven=ProvenEnvironment(matrix=NAME, python=stack.python, lock="", runner="trl"),
        config=TrainConfig(base_model=str(model), datasets=tuple(sources), sequence_len=256),
        runner="trl",
        precision=precision_for([]),
        evaluate=99,
        offline=True,
    )
    return prepare_data(job, stack.run_folder(out), stack.environ(), Notes())


@pytest.mark.slow
def test_labels_mark_the_tokens_of_answers(stack: Stack) -> None:
    model = stack.folder / "chat-model"
    shutil.copytree(stack.model, model)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    told = prepare(stack, "forms", model, **ROWS)
    assert told["forms"] == list(ROWS)
    pieces = [list(pieces_of(row)) for row in told["evaluate"]]
    command = [stack.python, "-c", DECODE, str(model / "tokenizer.json")]
    ids = json.dumps([one for row in pieces for one, _ in row])
    done = subprocess.run(command, input=ids, capture_output=True, text=True, check=True)
    decoded = iter(json.loads(done.stdout))
    assert [[(next(decoded), is_learnt) for _, is_learnt in row] for row in pieces] == LEARNT
    assert [tuple(piece) for piece in told["sample"]] == LEARNT[0]
    assert told["trained"] == sum(len(one) for row in pieces for one, is_learnt in row if is_learnt)


def pieces_of(row: Mapping[str, list[int]]) -> Iterator[tuple[list[int], bool]]:
    """Yield the tokens of a row in pieces that the loss includes, or does not."""
    pairs = list(zip(row["input_ids"], row["labels"], strict=True))
    assert all(label in (token, -100) for token, label in pairs)
    for is_learnt, piece in groupby(pairs, key=lambda pair: pair[1] != -100):
        yield [token for token, _ in piece], is_learnt


@pytest.mark.slow
def test_messages_without_a_chat_template_are_refused_with_a_fix(stack: Stack) -> None:
    with pytest.raises(InvalidInput) as caught:
        prepare(stack, "chat", stack.model, messages=ROWS["messages"])
    assert "the model's tokenizer has no chat template" in caught.value.message
    assert "`chat_template: chatml`" in caught.value.message


# A crash


@pytest.mark.slow
def test_a_crash_is_explained(stack: Stack) -> None:
    model = stack.folder / "broken-model"
    shutil.copytree(stack.model, model)
    weights = model / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)  # as a download that was broken off
    done = stack.train("broken", model=model)
    assert done.code == ExitCode.UNMET, done.err
    assert "a weights file is damaged" in done.out + done.err
    told = explain(stack.run_folder("broken"))
    assert told is not None
    assert (told.cause, told.step, told.checkpoint) == ("weights-damaged", 0, None)
    assert "SafetensorError" in told.line
    assert told.advice
