from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from colablock._vendor.packaging.utils import NormalizedName
from colablock.cli.main import main
from colablock.environment.accelerator import CARDS, declared
from colablock.errors import ExitCode
from colablock.matrix.catalog import find_matrix
from colablock.training.new_config import config_text, fits_on, size_config
from colablock.training.preflight.facts import Card, Stack
from colablock.training.preflight.machine import card_of
from colablock.training.preflight.model_config import ModelShape, from_config
from colablock.training.runs.config import DataSource, TrainConfig, config_from, config_to
from colablock.transaction.apply_record import ApplyRecord, save
from tests.support.training import read_config

pytestmark = pytest.mark.requirements

GIB = 2**30
LLAMA_1B = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "vocab_size": 128_256,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131_072,
}
LLAMA_8B = {
    **LLAMA_1B,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "head_dim": 128,
    "intermediate_size": 14_336,
    "tie_word_embeddings": False,
}
LLAMA_70B = {
    **LLAMA_8B,
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "intermediate_size": 28_672,
}


def card(name: str) -> Card | None:
    return next(map(card_of, declared(name).devices), None)


T4 = card("T4")


def text_for(model: str = "owner/model", dataset: str = "data.jsonl", runner: str = "trl") -> str:
    return config_text(model, dataset, T4, None, runner)


def uncommented(text: str) -> str:
    """Return *text* with its examples uncommented."""
    lines = (
        line[1:] if line.startswith("#") and not line.startswith("# ") else line for line in text.splitlines()
    )
    return "\n".join(lines)


def test_the_config_text_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text_for(), encoding="utf-8")
    assert read_config(path) == size_config("owner/model", "data.jsonl", T4).config


def test_every_key_appears_once_with_its_help() -> None:
    lines = [line for line in text_for().splitlines() if not line.startswith(("# ", "  ")) and line]
    keys = [line.lstrip("#").partition(":")[0] for line in lines]
    assert keys == [one.name for one in fields(TrainConfig) if one.name != "extra"]
    assert all(line.partition(" # ")[2] for line in lines)


def test_every_example_is_valid_without_its_mark() -> None:
    value = yaml.safe_load(uncommented(text_for()))
    assert value.keys() == {one.name for one in fields(TrainConfig)} - {"extra"}
    assert config_to(config_from(value)).keys() == value.keys()


def test_extra_keys_are_mentioned_for_axolotl() -> None:
    assert "Further keys are passed to axolotl" in text_for(runner="axolotl")
    assert "axolotl's go" not in text_for(runner="trl")


