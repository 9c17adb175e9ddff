"""Matrix files: what a good one means, every fault of a bad one, and the choice of a variant."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colablock._common.urls import Url
from colablock._vendor import tomli_w
from colablock.environment.accelerator import Accelerator
from colablock.errors import ExitCode, Fault, InvalidInput, InvalidMatrix, NotFound, Refused
from colablock.matrix.model import Index, Matrix, PackageEntry, Variant, roots, select_variant
from colablock.matrix.reader import MatrixFile, load_matrix, parse_matrix, read_file
from colablock.matrix.schema import SCHEMA, keys_of
from colablock.matrix.values import _CONVERT, _ELEMENT, STRUCTURED
from tests.support.accelerators import card
from tests.support.paths import DATA

pytestmark = [pytest.mark.stdlib, pytest.mark.requirements]

MATRICES = DATA / "matrices"
BAD = sorted((MATRICES / "bad").glob("*.toml"))
HEAD = 'schema = 1\nname = "m"\n'


def good(name: str) -> Matrix:
    return load_matrix(read_file(MATRICES / "good" / f"{name}.toml"))


def by_path(matrix: Matrix) -> dict[str, PackageEntry]:
    return {entry.path: entry for entry in matrix.packages}


# --- bad files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BAD, ids=[path.stem for path in BAD])
def test_every_fault_of_a_bad_file_is_reported(path: Path) -> None:
    with pytest.raises(InvalidMatrix) as caught:
        load_matrix(read_file(path))
    folder = f"{path.parent}/"
    found = [str(fault).replace(folder, "") for fault in caught.value.faults]
    assert found == path.with_suffix(".faults").read_text(encoding="utf-8").splitlines()
    assert caught.value.exit_code is ExitCode.USAGE
    assert caught.value.source == str(path)


def test_every_key_of_the_schema_is_known_to_the_reader() -> None:
    assert {key.type for key in SCHEMA} <= {*_CONVERT, *_ELEMENT, *STRUCTURED}


def test_a_key_of_the_schema_has_a_section_and_a_name() -> None:
    key = next(key for key in SCHEMA if key.path == "packages.<name>.requires-dist")
    assert (key.section, key.name) == ("packages.<name>", "requires-dist")
    assert keys_of("index[]")["url"].required
    assert len({key.path for key in SCHEMA}) == len(SCHEMA)


@pytest.mark.parametrize("key", [key for key in SCHEMA if not key.required], ids=lambda key: key.path)
def test_the_right_spelling_of_any_key_is_suggested(key: Any) -> None:
    """Each key with its last letter doubled is unknown, and the hint names the key that was meant."""
    *tables, last = [part.replace("<name>", "x") for part in key.path.split(".")]
    wrong: Any = {last.removesuffix("[]") + last.removesuffix("[]")[-1]: "x"}
    for part in reversed(tables):
        wrong = {part.removesuffix("[]"): [wrong] if part.endswith("[]") else wrong}
    with pytest.raises(InvalidMatrix) as caught:
        parse_matrix(tomli_w.dumps({"schema": 1, "name": "m", **wrong}))
    hints = [fault.hint for fault in caught.value.faults if fault.message == "unknown key"]
    assert hints == [f"did you mean `{key.name}`?"]


def test_deep_nesting_is_a_fault_of_the_file() -> None:
    with pytest.raises(InvalidMatrix) as caught:
        parse_matrix(HEAD + "x = " + "[" * 5000 + "]" * 5000)
    assert len(caught.value.faults) == 1


@given(st.text(max_size=60))
def test_any_text_parses_or_has_faults(text: str) -> None:
    with pytest.raises(InvalidMatrix) as caught:
        parse_matrix(text)  # without a schema no text is one
    assert caught.value.faults


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS.filter(lambda value: value is not None),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(
    key=st.sampled_from([key for key in SCHEMA if "<" not in key.path and "[" not in key.path]), value=VALUES
)
def test_any_value_of_a_key_is_read_or_is_a_fault(key: Any, value: Any) -> None:
    data: dict[str, Any] = {"schema": 1, "name": "m"}
    if key.section:
        data[key.section] = {key.name: value}
    else:
        data[key.name] = value
    faults: tuple[Fault, ...] = ()
    try:
        parse_matrix(tomli_w.dumps(data))
    except InvalidMatrix as error:
        faults = error.faults
    # A value may be a whole table: each fault stands at the key or below it.
    assert all(fault.path.startswith(key.path) for fault in faults)


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"])
def test_a_moment_beyond_the_years_of_utc_is_read(moment: str) -> None:
    for written in (moment, f'"{moment}"'):
        found = parse_matrix(f'schema = 1\nname = "m"\nexclude-newer = {written}\n').exclude_newer
        assert found is not None
        assert found.isoformat()[:10] == moment[:10]


def test_a_missing_file_suggests_a_near_name(tmp_path: Path) -> None:
    (tmp_path / "qlora.toml").write_text(HEAD)
    with pytest.raises(NotFound) as caught:
        read_file(tmp_path / "qlara.toml")
    assert caught.value.hint == f"did you mean `{tmp_path / 'qlora.toml'}`?"
    with pytest.raises(NotFound) as caught:
        read_file(tmp_path / "no" / "qlora.toml")
    assert caught.value.hint == f"there is no folder `{tmp_path / 'no'}` either"
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_file(tmp_path)


# --- good files --------------------------------------------------------------------------------


def test_a_whole_matrix_is_read() -> None:
    matrix = good("full")
    assert (matrix.name, matrix.summary, matrix.prerelease) == ("full", "every key there is", "disallow")
    assert matrix.exclude_newer == datetime(2024, 9, 1, tzinfo=timezone.utc)
    assert "3.12" in matrix.requires_python
    assert "3.13" not in matrix.requires_python
    assert matrix.indexes == (
        Index(name="pytorch-cu118", url=Url("https://example.com/whl/cu118"), exclude_newer=False),
        Index(
            name="mirror",
            url=Url("https://example.com/simple"),
            default=True,
            exclude_newer=datetime(2025, 1, 1, tzinfo=timezone.utc),
        ),
    )
    assert matrix.options.allow_build == {"fire"}
    assert matrix.options.no_binary == {":all:"}
    assert matrix.verify.imports == ("torch", "transformers:AutoModelForCausalLM", "axolotl.cli.train")
    assert matrix.verify.commands == (("accelerate", "launch", "--help"),)
    assert matrix.verify.capabilities == ("nf4", "llama3-rope")
    assert (matrix.train.runner, matrix.train.workarounds) == ("axolotl", ("load-in-4bit-twice",))


def test_packages_keep_file_order_before_requirements() -> None:
    assert [entry.path for entry in good("full").packages] == [
        "packages.numpy",
        "packages.Foo_Bar",
        "packages.torch",
        "packages.coverage",
        "packages.axolotl",
        "packages.wheel[0]",
        "packages.wheel[1]",
        "requirements[0]",
        "requirements[1]",
        "requirements[2]",
    ]


def test_a_whole_entry_is_read() -> None:
    entries = by_path(good("full"))
    assert entries["packages.Foo_Bar"].name == "foo-bar"
    assert not entries["packages.Foo_Bar"].specifier
    torch = entries["packages.torch"]
    assert (str(torch.specifier), torch.index, torch.prefer_local, torch.why) == (
        "==2.4.0",
        "pytorch-cu118",
        "cpu",
        "because",
    )
    coverage = entries["packages.coverage"]
    assert coverage.extras == {"toml"}
    assert str(coverage.marker) == 'python_version < "3.11"'
    axolotl = entries["packages.axolotl"]
    assert axolotl.is_rebuilt
    assert (axolotl.version, axolotl.source_root, axolotl.sha256) == ("0.4.0", "src", "00ff" * 16)
    assert [str(line) for line in axolotl.requires_dist or ()] == ["fire", "addict>=1"]
    assert entries["requirements[1]"].extras == {"x"}
    direct = entries["requirements[2]"]
    assert (direct.url, direct.sha256) == ("https://example.com/c-1.zip", "00ff" * 16)
    assert not direct.is_rebuilt


def test_an_empty_requires_dist_replaces_the_requirements() -> None:
    matrix = parse_matrix(HEAD + 'packages.a = { url = "https://example.com/a.zip", requires-dist = [] }')
    assert matrix.packages[0].requires_dist == ()
    assert matrix.packages[0].is_rebuilt


def test_a_matrix_may_be_empty_and_begin_with_a_byte_order_mark() -> None:
    matrix = good("bom")
    assert matrix == replace(
        parse_matrix('schema = 1\nname = "bom"'), source=matrix.source, digest=matrix.digest
    )
    assert matrix.packages == ()


def test_the_digest_covers_the_bytes_and_the_base() -> None:
    text = HEAD + 'extends = "base"\n'

    def over(base: str) -> str:
        return parse_matrix(text, find=lambda name: MatrixFile(source=name, content=base.encode())).digest

    base = 'schema = 1\nname = "base"\n'
    assert parse_matrix(HEAD).digest != parse_matrix(HEAD + "# more\n").digest
    assert over(base) == over(base)
    assert over(base) != over(base + "# more\n")


def shuffled(table: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    keys = data.draw(st.permutations(list(table)))
    return {key: shuffled(table[key], data) if isinstance(table[key], dict) else table[key] for key in keys}


@given(st.data())
def test_key_order_affects_only_the_order_of_entries(data: st.DataObject) -> None:
    table = {
        "schema": 1,
        "name": "m",
        "summary": "s",
        "index": [{"name": "i", "url": "https://example.com/"}],
        "packages": {"a": ">=1", "b": {"version": "==2", "index": "i", "why": "w"}, "c": {"extras": ["x"]}},
        "constraints": {"d": "<3", "e": {"version": "<4", "why": "w"}},
        "variants": {"one": {"summary": "1", "packages": {"a": "==1"}}, "two": {"absent": {"f": "<1"}}},
        "verify": {"imports": ["a", "b"], "capabilities": ["nf4"]},
        "options": {"allow-build": ["a"], "no-binary": ["b"]},
    }
    one, other = (parse_matrix(tomli_w.dumps(t)) for t in (table, shuffled(table, data)))

    def content(matrix: Matrix) -> Matrix:
        in_order = tuple(sorted(matrix.packages, key=lambda entry: entry.path))
        constraints = tuple(sorted(matrix.constraints, key=lambda entry: entry.path))
        return replace(matrix, digest="", packages=in_order, constraints=constraints)

    assert content(one) == content(other)


# --- extends -----------------------------------------------------------------------------------


def test_an_extending_matrix_overrides_its_base_by_name() -> None:
    base, matrix = good("full"), good("nearer")
    assert (matrix.name, matrix.summary) == ("nearer", base.summary)
    assert str(matrix.requires_python) == ">=3.11"
    assert matrix.exclude_newer == base.exclude_newer
    assert [index.url for index in matrix.indexes] == [
        "https://example.com/nearer",
        "https://example.com/simple",
    ]
    paths = [entry.path for entry in matrix.packages]
    assert paths == ["packages.NumPy", *[entry.path for entry in base.packages[1:]], "packages.new"]
    assert matrix.options.allow_build == {"fire"}
    assert not matrix.options.no_binary
    assert (matrix.verify.imports, matrix.verify.commands) == (("new",), base.verify.commands)
    assert matrix.train == base.train
    assert list(matrix.variants) == ["mine", "cu118", "cpu"]
    cu118 = matrix.variants["cu118"]
    assert (cu118.summary, cu118.system) == ("older drivers", base.variants["cu118"].system)
    assert [str(entry.specifier) for entry in cu118.packages] == ["==2.4.1", "<3", ">=1"]


def test_a_base_may_extend_another_matrix() -> None:
    assert good("further").packages == good("nearer").packages


@pytest.mark.parametrize("key", ["workarounds", "mends"])
@pytest.mark.parametrize("base_key", ["workarounds", "mends"])
def test_mends_is_an_alias_of_workarounds(key: str, base_key: str) -> None:
    base = HEAD + f'[train]\n{base_key} = ["load-in-4bit-twice"]\n'
    assert parse_matrix(base).train.workarounds == ("load-in-4bit-twice",)
    file = MatrixFile(source="base", content=base.encode())
    nearer = parse_matrix(HEAD + f'extends = "base"\n[train]\n{key} = []\n', find=lambda _name: file)
    assert nearer.train.workarounds == ()


def test_a_text_without_a_path_cannot_extend() -> None:
    with pytest.raises(InvalidMatrix) as caught:
        parse_matrix(HEAD + 'extends = "full"')
    assert [fault.path for fault in caught.value.faults] == ["extends"]


def test_a_text_may_extend_a_named_matrix() -> None:
    file = MatrixFile(source="elsewhere", content=b'schema = 1\nname = "n"\nrequirements = ["a"]\n')
    matrix = parse_matrix(HEAD + 'extends = "n"', find=lambda _name: file)
    assert [entry.name for entry in matrix.packages] == ["a"]


# --- variants ----------------------------------------------------------------------------------

SYSTEM = """
[variants.new]
system-requirements = { accelerator = "cuda", driver = ">=530.30", compute-capability = ">=5.0,<=9.0" }
[variants.old]
system-requirements = { driver = ">=520.61,<600", compute-capability = ">=3.7,<=9.0" }
[variants.cpu]
system-requirements = { accelerator = "none" }
"""


@pytest.mark.parametrize(
    ("accelerator", "expected"),
    [
        (card(), "new"),
        (card("9.0"), "new"),
        (card(driver="525.60"), "old"),
        (card("3.7"), "old"),
        (card(driver=None), "new"),
        (card(driver="a driver of its own kind"), "new"),
        (Accelerator(kind="cuda"), "new"),
        (Accelerator(), "cpu"),
        (Accelerator(kind="tpu"), "cpu"),
    ],
)
def test_the_first_fitting_variant_is_selected(accelerator: Accelerator, expected: str) -> None:
    assert select_variant(parse_matrix(HEAD + SYSTEM), accelerator).variant == expected


@pytest.mark.parametrize(
    ("accelerator", "lines"),
    [
        (
            card(driver="470.82"),
            [
                "new: driver 470.82 is below >=530.30",
                "old: driver 470.82 is below >=520.61",
                "cpu: there is a CUDA device",
            ],
        ),
        (
            card("12.0", driver="600.1"),
            [
                "new: compute capability of T4 12.0 is above <=9.0",
                "old: driver 600.1 is above <600, compute capability of T4 12.0 is above <=9.0",
                "cpu: there is a CUDA device",
            ],
        ),
    ],
)
def test_each_variant_that_does_not_fit_names_the_fact(accelerator: Accelerator, lines: list[str]) -> None:
    with pytest.raises(Refused) as caught:
        select_variant(parse_matrix(HEAD + SYSTEM), accelerator)
    assert str(caught.value).splitlines()[1:] == [f"  {line}" for line in lines]
    assert caught.value.hint == "choose one with `--variant`: new, old, cpu"
    assert caught.value.exit_code is ExitCode.UNMET


CARD_ONLY = """
[variants.cuda]
system-requirements = { accelerator = "cuda", why = "kernels for CUDA; `small` needs no card" }
"""


def test_the_reason_of_a_variant_is_the_hint_where_none_fits() -> None:
    other = '[variants.old]\nsystem-requirements = { driver = "<500", why = "for old drivers" }\n'
    for text, hint in [
        (CARD_ONLY, "kernels for CUDA; `small` needs no card"),
        (CARD_ONLY + other, "kernels for CUDA; `small` needs no card; for old drivers"),
    ]:
        with pytest.raises(Refused, match="cuda: there is no CUDA device") as caught:
            select_variant(parse_matrix(HEAD + text), Accelerator())
        assert caught.value.hint == hint
    assert select_variant(parse_matrix(HEAD + CARD_ONLY), card()).variant == "cuda"


def test_a_reason_alone_excludes_no_machine_and_extends_the_conditions_of_a_base() -> None:
    reason = "[variants.cuda.system-requirements]\nwhy = 'nearer'\n"
    assert select_variant(parse_matrix(HEAD + reason), Accelerator()).variant == "cuda"
    base = MatrixFile(source="elsewhere", content=('schema = 1\nname = "n"\n' + CARD_ONLY).encode())
    nearer = parse_matrix(HEAD + 'extends = "n"\n' + reason, find=lambda _name: base)
    with pytest.raises(Refused) as caught:
        select_variant(nearer, Accelerator())
    assert caught.value.hint == "nearer"


def test_every_gpu_must_fit() -> None:
    two = replace(card(), devices=(*card().devices, *card("12.0").devices))
    with pytest.raises(Refused):
        select_variant(parse_matrix(HEAD + SYSTEM), two)


def test_a_gpu_variant_needs_a_gpu() -> None:
    matrix = parse_matrix(HEAD + SYSTEM.partition("[variants.cpu]")[0])
    with pytest.raises(Refused, match="old: there is no CUDA device"):
        select_variant(matrix, Accelerator())
    assert select_variant(matrix, Accelerator(), "old").variant == "old"


def test_other_specifier_clauses_are_evaluated() -> None:
    matrix = parse_matrix(HEAD + '[variants.a.system-requirements]\ndriver = "!=580.82.07"')
    with pytest.raises(Refused, match=r"driver 580.82.07 is outside !=580.82.07"):
        select_variant(matrix, card())


def test_a_variant_replaces_whole_entries_in_place() -> None:
    before = good("full")
    matrix = select_variant(before, Accelerator(), "cu118")
    paths = [entry.path for entry in matrix.packages]
    assert paths == [
        "packages.numpy",
        "packages.Foo_Bar",
        "variants.cu118.packages.torch",
        "packages.coverage",
        "packages.axolotl",
        "variants.cu118.packages.wheel",  # one for the two by marker
        "requirements[0]",
        "requirements[1]",
        "requirements[2]",
        "variants.cu118.packages.extra",
    ]
    torch = by_path(matrix)["variants.cu118.packages.torch"]
    assert (torch.index, torch.why) == (None, None)
    assert [str(constraint.specifier) for constraint in matrix.constraints] == ["<81", ">21"]
    assert [str(absent.specifier) for absent in matrix.absent] == ["", ""]
    assert before == good("full")


def test_a_matrix_without_variants_is_unchanged() -> None:
    matrix = parse_matrix(HEAD)
    assert select_variant(matrix, card()) is matrix


@given(st.sampled_from(["cu118", "cpu"]), st.sampled_from([None, "cu118", "cpu"]))
def test_selecting_a_variant_is_idempotent(first: str, again: str | None) -> None:
    chosen = select_variant(good("full"), card(), first)
    if again in {None, first}:
        assert select_variant(chosen, Accelerator(), again) == chosen


@pytest.mark.parametrize(
    ("text", "name", "hint"),
    [
        (SYSTEM, "neww", "did you mean `new`?"),
        (SYSTEM, "tpu-v5", "its variants are new, old, cpu"),
        ("", "new", "it has none"),
    ],
)
def test_an_unknown_variant_is_not_found(text: str, name: str, hint: str) -> None:
    with pytest.raises(NotFound) as caught:
        select_variant(parse_matrix(HEAD + text), card(), name)
    assert caught.value.hint == hint


def test_a_variant_without_system_requirements_always_fits() -> None:
    matrix = replace(parse_matrix(HEAD), variants={"any": Variant(name="any")})
    assert select_variant(matrix, Accelerator()).variant == "any"
    assert select_variant(matrix, card()).variant == "any"


# --- roots -------------------------------------------------------------------------------------


def test_additions_come_after_the_entries_of_the_matrix() -> None:
    matrix = parse_matrix(HEAD + 'requirements = ["a"]')
    extra = ["wandb>=0.17", "rich[jupyter]; python_version > '3'", "x @ https://example.com/x.whl"]
    found = roots(matrix, extra)
    assert [entry.path for entry in found] == ["requirements[0]", *[f"with: {line}" for line in extra]]
    assert [entry.name for entry in found] == ["a", "wandb", "rich", "x"]
    assert found[2].extras == {"jupyter"}
    assert found[3].url == "https://example.com/x.whl"


def test_every_unreadable_addition_is_named() -> None:
    with pytest.raises(InvalidInput) as caught:
        roots(parse_matrix(HEAD), ["a b", "ok", "c>>1"])
    assert [line.partition(" is no")[0] for line in str(caught.value).splitlines()] == ["`a b`", "`c>>1`"]
