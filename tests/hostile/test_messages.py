"""A password in a URL is never shown, wherever the URL stands and however malformed it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from colablock.cli.main import main

SECRET = "hunter2"
BAD_URLS = [
    f"https://u:{SECRET}@[bad",
    f"https://u:{SECRET}@127.0.0.1:99999/x",
    f"https://u:pa/{SECRET}@127.0.0.1/x",
    f"https://u:p@{SECRET}@127.0.0.1:9/x",
    f"https:/u:{SECRET}@127.0.0.1/x",
    f"HTTPS://{SECRET}@127.0.0.1:9/x",
    f"u:{SECRET}@127.0.0.1/x",
    f"ftp://u:{SECRET}@127.0.0.1/x",
    f"git+https://u:{SECRET}@127.0.0.1/o/r@main",
    f"git+ssh://u:{SECRET}@127.0.0.1/o/r@main",
    f"http://127.0.0.1:9/x?token={SECRET}&a=1",
    f"http://127.0.0.1:9/demo-1.0-py3-none-any.whl?X-Amz-Signature={SECRET}",
    f"http://u%40:{SECRET}%2F@127.0.0.1:9/demo-1.0.tar.gz",
    f"https://u:pa {SECRET}@127.0.0.1/x",
]
SHOW = ("show", "painting.toml")
TRAIN = ("train", "painting.toml", "--config", "config.yaml")
OFFLINE_PLAN = ("plan", "painting.toml", "--runtime", "colab-2026.08-gpu", "--no-lock")
# Variables of places, with the command that reads them.
VARIABLES = {
    "COLABLOCK_DEFAULT_INDEX": OFFLINE_PLAN,
    "COLABLOCK_FIND_LINKS": OFFLINE_PLAN,
    "COLABLOCK_MIRRORS": OFFLINE_PLAN,
    "COLABLOCK_INDEX_DEFAULT": OFFLINE_PLAN,
    "COLABLOCK_TIMEOUT": OFFLINE_PLAN,
    "COLABLOCK_RETRIES": OFFLINE_PLAN,
    "COLABLOCK_KEYRING_PROVIDER": OFFLINE_PLAN,
    "COLABLOCK_FILE_HOSTS": OFFLINE_PLAN,
    "UV_DEFAULT_INDEX": OFFLINE_PLAN,
    "UV_INDEX_URL": OFFLINE_PLAN,
    "UV_FIND_LINKS": OFFLINE_PLAN,
    "UV_INDEX": OFFLINE_PLAN,
    "PIP_INDEX_URL": OFFLINE_PLAN,
    "PIP_EXTRA_INDEX_URL": OFFLINE_PLAN,
    "PIP_FIND_LINKS": ("info",),
    "ALL_PROXY": OFFLINE_PLAN,
    "HTTP_PROXY": OFFLINE_PLAN,
    "https_proxy": OFFLINE_PLAN,
    "NETRC": OFFLINE_PLAN,
    "SSL_CERT_FILE": OFFLINE_PLAN,
    "HF_ENDPOINT": ("new-config", "--model", "org/name", "--dataset", "org/data"),
}
# Arguments of places; `{}` is the URL.
ARGUMENTS = (
    (*OFFLINE_PLAN, "--default-index", "{}"),
    (*OFFLINE_PLAN, "--find-links", "{}"),
    (*OFFLINE_PLAN, "--with", "demo @ {}"),
    (*OFFLINE_PLAN, "--with", "{}"),
    (*OFFLINE_PLAN, "--lock", "{}"),
    (*OFFLINE_PLAN, "--json", "--default-index", "{}"),
    (*OFFLINE_PLAN, "--{}"),
    ("plan", "{}"),
    ("show", "{}"),
    ("export", "{}"),
    ("export", "--lock", "{}"),
    ("lock", "painting.toml", "--default-index", "{}"),
    ("new", "n", "--from-requirements", "{}"),
    ("runtime", "show", "{}"),
    ("runtime", "import", "{}", "--name", "n", "--python-version", "3.12.4"),
    ("new-config", "--model", "{}", "--dataset", "{}"),
    ("runs", "show", "{}"),
    ("{}",),
)
# Files of places: the name, the text, and the command that reads it.
FILES = {
    "index": ('[[index]]\nname = "own"\nurl = {!r}\n[packages]\ndemo = "*"\n', OFFLINE_PLAN),
    "index shown": (
        '[[index]]\nname = "own"\nurl = {!r}\n[packages]\ndemo = "*"\n',
        ("show", "painting.toml"),
    ),
    "index name": ("[packages]\ndemo = {{ index = {!r} }}\n", OFFLINE_PLAN),
    "url": ("[packages]\ndemo = {{ url = {!r} }}\n", OFFLINE_PLAN),
    "url shown": ("[packages]\ndemo = {{ url = {!r} }}\n", ("show", "painting.toml", "--json")),
    "version": ("[packages]\ndemo = {!r}\n", OFFLINE_PLAN),
    "marker": ("[packages]\ndemo = {{ version = '*', marker = {!r} }}\n", OFFLINE_PLAN),
    "requirement": ("requirements = ['demo @ ' {!r}]\n", OFFLINE_PLAN),
    "extends": ("extends = {!r}\n", OFFLINE_PLAN),
    "requires-dist": (
        "[packages]\ndemo = {{ version = '*', requires-dist = ['x @ '{!r}] }}\n",
        ("show", "painting.toml", "--json"),
    ),
    "key": ("[packages]\n{!r} = '*'\n", OFFLINE_PLAN),
    "toml": ("[packages\n{!r}", OFFLINE_PLAN),
    "why": ("[packages]\ndemo = {{ version = '>', why = {!r} }}\n", OFFLINE_PLAN),
    **{
        f"requirements {line}": (line, ("new", "n", "--from-requirements", "requirements.txt"))
        for line in (
            "{}",
            "demo @ {}",
            "demo @ {} ; os_name == '",
            "-e {}",
            "-r {}",
            "-c {}",
            "-i {}",
            "--extra-index-url={}",
            "-f {}",
            "--unknown {}",
            "demo=={}",
            "demo==1 --hash={}",
            "-i {} '",
            "--trusted-host {}",
            "-i https://$" + "{{NAME}}:hunter2@x.example/ {}",
        )
    },
    **{
        f"freeze {line}": (
            line,
            ("runtime", "import", "freeze.txt", "--name", "n", "--python-version", "3.12.4", "--offline"),
        )
        for line in ("{}", "demo @ {}", "-e {}", "demo=={}", "demo @ file:///x/{}")
    },
    "pyproject": (
        "[project]\nname = 'a'\ndependencies = ['demo @ {}', '{}']\n",
        ("new", "n", "--from-requirements", "pyproject.toml"),
    ),
    "group": (
        "[dependency-groups]\nall = ['demo @ {}', '{}']\n",
        ("new", "n", "--from-requirements", "pyproject.toml:all"),
    ),
    "lock": (
        "lock-version = '1.0'\ncreated-by = 'x'\n[[packages]]\nname = 'demo'\nversion = '1.0'\nindex = {!r}\n"
        "wheels = [{{ name = 'demo-1.0-py3-none-any.whl', url = {!r}, hashes = {{ sha256 = '%s' }} }}]\n"
        % ("0" * 64),
        ("export", "--lock", "pylock.toml"),
    ),
    "lock archive": (
        "lock-version = '1.0'\ncreated-by = 'x'\n[[packages]]\nname = 'demo'\nversion = '1.0'\n"
        "archive = {{ url = {!r}, hashes = {{ sha256 = '%s' }} }}\n" % ("0" * 64),
        ("new", "n", "--from-requirements", "pylock.toml"),
    ),
    "pip.conf": ("[global]\nindex-url = {}\nfind-links = {}\nproxy = {}\n", OFFLINE_PLAN),
    "netrc": ("machine 127.0.0.1 login u password hunter2 wrong {}\n", OFFLINE_PLAN),
    "config": (
        "base_model: {!r}\ndatasets: {!r}\nwandb: {!r}\n",
        ("train", "painting.toml", "--config", "config.yaml"),
    ),
}
PLACES = {
    "requirements": "requirements.txt",
    "freeze": "freeze.txt",
    "pyproject": "pyproject.toml",
    "group": "pyproject.toml",
    "lock": "pylock.toml",
    "pip.conf": "home/.config/pip/pip.conf",
    "netrc": "home/.netrc",
    "config": "config.yaml",
}


class Said:
    """Runs commands in this process, and collects what leaks."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys
        self.leaks: list[str] = []
        self.codes: dict[int, int] = {}

    def run(self, argv: tuple[str, ...], **variables: str) -> None:
        environ = {
            "HOME": str(self.folder / "home"),
            "PATH": os.environ["PATH"],
            "COLABLOCK_HOME": str(self.folder / "state"),
            "COLABLOCK_CACHE_DIR": str(self.folder / "cache"),
            "COLABLOCK_RETRIES": "0",
            "COLABLOCK_TIMEOUT": "2",
            "COLUMNS": "300",
            "COLABLOCK_DEFAULT_INDEX": "http://127.0.0.1:9/simple/",
            **variables,
        }
        if variables.keys() & {"UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"}:
            del environ["COLABLOCK_DEFAULT_INDEX"]
        try:
            code = main(argv, environ)
        except SystemExit as error:
            code = int(str(error.code))
        out, err = self.capsys.readouterr()
        self.codes[code] = self.codes.get(code, 0) + 1
        if SECRET in out + err or code not in {0, 1, 2}:
            self.leaks.append(f"{code} {argv} {variables}:\n{out}{err}")


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home/.config/pip").mkdir(parents=True)
    (tmp_path / "painting.toml").write_text(_painting("[packages]\ndemo = '*'\n"))
    return Said(tmp_path, capsys)