NAMES = [
    "~/models/mine",
    "yes",
    "1e5",
    "0x10",
    "null",
    "a: b",
    "- x",
    "# c",
    "'q'",
    '"',
    "emoji 😀",
    "\x85\u2028",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_round_trips(name: str) -> None:
    found = config_from(yaml.safe_load(text_for(name, f"{name}.jsonl")))
    assert (found.base_model, found.datasets) == (name, (DataSource(path=f"{name}.jsonl"),))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_round_trips(name: str) -> None:
    assert config_from(yaml.safe_load(text_for(name))).base_model == name


def tokens(most: int, *, without: int = 0) -> Callable[[TrainConfig], bool]:
    """Return a check that accepts *most* tokens per batch, and *without* tokens without checkpointing."""

    def fits(config: TrainConfig) -> bool:
        room = most if config.gradient_checkpointing else without
        return config.micro_batch_size * config.sequence_len <= room

    return fits


# Tokens with and without checkpointing, the model's longest; sequence_len, batch, accumulation,
# checkpointing and whether it fits.
SIZES = [
    (1 << 20, 1 << 20, None, (2048, 8, 2, False, True)),
    (1 << 20, 4096, None, (2048, 8, 2, True, True)),
    (8192, 0, None, (2048, 4, 4, True, True)),
    (2048, 2048, None, (2048, 1, 16, False, True)),
    (2047, 0, None, (1024, 1, 16, True, True)),
    (1024, 0, None, (1024, 1, 16, True, True)),
    (256, 0, None, (256, 1, 16, True, True)),
    (255, 0, None, (256, 1, 16, True, False)),
    (1 << 20, 0, 512, (512, 8, 2, True, True)),
    (100, 0, 77, (77, 1, 16, True, True)),
    (10, 0, 77, (77, 1, 16, True, False)),
]


@pytest.mark.parametrize(("most", "without", "longest", "expected"), SIZES)
def test_the_longest_rows_are_chosen_before_the_largest_batch(
    most: int, without: int, longest: int | None, expected: tuple[int, int, int, bool, bool]
) -> None:
    shape = replace(from_config(LLAMA_1B), max_positions=longest)
    found = size_config("m", "d", T4, shape, fits=tokens(most, without=without))
    config = found.config
    assert (
        config.sequence_len,
        config.micro_batch_size,
        config.gradient_accumulation_steps,
        config.gradient_checkpointing,
        found.fits,
    ) == expected


def test_without_a_card_rows_are_short_and_batches_have_one_row() -> None:
    config = size_config("m", "d", None, None, fits=tokens(1 << 20)).config
    assert (config.sequence_len, config.micro_batch_size) == (512, 1)


@pytest.mark.parametrize(("longest", "length"), [(None, 1024), (131_072, 1024), (512, 512)])
def test_without_an_estimate_the_config_is_cautious(longest: int | None, length: int) -> None:
    found = size_config("m", "d", T4, replace(from_config(LLAMA_1B), max_positions=longest))
    config = found.config
    assert (config.sequence_len, config.micro_batch_size, found.fits) == (length, 1, None)
    assert config.gradient_checkpointing


WORDS = [
    (
        tokens(1 << 20),
        "# Sized for Tesla T4, 15 GiB, with the trl that needs the most memory: it fits by the memory",
    ),
    (
        tokens(0),
        "# Sized for Tesla T4, 15 GiB, with the trl that needs the most memory: even this does not fit",
    ),
    (None, "# Sized for Tesla T4, 15 GiB: without the model's config"),
]


@pytest.mark.parametrize(("fits", "words"), WORDS)
def test_the_header_says_how_the_config_was_sized(
    fits: Callable[[TrainConfig], bool] | None, words: str
) -> None:
    assert words in config_text("m", "d", T4, None, "trl", fits=fits)
    assert "for a machine without a card" in config_text("m", "d", None, None, "trl", fits=fits)


@pytest.mark.parametrize("runner", ["axolotl", "trl"])
@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("model", [LLAMA_1B, LLAMA_8B], ids=["1B", "8B"])
def test_every_card_of_a_notebook_trains_a_small_model(
    model: dict[str, object], name: str, runner: str
) -> None:
    shape = from_config(model)
    fits = fits_on(card(name), 0, shape, runner)
    found = size_config("m", "d", card(name), shape, fits=fits)
    assert found.fits
    assert found.config.sequence_len >= 1024
    assert found.config.micro_batch_size * found.config.gradient_accumulation_steps == 16


def test_a_larger_card_gets_at_least_as_large_a_config() -> None:
    shape = from_config(LLAMA_8B)
    found = [
        size_config("m", "d", card(name), shape, fits=fits_on(card(name), 0, shape, "trl")).config
        for name in ("T4", "L4", "A100", "H100")
    ]
    at_a_time = [config.micro_batch_size * config.sequence_len for config in found]
    assert at_a_time == sorted(at_a_time)
    assert at_a_time[0] < at_a_time[-1]


@pytest.mark.parametrize("name", ["T4", "L4", "A100"])
def test_a_model_that_is_too_large_does_not_fit(name: str) -> None:
    shape = from_config(LLAMA_70B)
    assert size_config("m", "d", card(name), shape, fits=fits_on(card(name), 0, shape, "trl")).fits is False


def test_free_memory_of_the_card_is_ignored() -> None:
    shape = from_config(LLAMA_1B)
    full = replace(T4, free=GIB) if T4 else None
    fits = fits_on(full, 0, shape, "trl")
    assert fits is not None
    assert fits(size_config("m", "d", T4).config)


def test_without_a_card_the_memory_of_the_machine_counts() -> None:
    shape = from_config(LLAMA_8B)
    config = size_config("m", "d", None).config
    answers = [fits(config) for ram in (4, 64) if (fits := fits_on(None, ram * GIB, shape, "trl"))]
    assert answers == [False, True]


@pytest.mark.parametrize("shape", [None, from_config({**LLAMA_1B, "num_local_experts": 8})])
def test_an_unsupported_shape_has_no_estimate(shape: ModelShape | None) -> None:
    assert fits_on(T4, 0, shape, "trl") is None


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "PATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA_1B))
    return str(tmp_path / "model")


def test_the_command_writes_a_sized_config(
    model: str, environ: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "config.yaml"
    argv = ["new-config", "--model", model, "--dataset", "mine.jsonl", "--card", "t4", "-o", str(path)]
    assert main(argv, environ) == ExitCode.DONE
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"wrote {path}\n")
    found = read_config(path)
    assert (found.base_model, found.datasets[0].path) == (model, "mine.jsonl")
    words = "Tesla T4, 15 GiB, with the trl that needs the most memory: it fits by the memory estimate"
    assert words in path.read_text()
    assert main(argv, environ) == ExitCode.USAGE
    assert "already exists" in capsys.readouterr().err
    assert main([*argv, "--force", "-q"], environ) == ExitCode.DONE
    assert capsys.readouterr() == ("", "")


def test_without_a_file_the_config_goes_to_standard_output(
    model: str, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new-config", "--model", model, "--card", "none", "--runner", "axolotl"], environ) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "a machine without a card" in out
    assert config_from(yaml.safe_load(out)).base_model == model


def test_an_unknown_model_gives_a_cautious_config(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new-config", "--card", "L4"], environ) == ExitCode.DONE
    out, err = capsys.readouterr()
    assert "the values are cautious" in out
    assert "note: the config of the model could not be read" in err
    assert "HF_HUB_OFFLINE" in err


def test_the_result_can_be_json(
    model: str, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new-config", "--model", model, "--card", "A100", "--json"], environ) == ExitCode.DONE
    answer = json.loads(capsys.readouterr().out)
    assert (answer["output"], answer["notes"]) == (None, [])
    assert config_from(answer["config"]).base_model == model


def test_an_unknown_card_is_refused(environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-config", "--card", "A10"], environ) == ExitCode.USAGE
    assert "`A100`" in capsys.readouterr().err


# The stack that a config is for

LOCK = """lock-version = "1.0"
created-by = "colablock"

[[packages]]
name = "trl"
version = "{trl}"
index = "https://index.example/simple/"
wheels = [{{ url = "https://index.example/trl-{trl}-py3-none-any.whl", hashes = {{ sha256 = "{zeros}" }} }}]

[tool.colablock]
schema = 1
kind = "complete"
matrix = "{name}"
matrix-digest = "{digest}"
python = "{python}"
platform = "manylinux_2_35_x86_64"
"""
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


def write_matrix(folder: Path, name: str, *, runner: str = "trl", **locks: str) -> Path:
    """Write a matrix, and its locks: the version of trl for each Python (``py3_9``)."""
    path = folder / "matrices" / f"{name}.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'schema = 1\nname = "{name}"\n[train]\nrunner = "{runner}"\n')
    digest = find_matrix(str(path)).digest
    for python, trl in locks.items():
        version = python.removeprefix("py").replace("_", ".")
        file = path.parent / f"pylock.{name}--py{version.replace('.', '')}.toml"
        file.write_text(LOCK.format(zeros="0" * 64, trl=trl, name=name, digest=digest, python=f"{version}.1"))
    return path


def record_apply(home: Path, matrix: Path, written: int, **pins: str) -> None:
    """Record an apply of *matrix* with the versions *pins*; *written* orders the records."""
    found = find_matrix(str(matrix))
    record = ApplyRecord(
        name=found.name,
        key="k",
        target="env",
        python="/python",
        prefix="/",
        sites=("/site",),
        state="s",
        matrix_digest=found.digest,
        variant=None,
        pins={NormalizedName(name): version for name, version in pins.items()},
        source=str(matrix),
    )
    save(record, home)
    os.utime(home / "applied" / f"{found.name}.json", (written, written))


def test_a_config_is_sized_for_the_stack_of_a_matrix_or_of_the_last_apply(
    model: str,
    environ: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    environ["COLABLOCK_HOME"] = str(home)
    here = f"py{HERE.replace('.', '_')}"

    def head(*argv: str) -> tuple[str, int]:
        """Return the lines of the header that name the matrix and the runner, and the rows at a time."""
        assert main(["new-config", *argv, "--model", model, "--card", "T4"], environ) == ExitCode.DONE
        out = capsys.readouterr().out
        words = "\n".join(
            line for line in out.splitlines()[:4] if "colablock train" in line or "Sized" in line
        )
        config = yaml.safe_load(out)
        return words, config["micro_batch_size"] * config["sequence_len"]

    words, least = head()
    assert "train NAME" in words
    assert "with the trl that needs the most memory" in words
    locked = write_matrix(tmp_path, "locked", py3_9="0.9.6", **{here: "1.16.0"})
    words, room = head("locked")
    assert "train locked" in words
    assert "with trl 1.16.0" in words
    assert room > least
    assert head(str(locked))[0] == words.replace("train locked", f"train {locked}")
    assert "with trl 0.29.1" in head(str(write_matrix(tmp_path, "other", py3_9="0.29.1")))[0]
    bare = write_matrix(tmp_path, "bare", runner="axolotl")
    assert "train bare" in head("bare")[0]
    assert "with the axolotl that needs the most memory" in head("bare")[0]
    record_apply(home, locked, 1, trl="0.20.0")
    record_apply(home, bare, 2, axolotl="0.18.0", trl="1.7.0")
    record_apply(home, write_matrix(tmp_path, "tools"), 3, ruff="0.1")
    assert "with trl 0.20.0" in head("locked")[0]
    words, _ = head()
    assert "train bare" in words
    assert "with axolotl 0.18.0" in words
    assert "with trl 1.7.0" in head("--runner", "trl")[0]
    bare.unlink()  # the applied stack is there nevertheless
    assert "with trl 1.7.0" in head()[0]
    assert main(["new-config", "nothing", "--card", "T4"], environ) == ExitCode.USAGE
    assert "nothing" in capsys.readouterr().err


def test_a_matrix_without_a_version_is_told(
    model: str,
    environ: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_matrix(tmp_path, "bare")
    assert main(["new-config", "bare", "--model", model, "--card", "T4"], environ) == ExitCode.DONE
    assert "the version of trl in `bare` is unknown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        (
            Stack(torch="2.4.0", transformers="4.46.0", trl="0.12.0"),
            Stack(torch="", transformers="", trl="1.16.0"),
        ),
        (Stack(torch="2.9.0", transformers="5.1.0"), Stack(torch="2.9.0", transformers="5.1.0", trl="1.7.0")),
    ],
)
def test_a_thriftier_runner_gets_a_larger_config(older: Stack, newer: Stack) -> None:
    shape = from_config(LLAMA_1B)
    sizes = []
    for stack in (older, newer):
        config = size_config("m", "d", T4, shape, fits=fits_on(T4, 0, shape, "trl", stack)).config
        sizes.append(config.micro_batch_size * config.sequence_len)
    assert sizes[0] < sizes[1]
