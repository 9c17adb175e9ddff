"""The chores of the project.  Plain ``nox`` runs the same as CI; ``nox --list`` lists all."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nox
from packaging.specifiers import SpecifierSet
from packaging.tags import platform_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
QUICK = ("-m", "not network and not browser and not slow and not stack")
STACK = "qlora-2026"  # the stack of the session `training`
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
DAEMONS = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # where those of Slurm are
RUNNING = f"{sys.version_info[0]}.{sys.version_info[1]}"
# The settings of pip and uv that say where to download from are kept.  Others (a target folder, a constraints
# file, "use the system's Python") would change what the chores do.
FETCHING = re.compile(
    r"(PIP|UV)_(\w*INDEX\w*|FIND_LINKS|CERT|TRUSTED_HOST|PROXY|\w*TIMEOUT|RETRIES|CACHE_DIR|LINK_MODE"
    r"|INSECURE_HOST|NATIVE_TLS|SYSTEM_CERTS|KEYRING_PROVIDER|PYTHON_INSTALL_DIR)"
)
for variable in list(os.environ):
    if variable.startswith(("PIP_", "UV_")) and not FETCHING.fullmatch(variable):
        del os.environ[variable]
# Without bytecode the commands that tests start take half as long again, and a training stack takes three
# times as long.
for variable in ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(variable, None)

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"  # a missing Python is skipped with a message
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["everything"]
BESIDE = ("lint", "types", "minimums", "training", "docs", "build", "vendor")  # what runs beside the tests


def pythons() -> list[str]:
    """Return the Pythons of the classifiers, and the running one."""
    promised = nox.project.python_versions(PYPROJECT)
    return promised if RUNNING in promised else [*promised, RUNNING]


def available_pythons() -> list[str]:
    """Return those of `pythons` that are here, the oldest first."""
    return [python for python in pythons() if python == RUNNING or shutil.which(f"python{python}")]


def group(name: str) -> tuple[str, ...]:
    """Return the requirements of a dependency group (PEP 735)."""
    return nox.project.dependency_groups(PYPROJECT, name)


def files_with(pattern: str) -> list[str]:
    """Return the test files that *pattern* matches.

    To select tests by a mark, pytest would import all files.
    """
    files = sorted(ROOT.glob("tests/**/test_*.py"))
    found = (path for path in files if re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE))
    return [str(path.relative_to(ROOT)) for path in found]


def files_marked(*marks: str) -> list[str]:
    """Return the test files whose ``pytestmark`` has one of *marks* (``markers`` in pyproject.toml)."""
    return files_with(rf"^pytestmark = [^=]*\bpytest\.mark\.({'|'.join(marks)})\b")


def has_chromium() -> bool:
    """Whether Chromium is installed, for the tests of the compatibility page."""
    return any(map(shutil.which, CHROMIUM))


def follow_pip() -> None:
    """Let uv use the index of pip's configuration, unless uv has one of its own.

    uv does not read pip's configuration, and on many machines only pip knows the index.
    """
    if any(name in os.environ for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL")):
        return
    asked = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    found = dict(re.findall(r"^\S*\.(index-url|cert)='(.*)'$", listed, re.MULTILINE))
    if "index-url" in found:
        os.environ["UV_DEFAULT_INDEX"] = found["index-url"]
    if "cert" in found:
        os.environ.setdefault("SSL_CERT_FILE", found["cert"])


def follow_pyenv() -> None:
    """Make all Pythons of pyenv available, after the selected ones."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    chosen = root / "version"
    if "PYENV_VERSION" in os.environ or not chosen.is_file():
        return
    here = [path.name for path in sorted((root / "versions").glob("3.*"))]
    versions = [*chosen.read_text(encoding="utf-8").split(), *here]
    os.environ["PYENV_VERSION"] = ":".join(dict.fromkeys(versions))


follow_pip()
follow_pyenv()


