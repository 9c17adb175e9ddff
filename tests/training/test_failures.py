from __future__ import annotations

import random
import re
import sys
import tracemalloc
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from colablock.display.run_view import explanation_document
from colablock.display.text import to_text
from colablock.matrix.model import Matrix
from colablock.training.failures import explain_error, explain_text, text_of
from colablock.training.runs.crash import CHAIN_LINES
from colablock.training.runs.crash_facts import found_matrices, signal_in
from colablock.training.runs.known_crashes import Program, cause_in, general_cause_in, known_causes
from tests.support.documents import blocks_of
from tests.support.paths import DATA, ROOT
from tests.support.timing import takes_at_most

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from colablock.errors import Refused

LINES: dict[str, list[str]] = tomllib.loads((DATA / "crash_lines.toml").read_text(encoding="utf-8"))["lines"]
TRACEBACK = 'Traceback (most recent call last):\n  File "/x/train.py", line 9, in <module>\n    main()\n'
IPYTHON = """\
---------------------------------------------------------------------------
{kind}                                 Traceback (most recent call last)
Cell In[4], line 20
     18 if load_4_bit:
---> 20 model = AutoModelForCausalLM.from_pretrained(model_name)

File /usr/local/lib/python3.12/dist-packages/x.py:7, in f()
      5 weights_only = True  # CUDA out of memory

{line}
"""
BOXED = """\
╭───────────────────── Traceback (most recent call last) ──────────────────────╮
│ /content/server.py:308 in <module>                                           │
│ ❱ 308 shared.model = load_model(shared.model_name)                           │
╰──────────────────────────────────────────────────────────────────────────────╯
{line}
"""


def cases() -> Iterator[tuple[str, str]]:
    for cause, lines in LINES.items():
        for line in lines:
            yield cause, line


def test_thousands_of_exceptions_take_little_memory() -> None:
    text = "\n".join(f"some.pkg.OddError: part {number} went wrong" for number in range(3000))
    explain_text("warm", versions={})
    tracemalloc.start()
    found = explain_text(text, versions={})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.cause, found.line) == ("unknown", "some.pkg.OddError: part 2999 went wrong")
    assert peak < 10e6  # 220 MB, if each kept the text before it


def test_an_exception_that_is_repeated_is_read_once() -> None:
    text = "RuntimeError: something that nobody knows\n" * 10_000
    with takes_at_most(2):  # it takes 0.4 s, and ten times that if each is read
        assert explain_text(text, versions={}).cause == "unknown"


def test_the_end_of_a_long_text_counts() -> None:
    line = "torch.OutOfMemoryError: CUDA out of memory"
    assert explain_text("x\n" * (1 << 19) + line, versions={}).line == line
    assert explain_text(line + "\nx" * (1 << 19), versions={}).cause == "unknown"


@pytest.mark.parametrize(
    "text",
    [
        "A" * 500_000,
        "a." * 250_000,
        " " * 500_000,
        "ValueError: " + "a_b model " * 50_000,
        "error: " * 70_000,
    ],
    ids=["word", "dots", "spaces", "words", "errors"],
)
def test_a_text_of_one_long_line_is_read_at_once(text: str) -> None:
    with takes_at_most(5):  # hours, if all of it were searched
        explain_text(text, versions={})


def test_the_lines_are_many() -> None:
    known = [line for cause, line in cases() if cause != "unknown"]
    assert len(known) == len(set(known)) > 1250
    assert len(LINES["unknown"]) > 500


@pytest.mark.parametrize("form", ["{}", TRACEBACK + "{}\n", "step 1\n" * 20 + TRACEBACK + "{}\n\nbye\n" * 1])
def test_real_lines_have_their_cause(form: str) -> None:
    found = {line: explain_text(form.replace("{}", line), versions={}).cause for _, line in cases()}
    wrong = [(line, found[line], cause) for cause, line in cases() if found[line] != cause]
    assert wrong == []