def _painting(rest: str) -> str:
    return f'schema = 1\nname = "painting"\n{rest}'


@pytest.mark.parametrize("variable", VARIABLES)
def test_no_variable_leaks_into_a_message(variable: str, said: Said) -> None:
    for url in BAD_URLS:
        values = [url, f"https://127.0.0.1/={url}", f"{url}={url}"] if "MIRRORS" in variable else [url]
        for value in values:
            said.run(VARIABLES[variable], **{variable: value})
    assert said.leaks == []


@pytest.mark.parametrize("argv", ARGUMENTS, ids=" ".join)
def test_no_argument_leaks_into_a_message(argv: tuple[str, ...], said: Said) -> None:
    for url in BAD_URLS:
        said.run(tuple(word.replace("{}", url) for word in argv))
        said.run((*(word.replace("{}", url) for word in argv), "-v"))
    assert said.leaks == []


@pytest.mark.parametrize("place", FILES)
def test_no_line_of_a_file_leaks_into_a_message_or_a_file(place: str, said: Said) -> None:
    text, argv = FILES[place]
    name = PLACES.get(place.partition(" ")[0], "painting.toml")
    for url in BAD_URLS:
        content = text.replace("{!r}", f"'{url}'").replace("{}", url).replace("{{", "{").replace("}}", "}")
        content = content.replace("@ ' '", "@ ").replace("@ ''", "@ ")
        path = said.folder / name
        path.write_text(_painting(content) if name == "painting.toml" else content)
        said.run(argv)
        said.run((*argv, "-v"))
        path.unlink()
        written = [
            one for one in said.folder.rglob("*") if one.is_file() and SECRET.encode() in one.read_bytes()
        ]
        assert written == []
        for left in said.folder.glob("n.*"):
            left.unlink()
    assert said.leaks == []