@nox.session(python=False)
def everything(session: nox.Session) -> None:
    """Run the tests of the newest Python and, beside them, one after another, all other sessions of CI.

    Much of the others leaves a core idle.  Their output is printed when they have ended.
    """
    newest = available_pythons()[-1]
    others = [*BESIDE, *(f"tests-{python}" for python in pythons() if python != newest)]
    command = [sys.executable, "-m", "nox", "--noxfile", __file__, "--session"]
    given = ["--", *session.posargs] if session.posargs else []
    log = Path(session.create_tmp()).resolve() / "others.log"
    with (
        log.open("wb") as output,
        subprocess.Popen([*command, *others, *given], stdout=output, stderr=subprocess.STDOUT) as beside,
    ):
        try:
            tests = subprocess.run([*command, f"tests-{newest}", *given], check=False)
            beside.wait()
        finally:
            beside.send_signal(signal.SIGINT)  # nox passes this on to what it has started
    print(log.read_text(encoding="utf-8", errors="replace"), flush=True)
    if tests.returncode or beside.returncode:
        session.error(f"tests-{newest} ended with {tests.returncode}, the others with {beside.returncode}")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format, spelling, import layers, and the workflows for security."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")
    session.run("lint-imports", "--no-logo")
    workflows = ("--offline", "--strict-collection", "--persona", "auditor", "--quiet", ".github")
    session.run("zizmor", *workflows)


@nox.session
def types(session: nox.Session) -> None:
    """Check types strictly."""
    session.install("-e", ".", *group("types"))
    session.run("mypy", *session.posargs)


@nox.session(python=pythons())
def tests(session: nox.Session) -> None:
    """Run all tests on the newest Python, and those that depend on the interpreter on the others.

    The newest Python tries many examples of each property, and tests the compatibility page if Chromium is
    installed.  The oldest Python runs more than those between, since a difference in one of those shows
    in the oldest or the newest, too.
    """
    here = available_pythons()
    is_newest = session.python == here[-1]
    looks = is_newest and has_chromium() and not session.posargs
    session.install("-e", ".", *group("browser" if looks else "test"))
    if session.posargs:
        chosen: list[str] = []
    elif is_newest:
        chosen = ["--dist", "worksteal", "--hypothesis-profile", "thorough"]
        if looks:
            chosen += ["-m", "not network and not stack"]
        else:
            session.log("there is no Chromium here: the tests of the compatibility page are skipped")
    else:
        marks = ("interpreter", "stdlib") if session.python == here[0] else ("interpreter",)
        chosen = [*QUICK, *files_marked(*marks)]
    session.run("pytest", "-n", "auto", *chosen, *session.posargs)


@nox.session
def minimums(session: nox.Session) -> None:
    """Run the tests that depend on our requirements with the lowest allowed versions."""
    session.install("--resolution", "lowest-direct", "-e", ".")
    session.install(*group("test"))  # keeps the installed versions
    session.run("uv", "pip", "list", external=True)
    # These tests compare our resolver with the newest uv.
    chosen = session.posargs or files_marked("requirements")
    session.run("pytest", "-n", "auto", "-k", "not uv_finds", *QUICK, *chosen)