@pytest.mark.parametrize(
    ("file", "code", "cause"),
    [
        ("/content/app.py", "return PROMPTS[model_name]", "unknown"),
        ("/kaggle/working/eval.py", 'print(scores["mistral"])', "unknown"),
        ("/usr/lib/python3/dist-packages/pandas/core/indexes/base.py", "raise KeyError(key)", "unknown"),
        ("/x/site-packages/transformers/models/auto/a.py", "return MAPPING[key]", "unknown-architecture"),
        ("/x/site-packages/vllm/config.py", "raise KeyError(key)", "unknown-architecture"),
        ("/content/train.py", "main()", "unknown-architecture"),
    ],
)
def test_a_key_that_the_user_looks_up_is_no_model(file: str, code: str, cause: str) -> None:
    frame = f'  File "{file}", line 8, in f\n    {code}\n'
    text = f"Traceback (most recent call last):\n{frame}KeyError: 'mistral'\n"
    assert explain_text(text, versions={}).cause == cause


def test_a_cell_that_looks_up_a_key_is_no_model() -> None:
    head = "KeyError                                  Traceback (most recent call last)\nCell In[7], line 2\n"
    text = head + "      1 results = {}\n----> 2 print(results[\"qwen3\"])\n\nKeyError: 'qwen3'"
    assert explain_text(text, versions={}).cause == "unknown"


def test_a_line_alone_has_the_same_cause() -> None:
    whole = {one.name for one in known_causes() if one.whole}  # which look at all of a text
    lines = [line for cause, line in cases() if cause not in whole and not signal_in(line)]
    lines = [line for line in lines if '  File "' not in line]  # the code that raised it decides, too
    found = {line: cause_in(line) or general_cause_in(line) for line in lines}
    wrong = [line for cause, line in cases() if getattr(found.get(line), "name", "unknown") != cause]
    wrong = [line for line in wrong if line in found]
    assert wrong == []


@pytest.mark.parametrize(
    ("file", "line", "cause"),
    [
        ("transformers/models/auto/configuration_auto.py", "KeyError: 'newmodel'", "unknown-architecture"),
        ("datasets/formatting/formatting.py", "KeyError: 'my_column'", "dataset-columns"),
        ("transformers/trainer.py", "ZeroDivisionError: division by zero", "no-rows"),
        ("deepspeed/runtime/zero/stage3.py", "AssertionError", "deepspeed-state"),
        ("sentencepiece/__init__.py", "TypeError: not a string", "tokenizer-needs-package"),
        ("trl/x.py", "AttributeError: 'Thing' object has no attribute 'y'", "package-calls-another-version"),
        (
            "trl/x.py",
            "TypeError: f() got an unexpected keyword argument 'y'",
            "package-calls-another-version",
        ),
        ("trl/x.py", "AttributeError: 'NoneType' object has no attribute 'y'", "unknown"),
        ("trl/x.py", "KeyError: 'my_column'", "unknown"),
        ("datasets/arrow_dataset.py", "TypeError: cannot pickle '_thread.lock' object", "not-picklable"),
        ("trl/x.py", "NameError: name 'is_foo' is not defined", "package-has-a-fault"),
        ("trl/x.py", "SomeError: what nobody knows", "unknown"),
        ("requests/models.py", "json.decoder.JSONDecodeError: Expecting value: line 1 column 1", "unknown"),
    ],
)
def test_the_code_that_raised_an_exception_tells_its_cause(file: str, line: str, cause: str) -> None:
    package = f"/usr/local/lib/python3.12/dist-packages/{file}"
    forms = [
        f'{TRACEBACK}  File "{package}", line 7, in f\n    x()\n{line}\n',
        IPYTHON.replace("/usr/local/lib/python3.12/dist-packages/x.py", package).format(
            kind=line.partition(":")[0], line=line
        ),
        f"│ {package}:7 in f │\n│ ❱ 7 x() │\n{line}\n",
    ]
    assert [explain_text(form, versions={}).cause for form in forms] == [cause] * 3
    own = f'{TRACEBACK}  File "{package}", line 7, in f\n    x()\n  File "/x/mine.py", line 1, in g\n{line}\n'
    assert explain_text(own, versions={}).cause in ("unknown", "pickle-failed")


