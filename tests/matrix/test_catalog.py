"""Matrices by name: where they are looked for, in which order, and what there is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from colablock.display.info_view import list_document
from colablock.display.text import to_text
from colablock.errors import InvalidMatrix, NotFound
from colablock.matrix.catalog import ENTRY_POINTS, find_matrix, list_matrices
from colablock.matrix.model import shadow_text
from colablock.operations.info import list_facts
from tests.support.paths import SHIPPED


def write(folder: Path, name: str, text: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(f'schema = 1\nname = "{name}"\n{text}')
    return path


def installed(site: Path, package: str, monkeypatch: pytest.MonkeyPatch, code: str = "") -> Path:
    """Install a package that offers its resources as matrices."""
    info = site / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\n{package} = {package}\n")
    (site / package).mkdir()
    (site / package / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(str(site))
    return site / package


def test_shipped_matrices_are_found_by_name(tmp_path: Path) -> None:
    for name in SHIPPED:
        assert find_matrix(name, environ={}, cwd=tmp_path).name == name


def test_a_matrix_is_found_by_its_path(tmp_path: Path) -> None:
    path = write(tmp_path / "some where", "mine")
    assert find_matrix(str(path), environ={}, cwd=tmp_path).name == "mine"
    assert find_matrix("some where/mine.toml", environ={}, cwd=tmp_path).name == "mine"
    path.rename(tmp_path / "another-name.toml")  # a path needs no name that agrees
    assert find_matrix("another-name.toml", environ={}, cwd=tmp_path).name == "mine"


def test_the_defaults_are_the_working_directory_and_os_environ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "matrices", "mine")
    write(tmp_path / "more", "other")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLABLOCK_MATRICES", "more")
    assert find_matrix("mine").source == str(Path("matrices/mine.toml"))
    assert find_matrix("other").source == str(Path("more/other.toml"))
    assert {one.name for one in list_matrices()} >= {"mine", "other"} | SHIPPED


def test_the_nearest_matrix_shadows_others_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = installed(tmp_path / "site", "their_matrices", monkeypatch)
    folders = [tmp_path / "matrices", tmp_path / "one", tmp_path / "two", package]
    paths = [write(folder, "qlora-2026", f'summary = "{folder.name}"') for folder in folders]
    environ = {"COLABLOCK_MATRICES": os.pathsep.join([str(folders[1]), "", "two"])}
    listed = [one for one in list_matrices(environ=environ, cwd=tmp_path) if one.name == "qlora-2026"]
    assert [one.summary for one in listed[:4]] == ["matrices", "one", "two", "their_matrices"]
    assert [one.shadowed_by for one in listed] == [None, *[str(paths[0])] * 4]
    assert not any(one.is_copy for one in listed)
    for path in paths:
        found = find_matrix("qlora-2026", environ=environ, cwd=tmp_path)
        assert (found.source, found.replaces_shipped, found.copies_shipped) == (str(path), True, False)
        path.unlink()
    assert find_matrix("qlora-2026", environ=environ, cwd=tmp_path).packages


def test_a_folder_that_is_named_twice_is_listed_once(tmp_path: Path) -> None:
    write(tmp_path / "matrices", "mine")
    environ = {"COLABLOCK_MATRICES": str(tmp_path / "matrices")}
    assert [one.name for one in list_matrices(environ=environ, cwd=tmp_path)].count("mine") == 1


def test_locks_and_other_files_beside_a_matrix_are_not_listed(tmp_path: Path) -> None:
    write(tmp_path / "matrices", "mine")
    for name in ("pylock.toml", "pylock.mine--colab-2026_07-gpu.toml", ".hidden.toml", "mine.json", "README"):
        (tmp_path / "matrices" / name).write_text("lock-version = '1.0'\n")
    (tmp_path / "matrices" / "folder.toml").mkdir()
    assert {one.name for one in list_matrices(environ={}, cwd=tmp_path)} == {"mine"} | SHIPPED


def test_an_invalid_matrix_is_listed_with_its_fault(tmp_path: Path) -> None:
    write(tmp_path / "matrices", "bad", 'colour = "red"\nshape = 1\n')
    write(tmp_path / "matrices", "named").rename(tmp_path / "matrices" / "misnamed.toml")
    faults = {one.name: one.fault for one in list_matrices(environ={}, cwd=tmp_path) if one.fault}
    assert set(faults) == {"bad", "misnamed"}
    assert faults["bad"] is not None
    assert faults["bad"].startswith("colour: unknown key")
    assert faults["bad"].endswith("(and 1 more)")
    with pytest.raises(InvalidMatrix) as caught:
        find_matrix("misnamed", environ={}, cwd=tmp_path)
    assert [fault.path for fault in caught.value.faults] == ["name"]


def test_an_unknown_name_suggests_a_near_one_or_lists_all(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        find_matrix("qlora-2O24", environ={}, cwd=tmp_path)
    assert caught.value.hint == "did you mean `qlora-2024`?"
    with pytest.raises(NotFound) as caught:
        find_matrix("something-else", environ={}, cwd=tmp_path)
    where = "your own are looked for in `matrices` of the working folder"
    assert caught.value.hint == f"there are {', '.join(sorted(SHIPPED))}; {where}"
    with pytest.raises(NotFound):
        find_matrix("no/such/file.toml", environ={}, cwd=tmp_path)


def test_a_broken_matrix_package_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path / "site", "broken_matrices", monkeypatch, code="raise RuntimeError('no luck')")
    assert find_matrix("qlora-2026", environ={}, cwd=tmp_path).name == "qlora-2026"
    with pytest.raises(NotFound, match=r"`broken_matrices` offers matrices but cannot be imported: no luck"):
        find_matrix("not-there", environ={}, cwd=tmp_path)
    broken = [one for one in list_matrices(environ={}, cwd=tmp_path) if one.fault]
    assert [one.name for one in broken] == ["broken_matrices"]


def test_extends_looks_a_name_up_like_find_matrix(tmp_path: Path) -> None:
    write(tmp_path / "matrices", "mine", 'extends = "qlora-2026"\npackages.wandb = ""\n')
    matrix = find_matrix("mine", environ={}, cwd=tmp_path)
    assert [entry.name for entry in matrix.packages if entry.name in {"trl", "wandb"}] == ["trl", "wandb"]
    assert [one.fault for one in list_matrices(environ={}, cwd=tmp_path)] == [None] * (len(SHIPPED) + 1)


def test_extends_looks_beside_the_file_for_a_path_only(tmp_path: Path) -> None:
    write(tmp_path / "here", "base", 'packages.a = ""')
    by_path = write(tmp_path / "here", "by-path", 'extends = "./base.toml"')
    by_name = write(tmp_path / "here", "by-name", 'extends = "base"')
    assert find_matrix(str(by_path), environ={}, cwd=tmp_path).packages
    with pytest.raises(InvalidMatrix, match="there is no matrix `base`"):
        find_matrix(str(by_name), environ={}, cwd=tmp_path)


def test_a_copy_of_a_shipped_matrix_is_named_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a clone in which colablock is installed: the list has no remark, and the note no warning."""
    monkeypatch.chdir(tmp_path)
    shipped = find_matrix("qlora-2026")
    names = to_text(list_document(list_facts(os.environ))).count("qlora-2026 ")
    (tmp_path / "matrices").mkdir()
    (tmp_path / "matrices" / "qlora-2026.toml").write_bytes(Path(shipped.source).read_bytes())
    assert shadow_text(find_matrix("qlora-2026")) == (
        "using ./matrices/qlora-2026.toml, a copy of the shipped qlora-2026, and the locks beside it"
    )
    listed = [one for one in list_matrices() if one.name == "qlora-2026"]
    assert [(one.shadowed_by, one.is_copy) for one in listed] == [
        (None, False),
        ("matrices/qlora-2026.toml", True),
    ]
    text = to_text(list_document(list_facts(os.environ)))
    assert text.count("qlora-2026 ") == names  # once in each table
    assert "has the same name" not in text


def test_a_matrix_with_the_text_of_a_shipped_one_that_extends_another_file_is_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped, mine = tmp_path / "shipped", tmp_path / "matrices"
    monkeypatch.setattr("colablock.matrix.catalog._shipped", lambda: shipped)
    for folder, version in ((shipped, ">=1"), (mine, ">=9")):
        write(folder, "base", f'packages.colours = "{version}"\n')
        write(folder, "tiny", 'extends = "base"\n')

    def is_copy() -> tuple[bool, list[bool]]:
        listed = [one for one in list_matrices(environ={}, cwd=tmp_path) if one.name == "tiny"]
        return find_matrix("tiny", environ={}, cwd=tmp_path).copies_shipped, [one.is_copy for one in listed]

    assert is_copy() == (False, [False, False])
    (mine / "base.toml").write_bytes((shipped / "base.toml").read_bytes())
    assert is_copy() == (True, [False, True])
