"""Compare the static search for undeclared imports with what fails at run time.

::

    python tools/undeclared_imports_truth.py --python ENV/bin/python trl:trl.scripts.sft peft accelerate

The entry modules of each installed distribution are imported in fresh processes of ENV.  They follow the
colon; without them, the top-level modules are taken.  The first process records which other top-level names
the distribution's own modules import.  Each further process hides one of these names: importing it fails in
these modules, and neither its spec nor its metadata is found, as in a clean environment.  If the import of
the entry fails, the name is required.

Two results are compared with ``colablock.check.findings``.  The names that it reports as errors when
nothing in ENV provides them are compared with the required names.  All names that it reaches are compared
with all names that were imported.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from colablock._vendor.packaging.utils import NormalizedName  # noqa: E402 - run as a script
from colablock.check.findings import ExaminedDistribution, Severity, import_findings  # noqa: E402
from colablock.check.import_names import ImportProvider, ImportProviders, modules_of  # noqa: E402
from colablock.check.import_statements import ImportTime  # noqa: E402
from colablock.check.reachable_imports import Import, ReachableImports, find_reachable_imports  # noqa: E402

FACTS = """
import importlib.metadata, json, os, platform, sys
markers = {
    "python_full_version": platform.python_version(),
    "sys_platform": sys.platform,
    "os_name": os.name,
    "platform_system": platform.system(),
    "platform_machine": platform.machine(),
    "platform_python_implementation": platform.python_implementation(),
}
files = {str(file): str(file.locate()) for file in importlib.metadata.distribution(sys.argv[1]).files}
version = importlib.metadata.version(sys.argv[1])
others = {
    one.name: [one.version, *map(str, one.files or ())]
    for one in importlib.metadata.distributions()
    if one.name != importlib.metadata.distribution(sys.argv[1]).name
}
json.dump({"markers": markers, "files": files, "version": version, "others": others}, sys.stdout)
"""
#: argv: the entry modules and the own top-level names.  The first trial shows what is asked for and loaded.
#: What of that belongs to others is then loaded once, and each further trial is a fork of this process.
CHILD = """
import builtins, functools, gc, importlib, importlib.metadata, importlib.util, json, os, sys
entries, own = json.loads(sys.argv[1]), set(json.loads(sys.argv[2]))
answers = os.dup(1)
os.dup2(2, 1)
real_import, real_module, real_spec = builtins.__import__, importlib.import_module, importlib.util.find_spec
real_name, owners = importlib.metadata.Distribution.from_name, importlib.metadata.packages_distributions()
asked, missing = {}, None

def is_absent(name, importer):
    top = name.partition(".")[0]
    if not top or top in own or str(importer).partition(".")[0] not in own or top in sys.stdlib_module_names:
        return False
    asked.setdefault(top, importer)
    return top == missing

def refuse(name):
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def hooked(name, globals=None, locals=None, fromlist=(), level=0):
    if not level and is_absent(name, (globals or {}).get("__name__", "")):
        refuse(name)
    return real_import(name, globals, locals, fromlist, level)

def hooked_module(name, package=None):
    if not name.startswith(".") and is_absent(name, sys._getframe(1).f_globals.get("__name__", "")):
        refuse(name)
    return real_module(name, package)

def hooked_spec(name, package=None):
    return None if missing and name.partition(".")[0] == missing else real_spec(name, package)

def plain(name):
    return name.lower().replace("_", "-")

def hooked_name(name):
    if missing and plain(name) in {missing, *map(plain, owners.get(missing, ()))}:
        raise importlib.metadata.PackageNotFoundError(name)
    return real_name(name)

def outcome():
    try:
        for entry in entries:
            real_module(entry)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:200]
    return ""

def trial(name):
    global missing
    reading, writing = os.pipe()
    if not os.fork():
        missing = name
        for one in gc.get_objects():  # who has asked before whether it is there asks again
            if name and isinstance(one, functools._lru_cache_wrapper):
                one.cache_clear()
        ended = outcome()
        others = [name for name in sys.modules if name.partition(".")[0] not in own]
        with open(writing, "w") as stream:
            json.dump([name, ended, asked, others], stream)
        os._exit(0)
    os.close(writing)
    with open(reading) as stream:
        text = stream.read()
    os.wait()
    return json.loads(text or json.dumps([name, "the process died", {}, []]))

builtins.__import__, importlib.import_module, importlib.util.find_spec = hooked, hooked_module, hooked_spec
importlib.metadata.Distribution.from_name = hooked_name
first = trial("")
for name in first[3]:
    try:
        real_module(name)
    except BaseException:
        pass
for name in [name for name in sys.modules if name.partition(".")[0] in own]:
    del sys.modules[name]