@pytest.mark.parametrize(
    ("file", "code", "cause"),
    [
        ("trl/x.py", "raise ValueError(", "settings-refused"),
        ("trl/x.py", "f(x)", "unknown"),
        ("mine/x.py", "raise ValueError(", "unknown"),
    ],
)
def test_an_exception_that_a_package_raises_by_itself_is_its_refusal(
    file: str, code: str, cause: str
) -> None:
    package = f"/usr/lib/python3.12/site-packages/{file}"
    line = "ValueError: nobody thought of this"
    for form in (
        f'{TRACEBACK}  File "{package}", line 7, in f\n    {code}\n{line}\n',
        IPYTHON.replace("/usr/local/lib/python3.12/dist-packages/x.py", package)
        .replace("      5 weights_only = True  # CUDA out of memory", f"----> 7 {code}")
        .format(kind="ValueError", line=line),
        f"│ {package}:7 in f │\n│ ❱ 7 {code} │\n{line}\n",
    ):
        found = explain_text(form, versions={})
        assert (found.cause, found.line) == (cause, line)
        assert ("the message is of the package `trl`" in found.details) == (cause != "unknown")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("stderr: torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2 GiB.", "cuda-out-of-memory"),
        (
            "(EngineCore pid=2) ERROR 11-19 [core.py:8] ValueError: LoRA rank 64 is greater than 16",
            "adapter-not-loaded",
        ),
        ("TypeError(\"SFTTrainer.__init__() got an unexpected keyword argument 'x'\")", "versions-differ"),
        ("cannot import name 'SFTConfig' from 'trl' (/x/trl/__init__.py)", "missing-module"),
        ("Error running job: 'LoraModel' object has no attribute 'x'", "package-calls-another-version"),
        ("'NoneType' object has no attribute 'shape'", "unknown"),
        ("some log (returned ValueError: but went on", "unknown"),
    ],
)
def test_an_exception_is_read_behind_what_a_program_wrote_before_it(text: str, cause: str) -> None:
    assert explain_text(text, versions={}).cause == cause


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("['python', 'train.py'] exits with return code = -9", "killed"),
        ("process 1 terminated with signal SIGSEGV", "segmentation-fault"),
        ("ProcessExitedException: process 0 terminated with signal SIGKILL", "killed"),
        ("Process finished with exit code 137 (interrupted by signal 9: SIGKILL)", "killed"),
        ("Process finished with exit code -1073741819 (0xC0000005)", "segmentation-fault"),
        ("the job exited with code 143", "terminated"),
        ("SignalException: Process 5 got signal: 1", "hung-up"),
        ("Fatal Python error: none_dealloc: deallocating None", "aborted"),
        ("Fatal Python error: init_fs_encoding: failed to get the Python codec", "unknown"),
        ("failed (exitcode: 1) local_rank: 0", "unknown"),
        ("exit code 1", "unknown"),
    ],
)
def test_the_end_of_a_process_tells_its_signal(text: str, cause: str) -> None:
    assert explain_text(text, versions={}).cause == cause


def test_an_import_between_two_packages_names_both() -> None:
    line = "ImportError: cannot import name 'is_foo' from 'transformers.utils' (/x/__init__.py)"
    frame = '  File "/x/site-packages/{}/utils.py", line 3, in <module>\n    import x\n'
    told = "the import is in the package `trl`, which was written for another version of `transformers.utils`"
    found = explain_text(TRACEBACK + frame.format("trl") + line, versions={})
    assert (found.cause, told in found.details) == ("missing-module", True)
    of_itself = explain_text(TRACEBACK + frame.format("transformers") + line, versions={})
    assert of_itself.details == ("`transformers.utils` has no `is_foo`",)


@pytest.mark.parametrize("form", [IPYTHON, BOXED])
@pytest.mark.parametrize(
    "cause", sorted({"flash-attention", "fp16-parameters", "no-gradient", "tokenizers-too-old"})
)
def test_tracebacks_of_notebooks_are_read(form: str, cause: str) -> None:
    line = LINES[cause][0]
    found = explain_text(form.format(line=line, kind=line.partition(":")[0]), versions={})
    assert (found.cause, found.line) == (cause, line.splitlines()[0])


@pytest.mark.parametrize("seed", range(12))
def test_a_log_of_harmless_lines_has_no_cause(seed: int) -> None:
    harmless = [line for line in LINES["unknown"] if not re.match(r"[\w.]*(?:Error|Exception)\b", line)]
    assert len(harmless) > 300
    text = "\n".join(random.Random(seed).sample(harmless, 40))
    assert explain_text(text, versions={}).cause == "unknown", text


