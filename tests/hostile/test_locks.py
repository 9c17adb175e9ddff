"""Locks that name files from another place than the source of their package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from colablock.cli.main import main
from colablock.errors import ExitCode
from tests.support.hostile import Target
from tests.support.server import IndexServer
from tests.support.wheels import make_wheel, metadata_text, wheel_bytes

WHEEL = "demo-1.0-py3-none-any.whl"
EVIL = wheel_bytes(
    WHEEL,
    name="demo",
    version="1.0",
    metadata=metadata_text("demo", "1.0"),
    modules={"demo/__init__.py": "raise SystemExit('evil')\n"},
)
MATRIX = """\
schema = 1
name = "tiny"
[[index]]
name = "corp"
url = "{index}"
{more}
[packages]
demo = {{ index = "corp" }}
"""


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[IndexServer, IndexServer]]:
    """Give the index that the matrix names, and another one with the same name and another content."""
    for name in ("own", "evil"):
        (tmp_path / name).mkdir()
    make_wheel(tmp_path / "own", "demo", "1.0")
    (tmp_path / "evil" / WHEEL).write_bytes(EVIL)
    with IndexServer(tmp_path / "own") as own, IndexServer(tmp_path / "evil") as evil:
        yield own, evil


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """The text of a lock, and what stands in it: the URL and the hash of its one wheel, and its index."""

    text: str
    url: str
    sha256: str
    index: str
    evil: str  # the root of the other server

    def with_url(self, url: str) -> str:
        """Return the text with another URL, and the hash of the file of the other server."""
        return self.text.replace(self.url, url).replace(self.sha256, hashlib.sha256(EVIL).hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """How the lock is changed, and the words of the refusal."""

    change: Callable[[Lock], str]
    says: str


def _at(template: str) -> Callable[[Lock], str]:
    """Return a change of the URL; ``{host}`` is the host of the index, ``{evil}`` that of the other."""

    def change(lock: Lock) -> str:
        host, evil = (url.split("//")[1].split("/")[0] for url in (lock.url, lock.evil))
        return lock.with_url(template.format(host=host, evil=evil, wheel=WHEEL))

    return change


def _archive(lock: Lock) -> str:
    text = lock.with_url(f"{lock.evil}/files/{WHEEL}")
    text = text.replace("[[packages.wheels]]", "[packages.archive]").replace(
        "packages.wheels.", "packages.archive."
    )
    return text.replace(f'name = "{WHEEL}"\n', "")


NO_URL = "packages[0].wheels[0].url is not a URL"
CASES = {
    "another host": Case(change=_at("http://{evil}/files/{wheel}"), says="is on `http://127.0.0.1:"),
    "another scheme": Case(change=_at("ftp://{host}/files/{wheel}"), says="is on `ftp://"),
    "the host as a user": Case(change=_at("http://{host}@{evil}/files/{wheel}"), says="demo: "),
    "the host as a password": Case(change=_at("http://a:{host}@{evil}/files/{wheel}"), says="demo: "),
    "a longer host": Case(change=_at("http://{host}.evil.example/{wheel}"), says=NO_URL),
    "a dot behind the host": Case(change=_at("http://127.0.0.1.:1/{wheel}"), says="demo: "),
    "a backslash": Case(change=_at("http://{evil}\\\\@{host}/files/{wheel}"), says=NO_URL),
    "two backslashes": Case(change=_at("http://{evil}\\\\\\\\@{host}/files/{wheel}"), says=NO_URL),
    "a backslash behind the host": Case(change=_at("http://{host}\\\\@{evil}/files/{wheel}"), says=NO_URL),
    "two users": Case(change=_at("http://{host}@{evil}@{host}/files/{wheel}"), says=NO_URL),
    "a fragment as a host": Case(change=_at("http://{evil}#@{host}/files/{wheel}"), says=NO_URL),
    "a query as a host": Case(change=_at("http://{evil}?@{host}/files/{wheel}"), says=NO_URL),
    "a quoted slash behind the host": Case(
        change=_at("http://{host}%2f@{evil}/files/{wheel}"), says="is on `http://127"
    ),
    "a quoted slash in the host": Case(change=_at("http://{host}%2f.{evil}/{wheel}"), says=NO_URL),
    "a tab in the host": Case(change=_at("http://{evil}\\t@{host}/files/{wheel}"), says=NO_URL),
    "a line end in the host": Case(change=_at("http://{evil}\\n@{host}/files/{wheel}"), says=NO_URL),
    "a space in the host": Case(change=_at("http://{evil} @{host}/files/{wheel}"), says=NO_URL),
    "no scheme": Case(change=_at("//{evil}/files/{wheel}"), says=NO_URL),
    "a tab in the scheme": Case(change=_at("ht\\ttp://{evil}/files/{wheel}"), says=NO_URL),
    "another alphabet": Case(change=_at("http://\uff11\uff12\uff17.0.0.1:1/{wheel}"), says="demo: "),
    "a local file": Case(change=_at("file:///srv/{wheel}"), says="is a local file"),
    "a plain path": Case(change=_at("/srv/{wheel}"), says=NO_URL),
    "an open bracket": Case(change=_at("http://[{host}/{wheel}"), says=NO_URL),
    "a path": Case(
        change=lambda lock: lock.text.replace(f'url = "{lock.url}"', f'path = "evil/{WHEEL}"'),
        says="is a local file",
    ),
    "another index": Case(
        change=lambda lock: lock.with_url(f"{lock.evil}/files/{WHEEL}").replace(
            lock.index, f"{lock.evil}/simple/"
        ),
        says="it is from the index `http://127.0.0.1:",
    ),
    "no index": Case(
        change=lambda lock: "".join(
            line
            for line in lock.with_url(f"{lock.evil}/files/{WHEEL}").splitlines(keepends=True)
            if not line.startswith("index = ")
        ),
        says="is on `http://127.0.0.1:",
    ),
    "a weak hash": Case(
        change=lambda lock: lock.text.replace(f'sha256 = "{lock.sha256}"', f'md5 = "{"0" * 32}"'),
        says="has no sha256, sha384 or sha512",
    ),
    "a rebuilt wheel": Case(
        change=lambda lock: lock.text.replace(f'url = "{lock.url}"', f'path = "evil/{WHEEL}"').replace(
            "[packages.tool.colablock]", f'[packages.tool.colablock]\nmade-from = {{ url = "{lock.url}" }}'
        ),
        says="the matrix rebuilds none",
    ),
    "an archive": Case(
        change=_archive,
        says="the matrix does not name that file",
    ),
    "an undeclared package of another index": Case(
        change=lambda lock: lock.text.replace("\n[tool.colablock]", f"{_further(lock)}\n[tool.colablock]", 1),
        says="further: it is from the index",
    ),
}


def _further(lock: Lock) -> str:
    return (
        f'\n[[packages]]\nname = "further"\nversion = "1.0"\nindex = "{lock.evil}/simple/"\nwheels = [\n'
        f'    {{ url = "{lock.evil}/files/further-1.0-py3-none-any.whl", '
        f'hashes = {{ sha256 = "{"0" * 64}" }} }},\n]\n'
    )


@pytest.fixture
def lock(target: Target, servers: tuple[IndexServer, IndexServer], monkeypatch: pytest.MonkeyPatch) -> Lock:
    """Make an honest lock of the matrix ``tiny``, beside it in ``matrices``."""
    own, evil = servers
    monkeypatch.chdir(target.folder)
    for name, value in {
        "COLABLOCK_HOME": str(target.home),
        "COLABLOCK_CACHE_DIR": str(target.folder / "cache"),
        "COLABLOCK_DEFAULT_INDEX": own.url,
    }.items():
        monkeypatch.setenv(name, value)
    (target.folder / "matrices").mkdir()
    _matrix(target).write_text(MATRIX.format(index=own.url, more=""), encoding="utf-8")
    assert _main("lock", "tiny", "--output", str(_path(target))) == ExitCode.DONE
    return Lock(
        text=_path(target).read_text(encoding="utf-8"),
        url=own.file_url(WHEEL),
        sha256=hashlib.sha256((target.folder / "own" / WHEEL).read_bytes()).hexdigest(),
        index=own.url,
        evil=evil.root,
    )


def _matrix(target: Target) -> Path:
    return target.folder / "matrices" / "tiny.toml"


def _path(target: Target) -> Path:
    return target.folder / "matrices" / "pylock.toml"


def _main(*argv: str) -> int:
    return main([*argv])


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what standard error says, on one line and without the tag at its edge."""
    return " ".join(capsys.readouterr().err.replace("[invalid-input]", "").split())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_lock_with_files_of_another_source_is_refused(
    case: Case,
    target: Target,
    lock: Lock,
    servers: tuple[IndexServer, IndexServer],
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed = case.change(lock)
    assert changed != lock.text
    for server in servers:
        server.forget_requests()
    _path(target).write_text(changed, encoding="utf-8")
    for into in ("kernel", "env"):
        with target.unchanged():
            code = _main(
                "apply",
                "tiny",
                "--lock",
                str(_path(target)),
                "--into",
                into,
                "--python",
                target.venv.python,
                "--yes",
            )
        said = _said(capsys)
        assert code == ExitCode.USAGE, said
        assert case.says in said
    assert [server.requests for server in servers] == [[], []]


def test_the_lock_of_the_index_itself_is_used(target: Target, lock: Lock) -> None:
    assert lock.url in lock.text
    argv = ("apply", "tiny", "--lock", str(_path(target)), "--into", "kernel", "--python", target.venv.python)
    assert _main(*argv, "--yes") == ExitCode.DONE
    assert (target.venv.site / "demo").is_dir()


def test_a_lock_beside_the_matrix_is_refused_too(
    target: Target, lock: Lock, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main("lock", "tiny") == ExitCode.DONE
    (path,) = (target.folder / "matrices").glob("pylock.tiny--*.toml")
    url, text = lock.with_url(f"{lock.evil}/files/{WHEEL}"), path.read_text(encoding="utf-8")
    assert url
    path.write_text(text.replace(lock.url, f"{lock.evil}/files/{WHEEL}"), encoding="utf-8")
    with target.unchanged():
        assert _main("apply", "tiny", "--into", "env", "--python", target.venv.python) == ExitCode.USAGE
    assert f"`{path.name}` names files" in _said(capsys)


@pytest.mark.parametrize("where", ["the matrix", "the user"])
def test_another_host_of_the_files_can_be_declared(
    where: str,
    target: Target,
    lock: Lock,
    servers: tuple[IndexServer, IndexServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hosts of the matrix belong to one index, those of the user to the default index."""
    own, evil = servers
    url = f"https://{evil.root.split('//')[1]}/files/{WHEEL}"
    _path(target).write_text(lock.with_url(url), encoding="utf-8")
    host = evil.root.split("//")[1]
    if where == "the matrix":
        _matrix(target).write_text(
            MATRIX.format(index=own.url, more=f'file-hosts = ["{host}"]'), encoding="utf-8"
        )
    else:
        _matrix(target).write_text(
            MATRIX.format(index=own.url, more="").replace('{ index = "corp" }', '""'), encoding="utf-8"
        )
        monkeypatch.setenv("COLABLOCK_FILE_HOSTS", f"files.example {host}")
    argv = ("plan", "tiny", "--lock", str(_path(target)), "--into", "kernel", "--python", target.venv.python)
    assert _main(*argv) == ExitCode.DONE


def test_a_malformed_host_of_the_user_is_an_error(
    lock: Lock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lock.url
    monkeypatch.setenv("COLABLOCK_FILE_HOSTS", "https://files.example/")
    assert _main("plan", "tiny") == ExitCode.USAGE
    assert "`https://files.example/` in COLABLOCK_FILE_HOSTS is not a host name" in _said(capsys)


def test_a_plan_names_its_lock_and_the_hosts_of_the_files(
    target: Target, lock: Lock, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("plan", "tiny", "--lock", str(_path(target)), "--into", "kernel", "--python", target.venv.python)
    capsys.readouterr()
    assert _main(*argv) == ExitCode.DONE
    host = lock.url.split("/")[2]
    assert f"pylock.toml (files from {host})" in " ".join(capsys.readouterr().out.split())
    assert _main(*argv, "--json") == ExitCode.DONE
    plan = json.loads(capsys.readouterr().out)
    assert (plan["lock"], plan["lock_hosts"], plan["shadow"]) == (str(_path(target)), [host], None)


NAME = "qlora-2024"
SHADOW = "using ./matrices/qlora-2024.toml, which replaces the shipped qlora-2024"
COPY = f"using ./matrices/{NAME}.toml, a copy of the shipped {NAME}, and the locks beside it"


SHADOWING = {
    "plan": ("plan", NAME, "--into", "kernel", "--python", "{python}"),
    "apply": ("apply", NAME, "--into", "kernel", "--yes", "--python", "{python}"),
    "lock": ("lock", NAME),
    "show": ("show", NAME),
    "export": ("export", NAME),
    "export of a file": ("export", "--lock", "matrices/pylock.{lock}.toml"),
    "export of a file and a name": ("export", NAME, "--lock", "matrices/pylock.{lock}.toml"),
    "verify": ("verify", NAME),
}


@pytest.mark.parametrize("argv", SHADOWING.values(), ids=SHADOWING)
def test_a_matrix_in_place_of_a_shipped_one_is_said_first(
    argv: tuple[str, ...], target: Target, lock: Lock, capsys: pytest.CaptureFixture[str]
) -> None:
    text = _matrix(target).read_text(encoding="utf-8").replace('"tiny"', f'"{NAME}"')
    (target.folder / "matrices" / f"{NAME}.toml").write_text(text, encoding="utf-8")
    assert lock.url
    if argv[0] == "verify":
        assert (
            _main("apply", NAME, "--into", "kernel", "--yes", "--python", target.venv.python) == ExitCode.DONE
        )
    elif "--lock" in argv:
        assert _main("lock", NAME, "--output", "matrices/pylock.own.toml") == ExitCode.DONE
    capsys.readouterr()
    given = [part.format(python=target.venv.python, lock="own") for part in argv]
    assert _main(*given) == ExitCode.DONE
    out, err = capsys.readouterr()
    said = " ".join((err if argv[0] != "show" else err + out).split())
    assert said.removeprefix("note").removeprefix(":").lstrip().startswith(SHADOW), said


@pytest.mark.parametrize(("argv", "key"), [(SHADOWING["plan"], "shadow"), (SHADOWING["show"], "note")])
@pytest.mark.parametrize("said", [SHADOW, COPY])
def test_a_matrix_in_place_of_a_shipped_one_is_in_the_facts(
    argv: tuple[str, ...],
    key: str,
    *,
    said: str,
    target: Target,
    lock: Lock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = _matrix(target).read_text(encoding="utf-8").replace('"tiny"', f'"{NAME}"')
    (target.folder / "matrices" / f"{NAME}.toml").write_text(text, encoding="utf-8")
    if said == COPY:
        shipped = target.folder / "shipped"
        shipped.mkdir()
        (shipped / f"{NAME}.toml").write_text(text, encoding="utf-8")
        monkeypatch.setattr("colablock.matrix.catalog._shipped", lambda: shipped)
    assert lock.url
    capsys.readouterr()
    assert _main(*(part.format(python=target.venv.python) for part in argv), "--json") == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)[key] == said


def test_a_lock_is_written_with_the_hosts_of_its_files(
    target: Target, lock: Lock, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main("lock", "tiny", "--output", str(_path(target))) == ExitCode.DONE
    host = lock.url.split("/")[2]
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"1 package, files from {host}")


@pytest.mark.parametrize("where", ["the default index", "an index of the matrix", "a mirror", "this machine"])
def test_an_index_over_http_is_said(
    where: str,
    target: Target,
    lock: Lock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = "http://index.example/simple/"
    text, own = _matrix(target).read_text(encoding="utf-8"), lock.index
    if where == "the default index":
        monkeypatch.setenv("COLABLOCK_DEFAULT_INDEX", f"http://user:word@{plain[7:]}")
    elif where == "an index of the matrix":
        _matrix(target).write_text(f'{text}\n[[index]]\nname = "far"\nurl = "{plain}"\n', encoding="utf-8")
    elif where == "a mirror":
        _matrix(target).write_text(
            f'{text}\n[[index]]\nname = "far"\nurl = "https://far.example/"\n', encoding="utf-8"
        )
        monkeypatch.setenv("COLABLOCK_INDEX_FAR", plain)
    assert own.startswith("http://127.0.0.1")
    capsys.readouterr()
    note = f"`{plain}` is read over http: others on the network can change what it lists"
    kernel = ("--into", "kernel", "--python", target.venv.python, "--no-lock")
    for argv in (("lock", "tiny"), ("plan", "tiny", *kernel), ("apply", "tiny", *kernel, "--yes")):
        assert _main(*argv) == ExitCode.DONE
        said = " ".join(capsys.readouterr().err.split())
        assert said.count("is read over http") == (0 if where == "this machine" else 1), said
        assert (note in said) == (where != "this machine")