trials = [first, *map(trial, sorted(first[2]))]
os.write(answers, json.dumps([one[:3] for one in trials]).encode())
os._exit(0)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A distribution in an environment, and where it is entered."""

    python: str
    name: str
    entries: tuple[str, ...]
    tops: tuple[str, ...]
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, python: str, text: str) -> Case:
        """Return the case of ``distribution`` or ``distribution:module,module``."""
        name, _, entries = text.partition(":")
        done = subprocess.run([python, "-c", FACTS, name], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr.splitlines()[-1]}")
        facts = json.loads(done.stdout)
        tops = sorted({module.partition(".")[0] for module in modules_of(facts["files"]).names})
        return cls(
            python=python,
            name=name,
            entries=tuple(entries.split(",")) if entries else tuple(tops),
            tops=tuple(tops),
            facts=facts,
        )

    def reached(self) -> ReachableImports:
        """Return what the walk finds."""
        files = {
            name: Path(path).read_bytes() if name.endswith(".py") else b""
            for name, path in self.facts["files"].items()
        }
        return find_reachable_imports(files, self.entries, self.facts["markers"])

    def errors(self, reached: ReachableImports) -> set[str]:
        """Return the names that are errors where nothing provides them and everything else is as it is."""
        names = {one.name.partition(".")[0] for one in reached.imports if not one.own}
        return {name for name in names if name in self._missing(reached, name)}

    def _missing(self, reached: ReachableImports, without: str) -> set[str]:
        providers = {}
        for name, (version, *files) in self.facts["others"].items():
            paths = [path for path in files if re.split(r"[/.]", path)[0] != without]
            named = NormalizedName(name)
            providers[named] = ImportProvider(name=named, version=version, modules=modules_of(paths))
        examined = ExaminedDistribution(
            name=NormalizedName(self.name), version="", reachable=reached, declared=frozenset(providers)
        )
        findings = import_findings(examined, ImportProviders(providers), {})
        return {one.name.partition(".")[0] for one in findings if one.severity is Severity.ERROR}

    def run(self) -> dict[str, tuple[str, dict[str, str]]]:
        """Return how each trial ended ("" for well) and what was asked for by whom, by what was missing.

        "" is the trial in which nothing is.
        """
        arguments = [json.dumps(self.entries), json.dumps(self.tops)]
        environ = {**os.environ, "MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(
            [self.python, "-c", CHILD, *arguments], capture_output=True, text=True, check=False, env=environ
        )
        return {missing: (ended, asked) for missing, ended, asked in json.loads(done.stdout)}


def examine(case: Case) -> dict[str, set[str]]:
    """Print how the walk of *case* compares with the truth, and return the four sets of names."""
    reached = case.reached()
    places: dict[str, Import] = {}
    for one in reached.imports:
        places.setdefault(one.name if one.own else one.name.partition(".")[0], one)
    errors = case.errors(reached)
    trials = case.run()
    whole, asked = trials[""]
    required = {name for name in asked if trials[name][0]} if not whole else set()
    print(f"{case.name} {case.facts['version']} at {', '.join(case.entries)}" + (whole and f": {whole}"))
    print(f"  errors   {score(errors, required)}")
    print(f"  overall  {score(set(places), set(asked))}")
    for name in sorted(errors - required):
        print(
            f"  false alarm: {name} ({places[name].where}), {'asked for' if name in asked else 'not asked'}"
        )
    for name in sorted(required - errors):
        kind = places[name].kind.name.lower() if name in places else "not reached"
        print(f"  missed: {name} (walk: {kind}; {asked[name]}): {trials[name][0]}")
    for name in sorted(asked.keys() - places.keys()):
        print(f"  not reached: {name}, asked for by {asked[name]}")
    for one in reached.imports:
        if one.own and one.kind is ImportTime.HARD:
            print(f"  own and not there: {one.name} ({one.where})")
    sys.stdout.flush()
    return {"errors": errors, "required": required, "reached": set(places), "asked": set(asked)}


def score(said: set[str], true: set[str]) -> str:
    """Return precision and recall in words."""
    both = len(said & true)
    precision = f"{both}/{len(said)}"
    return f"precision {precision:>7}   recall {both}/{len(true)}"


def main() -> None:
    """Examine what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="an interpreter that has them installed")
    parser.add_argument("distributions", nargs="+", metavar="DISTRIBUTION[:MODULE,...]")
    arguments = parser.parse_args()
    totals: dict[str, set[str]] = {"errors": set(), "required": set(), "reached": set(), "asked": set()}
    for text in arguments.distributions:
        for key, names in examine(Case.of(arguments.python, text)).items():
            totals[key] |= {f"{text} {name}" for name in names}
    print("all")
    print(f"  errors   {score(totals['errors'], totals['required'])}")
    print(f"  overall  {score(totals['reached'], totals['asked'])}")


if __name__ == "__main__":
    main()