def test_warnings_before_a_failure_do_not_count() -> None:
    text = "\n".join([*LINES["unknown"][:7], *["step"] * 9, TRACEBACK + "SomeError: what nobody knows"])
    found = explain_text(text, versions={})
    assert (found.cause, found.line, found.advice) == ("unknown", "SomeError: what nobody knows", ())


HANDLED = TRACEBACK + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n"
LAST = TRACEBACK + "pkg.Strange: what nobody knows\n"


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        (f"{HANDLED}\nRetrying with half the batch\n{LAST}", "unknown"),
        (f"{HANDLED}\nstep 1\nstep 2\n{LAST}", "unknown"),
        (f"{HANDLED}\n{{'loss': 2.1, 'epoch': 0.1}}\n{LAST}", "unknown"),
        (f"{HANDLED}\nOne of the workers died, see above\n{LAST}", "cuda-out-of-memory"),
        (f"{LAST}\nRetrying\n{HANDLED}", "cuda-out-of-memory"),
        (f"RuntimeError: CUDA error: an illegal memory access\nskipped\nPkgError: odd\n{LAST}", "unknown"),
    ],
)
def test_an_earlier_failure_counts_unless_the_program_went_on_after_it(log: str, cause: str) -> None:
    assert explain_text(log, versions={}).cause == cause


@pytest.mark.parametrize("told", ["", *CHAIN_LINES])
@pytest.mark.parametrize("word", ["# retry once", "# fall back", "x = 'skipped'", "# errors ignored"])
def test_the_code_of_a_traceback_says_not_that_the_program_went_on(word: str, told: str) -> None:
    cell = IPYTHON.replace("18 if load_4_bit:", f"18 {word}").replace("model_name)", f"model) {word}")
    first, last = (
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "RuntimeError: it failed",
    )
    for frame in (
        cell,
        cell.replace("/x.py:7, in f", "/retry.py:7, in retry"),
        f'{TRACEBACK}  File "/x/retry.py", line 9, in retry\n    step() {word}\n{{line}}\n',
    ):
        chain = [frame.format(line=line, kind=line.partition(":")[0]) for line in (first, last)]
        assert explain_text(f"\n{told}\n\n".join(chain), versions={}).cause == "cuda-out-of-memory"


@pytest.mark.parametrize("between", ["", f"{TRACEBACK}"])
def test_the_direct_cause_of_an_exception_counts(between: str) -> None:
    first = "Exception: IO Error: No space left on device (os error 28)\n"
    told = "The above exception was the direct cause of the following exception:\n"
    second = "RuntimeError: An error occurred while downloading using `hf_transfer`. Consider disabling it\n"
    found = explain_text(f"{between}{first}\n{told}\n{between}{second}", versions={})
    assert (found.cause, found.line) == ("disk-full", second.strip())
    assert explain_text(f"{between}{second}", versions={}).cause == "download-tool-missing"


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("step 1\n" * 30 + "Killed\n", "killed"),
        ("step 1\n" * 30 + "bash: line 1: 4242 Killed                  python train.py\n", "killed"),
        ("step 1\n" * 30 + "Segmentation fault (core dumped)\n", "segmentation-fault"),
        ("step 1\n" * 30 + "RuntimeError: CUDA error: out of memory\n", "cuda-out-of-memory"),
        ("step 1\n" * 30, "unknown"),
        ("", "unknown"),
    ],
)
def test_a_log_without_a_traceback_is_read_from_its_end(log: str, cause: str) -> None:
    found = explain_text(log, versions={})
    assert found.cause == cause
    assert found.means


def test_of_several_ranks_the_first_that_failed_is_explained() -> None:
    lines = [(1, "OSError: [Errno 28] No space left on device"), (0, "RuntimeError: NCCL error in: x")]
    text = "".join(
        f"[rank{rank}]: {one}\n" for rank, line in lines for one in (*TRACEBACK.splitlines(), line)
    )
    found = explain_text(text, versions={})
    assert (found.cause, found.rank) == ("disk-full", 1)


# What is installed