@nox.session
def properties(session: nox.Session) -> None:
    """Try 400 examples of each property; `tests` tries 75 (not run by default)."""
    session.install("-e", ".", *group("test"))
    chosen = ("-m", "hypothesis and not network", "--hypothesis-profile", "exhaustive")
    session.run("pytest", "-n", "auto", *chosen, *files_with("^from hypothesis import"), *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    """Test the compatibility page in Chromium, as `tests` does too (not run by default)."""
    if not has_chromium():
        session.skip(f"there is no Chromium here (none of {', '.join(CHROMIUM)})")
    session.install("-e", ".", *group("browser"))
    session.run("pytest", "-m", "browser", "tests/display/test_compat_page_browser.py", *session.posargs)


def python_with_torch() -> tuple[str, str] | None:
    """Return a Python, and a folder of pip's find-links with a CPU build of torch for it."""
    asked = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    said = re.findall(r"^\S*\.find-links='(.*)'$", listed, re.MULTILINE)
    wanted = nox.project.load_toml(ROOT / "matrices" / f"{STACK}.toml")["packages"]["torch"]["version"]
    for place in dict.fromkeys(" ".join([os.environ.get("PIP_FIND_LINKS", ""), *said]).split()):
        folder = Path(place.removeprefix("file://"))
        for wheel in sorted(folder.glob("torch-*+cpu-*.whl"), reverse=True):
            _, version, _, tags = parse_wheel_filename(wheel.name)
            fits = version in SpecifierSet(wanted) and any(tag.platform in platform_tags() for tag in tags)
            found = [interpreter(tag.interpreter) for tag in tags if fits]
            if found and found[0]:
                return found[0], str(folder)
    return None


def interpreter(tag: str) -> str | None:
    """Return the interpreter for a tag like ``cp311``; None if it is not here."""
    python = shutil.which(f"python3.{tag.removeprefix('cp3')}")
    if python is None:
        return None
    asked = [python, "-c", "import sys; print(sys.executable)"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or None


def applied_stack(session: nox.Session, python: str, folder: str) -> dict[str, str]:
    """Apply the stack with the torch in *folder*, and return the variable that names it to the tests."""
    session.install("-e", ".", *group("test"))
    home = Path(session.create_tmp()).resolve() / "home"
    where = ("--into", "env", "--variant", "cpu", "--python", python, "--find-links", folder)
    session.run("colablock", "apply", STACK, *where, env={"COLABLOCK_HOME": str(home)})
    return {"COLABLOCK_TEST_HOME": str(home)}


@nox.session
def slurm(session: nox.Session) -> None:
    """Run a job past its time limit in a Slurm on 127.0.0.1 (not run by default); ten minutes, as root."""
    lacking = [name for name in ("munged", "slurmctld", "slurmd") if not shutil.which(name, path=DAEMONS)]
    if lacking or os.geteuid() != 0:
        session.skip(f"needs root, and slurmctld, slurmd, slurm-client and munge; missing: {lacking}")
    found = python_with_torch()
    if found is None:
        session.skip("no folder of pip's find-links has a `+cpu` build of torch")
    stack = applied_stack(session, *found)
    session.run("pytest", "-s", "-m", "stack", "tests/training/test_slurm.py", *session.posargs, env=stack)


@nox.session
def training(session: nox.Session) -> None:
    """Apply a stack and train in it on the CPU (``-- --whole``: all tests); needs a `+cpu` torch."""
    found = python_with_torch()
    if found is None:
        session.skip("no folder of pip's find-links has a `+cpu` build of torch")
    stack = applied_stack(session, *found)
    marks = "stack" if "--whole" in session.posargs else "stack and not slow"
    files = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/training/test_real_stack*.py"))
    more = [argument for argument in session.posargs if argument != "--whole"]
    session.run("pytest", "-n", "2", "--dist", "loadfile", "-m", marks, *files, *more, env=stack)


@nox.session
def exports(session: nox.Session) -> None:
    """Have hadolint, BuildKit's parser, shellcheck and SkyPilot read the exports (not run by default)."""
    session.install("-e", ".", *group("exports"))
    session.run("pytest", "tests/deployment", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Interrupt a change at each operation; try every command on machines that fail (not run by default)."""
    session.install("-e", ".", *group("test"))
    # Some tests take a quarter of an hour.
    files = [f"tests/transaction/test_{name}.py" for name in ("faults", "undo_over_others")]
    files += ["tests/hostile/test_machine.py"]
    session.run("pytest", "-n", "auto", "--dist", "worksteal", *files, "--every-fault", *session.posargs)


@nox.session
def kills(session: nox.Session) -> None:
    """Kill commands sixty times over an environment of fifty distributions (not run by default)."""
    session.install("-e", ".", *group("test"))
    session.run("pytest", "tests/hostile/test_kills.py", "--every-fault", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Try 100,000 hostile inputs on the parsers of foreign bytes (not run by default)."""
    session.install("-e", ".", *group("test"))
    jobs = str(os.cpu_count() or 2)
    session.run("python", "-m", "tests.fuzz", "--jobs", jobs, "--keep", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning or a stale generated page is an error."""
    session.install("-e", ".", *group("docs"))
    session.run("python", "docs/generate.py", "--check")
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html")


@nox.session
def screenshots(session: nox.Session) -> None:
    """Take the pictures of the documentation again (not run by default); needs a Chromium."""
    session.install("-e", ".", "pillow", *group("browser"))
    session.run("python", "docs/screenshots.py")


@nox.session
def bench(session: nox.Session) -> None:
    """Compare the run time with uv, pip-tools and PDM (not run by default)."""
    session.install("-e", ".", *group("bench"))
    session.run("python", "-m", "benchmarks.bench", *session.posargs)


@nox.session
def differential(session: nox.Session) -> None:
    """Resolve 300 random problems beside uv and an oracle (not run by default; ``-- --first SEED``)."""
    session.install("-e", ".", *group("test"))
    session.run("python", "-m", "benchmarks.differential", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build sdist and wheel, check their metadata, and run the installed wheel."""
    session.install(*group("build"))
    dist = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--no-isolation", "--outdir", str(dist))
    session.run("twine", "check", "--strict", *map(str, dist.iterdir()))
    (wheel,) = dist.glob("*.whl")
    session.install(str(wheel))
    with session.chdir(dist):
        session.run("colablock", "list")


def resolved(session: nox.Session, resolution: str) -> Path:
    """Return a requirements file with what the wheel requires, in exact versions."""
    path = Path(session.create_tmp()).resolve() / f"{resolution}.txt"
    how = ("--universal", "--resolution", resolution, "--python-version", "3.10", "--quiet", "--no-header")
    session.run("uv", "pip", "compile", *how, "pyproject.toml", "--output-file", str(path), external=True)
    return path


def pip_audit(session: nox.Session, requirements: Path) -> list[str]:
    """Return the known vulnerabilities of exact requirements; none too where no service answers."""
    asked = ("--requirement", str(requirements), "--no-deps", "--disable-pip", "--timeout", "10")
    quiet = ("--format", "json", "--progress-spinner", "off")
    said = session.run("pip-audit", *asked, *quiet, silent=True, success_codes=[0, 1], stderr=None)
    try:
        found = json.loads(str(said))["dependencies"]
    except (ValueError, LookupError):
        return []
    return [f"{one['name']} {one['version']}: {v['id']}" for one in found for v in one.get("vulns", ())]


@nox.session
def audit(session: nox.Session) -> None:
    """Look for known vulnerabilities in what the wheel requires (not run by default); needs advisories.

    Those of the newest versions are an error.  Those of the lowest are printed: SECURITY.md says why some
    bounds cannot be raised.
    """
    session.install(*group("audit"))
    canary = Path(session.create_tmp()).resolve() / "canary.txt"
    canary.write_text("urllib3==1.24.1\n", encoding="utf-8")  # it has known vulnerabilities
    if not pip_audit(session, canary):
        session.skip("no advisory service answers here")
    for line in pip_audit(session, resolved(session, "lowest-direct")):
        session.warn(f"at the lower bounds: {line}")
    found = pip_audit(session, resolved(session, "highest"))
    if found:
        session.error("\n".join(found))


@nox.session
def pins(session: nox.Session) -> None:
    """Write the hashed requirements of the workflows again (not run by default)."""
    folder = ROOT / ".github" / "requirements"
    how = ("--universal", "--python-version", "3.10", "--generate-hashes", "--quiet", "--no-header")
    for source, name in ((folder / "release.in", "release.txt"), (ROOT / "pyproject.toml", "runtime.txt")):
        made = ("--upgrade", str(source.relative_to(ROOT)), "--output-file", str(folder / name))
        session.run("uv", "pip", "compile", *how, *made, external=True)


@nox.session
def vendor(session: nox.Session) -> None:
    """Vendor what colablock/_vendor/vendor.txt lists; a difference is an error (``-- --update``: take it)."""
    session.install("pip", *group("vendor"))
    # In a copy: a failed download must not leave the package without its vendored parts.
    scratch = Path(session.create_tmp()).resolve() / "vendor"
    shutil.rmtree(scratch, ignore_errors=True)
    vendored = Path("colablock", "_vendor")
    shutil.copytree(ROOT / vendored, scratch / vendored, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", scratch)
    with session.chdir(scratch):
        # `vendoring` downloads into a folder of a fixed name below TMPDIR.
        session.run("vendoring", "sync", env={"TMPDIR": str(scratch)})
    if "--update" in session.posargs:
        shutil.rmtree(ROOT / vendored)
        shutil.copytree(scratch / vendored, ROOT / vendored)
    session.run("diff", "-r", "-x", "__pycache__", str(vendored), str(scratch / vendored), external=True)
