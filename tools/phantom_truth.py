"""Hold the static walk of a distribution's imports against what really happens.

::

    python tools/phantom_truth.py --python ENV/bin/python trl:trl.cli peft accelerate

For each installed distribution (with modules to enter at, else its top-level ones) the entry modules are
imported in fresh processes of ENV.  The first notes which other top-level names the distribution's own
modules ask for.  Then, one name at a time, that name alone is missing for these modules, as it would be in
a clean environment: if the import of the entry fails, it is required, else it is not.  This is compared
with what ``colablock.reached`` says: hard imports against required names (errors), and all that is reached
against all that was asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from colablock.import_statements import Kind  # noqa: E402 - run as a script
from colablock.modules import modules_of  # noqa: E402
from colablock.reached import reached_imports  # noqa: E402

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
json.dump({"markers": markers, "files": files, "version": version}, sys.stdout)
"""
#: argv: the entry modules and the own top-level names.  What others bring is loaded once: each trial is a
#: fork that imports the own modules anew.  The first, without anything missing, shows that this can be done.
CHILD = """
import builtins, importlib, importlib.util, json, os, sys
entries, own = json.loads(sys.argv[1]), set(json.loads(sys.argv[2]))
answers = os.dup(1)
os.dup2(2, 1)
real_import, real_module, real_spec = builtins.__import__, importlib.import_module, importlib.util.find_spec
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
    importer = str(sys._getframe(1).f_globals.get("__name__", ""))
    if missing and name.partition(".")[0] == missing and importer.partition(".")[0] in own:
        return None
    return real_spec(name, package)

def outcome():
    for name in [name for name in sys.modules if name.partition(".")[0] in own]:
        del sys.modules[name]
    try:
        for entry in entries:
            real_module(entry)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:200]
    return ""

def tell(trial, ended):
    os.write(answers, json.dumps([trial, ended, asked]).encode() + b"\\n")

builtins.__import__, importlib.import_module, importlib.util.find_spec = hooked, hooked_module, hooked_spec
tell(None, outcome())
for missing in ["", *sorted(asked)]:
    if os.fork():
        os.wait()
    else:
        tell(missing, outcome())
        os._exit(0)
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
        done = subprocess.run([python, "-c", FACTS, name], capture_output=True, text=True, check=True)
        facts = json.loads(done.stdout)
        tops = sorted({module.partition(".")[0] for module in modules_of(facts["files"]).names})
        return cls(
            python=python,
            name=name,
            entries=tuple(entries.split(",")) if entries else tuple(tops),
            tops=tuple(tops),
            facts=facts,
        )

    def predicted(self) -> dict[str, tuple[Kind, str]]:
        """Return the reached top-level names, each with the strongest kind and where that is."""
        files = {
            name: Path(path).read_bytes() if name.endswith(".py") else b""
            for name, path in self.facts["files"].items()
        }
        found: dict[str, tuple[Kind, str]] = {}
        for one in reached_imports(files, self.entries, self.facts["markers"]).imports:
            found.setdefault(one.name if one.own else one.name.partition(".")[0], (one.kind, one.where))
        return found

    def run(self) -> dict[str | None, tuple[str, dict[str, str]]]:
        """Return how each trial ended ("" for well) and what was asked for by whom, by what was missing.

        None and "" are the trials in which nothing is: in the process itself, and in a fork of it.
        """
        arguments = [json.dumps(self.entries), json.dumps(self.tops)]
        environ = {**os.environ, "MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(
            [self.python, "-c", CHILD, *arguments], capture_output=True, text=True, check=False, env=environ
        )
        return {trial: (ended, asked) for trial, ended, asked in map(json.loads, done.stdout.splitlines())}


def examine(case: Case) -> dict[str, set[str]]:
    """Print how the walk of *case* compares with the truth, and return the four sets of names."""
    predicted = case.predicted()
    trials = case.run()
    asked = trials[None][1]
    whole = trials[None][0] or trials.get("", ("no second import", {}))[0]
    required = {name for name in asked if name not in trials or trials[name][0]} if not whole else set()
    hard = {name for name, (kind, _) in predicted.items() if kind is Kind.HARD}
    print(f"{case.name} {case.facts['version']} at {', '.join(case.entries)}" + (whole and f": {whole}"))
    print(f"  errors   {score(hard, required)}")
    print(f"  overall  {score(set(predicted), set(asked))}")
    for name in sorted(hard - required):
        print(
            f"  false alarm: {name} ({predicted[name][1]}), {'asked for' if name in asked else 'not asked'}"
        )
    for name in sorted(required - hard):
        kind = predicted[name][0].name.lower() if name in predicted else "not reached"
        print(f"  missed: {name} (walk: {kind}; {asked[name]}): {trials[name][0]}")
    for name in sorted(asked.keys() - predicted.keys()):
        print(f"  not reached: {name}, asked for by {asked[name]}", flush=True)
    return {"hard": hard, "required": required, "reached": set(predicted), "asked": set(asked)}


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
    totals: dict[str, set[str]] = {"hard": set(), "required": set(), "reached": set(), "asked": set()}
    for text in arguments.distributions:
        for key, names in examine(Case.of(arguments.python, text)).items():
            totals[key] |= {f"{text} {name}" for name in names}
    print("all")
    print(f"  errors   {score(totals['hard'], totals['required'])}")
    print(f"  overall  {score(totals['reached'], totals['asked'])}")


if __name__ == "__main__":
    main()