@cache
def matrices() -> tuple[Matrix, ...]:
    return found_matrices({"COLABLOCK_MATRICES": str(ROOT / "matrices")})


@pytest.mark.parametrize(
    ("line", "versions", "details", "advice"),
    [
        (
            "KeyError: 'qwen3'",
            {"transformers": "4.46.3", "tokenizers": "0.20.3"},
            ["transformers 4.46.3 is installed", "tokenizers 0.20.3 is installed"],
            ["(the matrix `qlora-2026-12` has transformers ==5.24.0)"],
        ),
        (
            "importlib.metadata.PackageNotFoundError: No package metadata was found for bitsandbytes",
            {"transformers": "5.13.0", "torch": "2.11.0", "peft": "0.19.1"},
            ["bitsandbytes is not installed; the matrix `qlora-2026` has it"],
            ["colablock apply qlora-2026"],
        ),
        (
            "TypeError: SFTTrainer.__init__() got an unexpected keyword argument 'max_seq_length'",
            {"trl": "0.21.0", "transformers": "4.55.2", "peft": "0.17.0"},
            [
                "the installed `SFTTrainer.__init__` has no argument `max_seq_length`",
                "trl 0.21.0 is installed",
            ],
            ["Change the script"],  # the matrix with these versions would not help
        ),
        ("KeyError: 'qwen3'", {"transformers": "a.b"}, ["transformers a.b is installed"], []),
    ],
)
def test_an_explanation_names_versions_and_the_matrix_that_has_others(
    line: str, versions: dict[str, str], details: list[str], advice: list[str]
) -> None:
    found = explain_text(line, versions=versions, matrices=matrices())
    for words in details:
        assert any(one.startswith(words) for one in found.details), found.details
    for words in advice:
        assert any(words in one for one in found.advice), found.advice


def test_the_page_shows_an_explanation_as_it_is_written() -> None:
    (sample,) = (one.text for one in blocks_of("docs/how-to/explain-a-failure.md") if one.language == "text")
    versions = {"transformers": "4.46.3", "tokenizers": "0.20.3"}
    found = explain_text("KeyError: 'qwen3'", versions=versions, matrices=matrices())
    assert to_text(explanation_document(found)) == sample.rstrip("\n")


def test_the_applied_matrix_comes_before_the_likely_one() -> None:
    line = LINES["numpy-of-another-abi"][0]
    found = explain_text(line, versions={"numpy": "2.1"}, matrices=matrices(), applied="mine")
    assert "Run `colablock apply mine`" in found.advice[0]


@pytest.mark.parametrize(
    ("call", "argument", "installed", "advised"),
    [
        ("SFTTrainer", "max_seq_length", {"trl": "0.21.0", "transformers": "4.55.2"}, None),
        ("SFTTrainer", "max_seq_length", {"trl": "1.16.0"}, None),
        ("Trainer", "processing_class", {"transformers": "4.41.0"}, "qlora-2026-12"),
        ("TrainingArguments", "eval_strategy", {"transformers": "5.24.0"}, None),
        ("TrainingArguments", "evaluation_strategy", {"transformers": "5.24.0"}, "qlora-2024"),
        ("LoraConfig", "use_dora", {"peft": "0.7.0"}, "qlora-2026-12"),
    ],
)
def test_a_matrix_is_advised_only_if_its_version_may_have_the_argument(
    call: str, argument: str, installed: dict[str, str], advised: str | None
) -> None:
    line = f"TypeError: {call}.__init__() got an unexpected keyword argument '{argument}'"
    found = explain_text(line, versions=installed, matrices=matrices())
    told = re.findall(r"colablock apply ([\w-]+)", " ".join(found.advice))
    assert (found.cause, told) == ("versions-differ", [advised] if advised else [])
    assert found.advice[-1].removeprefix("Or ").lower().startswith("change the script")


FOLLOWS = "because of the following error (look up to see its traceback):"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            f"RuntimeError: Failed to import x.y {FOLLOWS}\noperator torchvision::nms does not exist",
            "RuntimeError: operator torchvision::nms does not exist",
        ),
        ("RuntimeError: \n    CUDA Setup failed despite GPU", "RuntimeError: CUDA Setup failed despite GPU"),
        ("ValueError: NaN in rows:\n\n", "ValueError: NaN in rows:"),
    ],
)
def test_a_line_that_announces_the_reason_is_shown_with_it(text: str, line: str) -> None:
    assert explain_text(text, versions={}).line == line


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "TypeError: Trainer.__init__() got an unexpected keyword argument 'tokenizer'",
            "`processing_class`",
        ),
        (
            "TypeError: SFTTrainer.__init__() got an unexpected keyword argument 'tokenizer'",
            "`processing_class`",
        ),
        (
            "TypeError: SFTConfig.__init__() got an unexpected keyword argument 'max_seq_length'",
            "`max_length`",
        ),
        (
            "TypeError: SFTTrainer.__init__() got an unexpected keyword argument 'dataset_text_field'",
            "take `dataset_text_field` in `SFTConfig`",
        ),
        (
            "TypeError: SFTConfig.__init__() got an unexpected keyword argument 'evaluation_strategy'",
            "`eval_strategy`",
        ),
        (
            "TypeError: T.compute_loss() got an unexpected keyword argument 'num_items_in_batch'",
            "`num_items_in_batch=None`",
        ),
        (
            "ImportError: cannot import name 'AdamW' from 'transformers' (x.py)",
            "`from torch.optim import AdamW`",
        ),
        ("ImportError: cannot import name 'HfFolder' from 'huggingface_hub' (x.py)", "`get_token`"),
        (
            "ImportError: cannot import name 'DataCollatorForCompletionOnlyLM' from 'trl' (x.py)",
            "`completion_only_loss`",
        ),
    ],
)
def test_the_new_name_of_what_is_gone_is_told(line: str, told: str) -> None:
    assert told in "\n".join(explain_text(line, versions={}).details)


def test_each_broken_requirement_is_told() -> None:
    broken = "{} 1.0 requires {}==2, but you have {} 3 which is incompatible.\n"
    text = "ERROR: pip's dependency resolver does not currently take into account all\n"
    found = explain_text(text + broken.format(*"aab") + broken.format(*"ccd"), versions={})
    assert [one.partition(",")[0] for one in found.details] == ["a requires a==2", "c requires c==2"]


def test_every_advice_of_the_table_can_be_shown_without_a_run() -> None:
    some = matrices()
    for cause, lines in LINES.items():
        found = explain_text(lines[0], versions={}, matrices=some)
        assert found.advice or cause == "unknown", cause
        assert not re.search(r"\{\w+\}", "".join((found.means, *found.advice))), cause
    advice = explain_text(LINES["no-gradient"][0], versions={}).advice
    assert any("{'use_reentrant': False}" in one for one in advice)


# The words of the program that failed

OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
# A setting as a YAML file has it, or one that only the config of colablock has, or its runs.
OWN_WORDS = re.compile(
    r"`(?!fsdp)\w+: |under `\[|colablock runs|--mirror|the newest checkpoint"
    r"|`(?:base_model|sequence_len|micro_batch_size|num_epochs|lr_scheduler|optimizer|adapter|lora_\w+"
    r"|val_set_size|flash_attention|dataset_processes|wandb_project)`"
)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (
            '  File "/x/site-packages/trl/trainer/sft_trainer.py", line 9, in train',
            "`per_device_train_batch_size=1`",
        ),
        ("", "`per_device_train_batch_size=1`"),
        ('  File "/x/site-packages/axolotl/train.py", line 9, in train', "`micro_batch_size: 1`"),
        ("[2026-01-02 10:00:00,000] [INFO] [axolotl.train.train:9] starting", "`micro_batch_size: 1`"),
        ("--- colablock: started 2026-01-02 10:00:00", "`micro_batch_size: 1`"),
        (
            '  File "/x/site-packages/colablock/training/scripts/sft.py", line 9, in main',
            "`micro_batch_size: 1`",
        ),
    ],
)
def test_advice_is_in_the_words_of_the_program_that_failed(log: str, words: str) -> None:
    found = explain_text(f"{log}\n{TRACEBACK}{OUT_OF_MEMORY}", versions={})
    assert any(words in one for one in found.advice), found.advice


def test_no_setting_of_colablock_is_advised_to_another_program() -> None:
    names = {one.name: one for one in known_causes()}
    for cause, lines in LINES.items():
        if any("axolotl" in one for one in lines[:1]):
            continue
        found = explain_text(lines[0], versions={}, matrices=matrices())
        for text in (found.means, *found.advice):
            assert not OWN_WORDS.search(text), (cause, text)
        assert found.advice or not names[cause].advice, cause


def test_every_advice_has_words_for_each_program() -> None:
    for cause in known_causes():
        for advice in cause.advice:
            text = advice.said_of(Program.OTHER)
            assert not OWN_WORDS.search(text), (cause.name, text)
            own = advice.said_of(Program.AXOLOTL)
            assert not re.search("under `\\[|colablock runs|--mirror|matches its manifest", own), own
            assert not re.search("`--(?:model|dataset|output-dir)`", f"{text} {own}"), (text, own)
            assert not re.search("`(?:base_model|output_dir)`", advice.said_of(Program.COLABLOCK))


# Exceptions


def test_an_exception_is_explained_with_what_it_was_raised_from() -> None:
    def fail() -> None:
        raise RuntimeError("saving failed") from OSError("[Errno 28] No space left on device")

    with pytest.raises(RuntimeError) as caught:
        fail()
    assert explain_text(text_of(caught.value), versions={}).cause == "disk-full"
    assert text_of("KeyError: 1") == "KeyError: 1"


def test_an_error_of_colablock_explains_itself() -> None:
    found: Any = explain_error(Refused("no room", hint="Free some"))
    assert (found.cause, found.means, found.advice) == ("refused", "no room", ("Free some",))


def test_the_prefix_of_a_rank_is_no_part_of_the_exception() -> None:
    text = (
        "[rank0]:     value = self.data[key]\n[rank0]:             ~~~~~~~~~^^^^^\n[rank0]: KeyError: 'text'"
    )
    assert explain_text(text, versions={}).cause == "dataset-columns"


@pytest.mark.parametrize(
    ("module", "meant"),
    [
        ("torchh", "torch"),
        ("transfomers", "transformers"),
        ("numpi", "numpy"),
        ("bitsandbites", "bitsandbytes"),
        ("jsn", "json"),
        ("torchtune", None),  # another project with a longer name
        ("transformers_modified", None),
        ("vllm", None),
    ],
)
def test_a_module_that_no_matrix_has_is_not_promised_by_one(module: str, meant: str | None) -> None:
    text = f"{TRACEBACK}ModuleNotFoundError: No module named '{module}'"
    found = explain_text(text, versions={"torch": "2.9.0"}, matrices=matrices(), applied="qlora-2026")
    assert found.cause == "missing-module"
    assert (f"did you mean `{meant}`?" in found.means) == (meant is not None)
    assert found.details == (("torch 2.9.0 is installed",) if meant == "torch" else ())
    if meant:
        assert found.advice == (f"Write `{meant}` where the program imports `{module}`",)
    else:
        assert f"`colablock plan qlora-2026 --with {module.replace('_', '-')}`" in found.advice[0]


@pytest.mark.parametrize(
    ("module", "project"), [("cv2", "opencv-python-headless"), ("bs4", "beautifulsoup4"), ("yaml", "pyyaml")]
)
def test_a_module_with_another_name_than_its_project_leads_to_the_project(module: str, project: str) -> None:
    found = explain_text(f"ModuleNotFoundError: No module named '{module}'", versions={}, matrices=matrices())
    assert (
        found.means == f"there is no module `{module}` in the environment: it is of the project `{project}`"
    )
    assert [f"--with {project}`" in text for text in found.advice] == [True]
    found = explain_text(f"ModuleNotFoundError: No module named '{module}'", versions={project: "1.0"})
    assert found.means.endswith(f"though its project `{project}` is installed: files are missing")
    assert found.advice == (f"Install it again: `pip install --force-reinstall --no-deps {project}==1.0`",)


@pytest.mark.parametrize("module", ["transformers", "_lzma", "transformers.modeling_layers", "pandas"])
def test_a_module_that_is_known_is_not_called_misspelt(module: str) -> None:
    text = f"{TRACEBACK}ModuleNotFoundError: No module named '{module}'"
    found = explain_text(text, versions={}, matrices=matrices(), real=["pandas"])
    assert found.advice[0].startswith("Run `colablock apply")
