"""The groups of the commands in the top-level help, two examples of each, and words for them elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["EXAMPLES", "GROUPS", "OF_THE_ADAPTER", "OTHER_WORDS", "REFERENCE", "WHERE"]

#: The reference page of the command line, in the source.  It has a heading for each command.
REFERENCE: Final = "docs/reference/cli.md"
#: An installed colablock has no pages, and the repository has no address yet.
WHERE: Final = "in colablock's repository"

#: The headings of the top-level help, in the order of the work.
GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "Install a training stack": ("plan", "apply", "verify", "run", "why", "rollback", "history"),
    "Train": ("new-config", "train", "smoke", "runs", "explain"),
    "Lock and check": ("lock", "export", "bundle", "check", "audit"),
    "Find and write matrices": ("list", "show", "new", "schema"),
    "Look at this machine": ("info", "runtime", "env", "cache", "completion"),
}

#: Two command lines for each command.
EXAMPLES: Final[Mapping[str, tuple[str, str]]] = {
    "plan": ("plan qlora-2026", "plan qlora-2026 --runtime colab-2026.08-gpu"),
    "apply": ("apply qlora-2026", "apply qlora-2026 --into env --yes"),
    "verify": ("verify qlora-2026", "verify ./matrices/mine.toml --json"),
    "run": ("run qlora-2026 -- python train.py", "run qlora-2026 -- accelerate env"),
    "why": ("why qlora-2026 torch", "why qlora-2026 --not torchao"),
    "rollback": ("rollback", "rollback --to first --yes"),
    "history": ("history", "history --drop 2"),
    "new-config": (
        "new-config qlora-2026 -o config.yaml",
        "new-config --model Qwen/Qwen3-8B --dataset data.jsonl --card T4",
    ),
    "train": (
        "train qlora-2026 --config config.yaml",
        "train qlora-2026 --model Qwen/Qwen3-8B --dataset data.jsonl",
    ),
    "smoke": ("smoke qlora-2026", "smoke qlora-2026 --receipt receipt.json"),
    "runs list": ("runs list", "runs list --json"),
    "runs show": ("runs show", "runs show outputs/first"),
    "runs follow": ("runs follow", "runs follow outputs/first"),
    "runs stop": ("runs stop", "runs stop outputs/first --wait"),
    "runs plot": ("runs plot -o loss.png", "runs plot outputs/first -o loss.svg"),
    "explain": ("explain run.log", "explain run.log --python /usr/bin/python3"),
    "lock": ("lock ./matrices/mine.toml", "lock ./matrices/mine.toml --all --check"),
    "export": (
        "export qlora-2026 -o requirements.txt",
        "export qlora-2026 --python-version 3.12 --format notebook",
    ),
    "bundle": (
        "bundle qlora-2026 -o qlora.bundle",
        "bundle qlora-2026 --runtime colab-2026.08-gpu -o qlora.bundle",
    ),
    "check": ("check qlora-2026", "check --all --html compatibility.html"),
    "audit": ("audit qlora-2026", "audit qlora-2026 --all --json"),
    "list": ("list", "list --json"),
    "show": ("show qlora-2026", "show ./matrices/mine.toml"),
    "new": ("new mine --from-requirements requirements.txt", "new mine --extends qlora-2026"),
    "schema": ("schema", "schema -o matrices/matrix-1.schema.json"),
    "info": ("info", "info --python /usr/bin/python3"),
    "runtime list": ("runtime list", "runtime list --json"),
    "runtime show": ("runtime show colab-2026.08-gpu", "runtime show colab-2026.08-gpu --all"),
    "runtime diff": (
        "runtime diff colab-2026.07-gpu colab-2026.08-gpu",
        "runtime diff colab-2026.07-gpu colab-2026.08-gpu --json",
    ),
    "runtime import": (
        "runtime import - --name kaggle-2026.10-gpu --python-version 3.12.11",
        "runtime import freeze.txt --name lab-cpu --python-version 3.12.11",
    ),
    "runtime record": (
        "runtime record --name kaggle-2026.10-gpu",
        "runtime record --name lab-cpu --python /usr/bin/python3",
    ),
    "env list": ("env list", "env list --json"),
    "env remove": ("env remove qlora-2026", "env remove 3fb1c2"),
    "cache dir": ("cache dir", "cache dir --json"),
    "cache info": ("cache info", "cache info --json"),
    "cache prune": ("cache prune", "cache prune --older-than 30"),
    "cache clean": ("cache clean", "cache clean torch transformers"),
    "completion": ("completion bash", "completion zsh"),
}

#: Commands by the words that other tools have for them.
OTHER_WORDS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("install", "sync", "setup", "add"), "apply"),
    **dict.fromkeys(("uninstall", "undo", "revert", "restore"), "rollback"),
    **dict.fromkeys(("upgrade", "update"), "lock --upgrade"),
    **dict.fromkeys(("compile", "resolve"), "lock"),
    **dict.fromkeys(("resume", "continue", "finetune"), "train"),
    **dict.fromkeys(("status", "ps"), "runs list"),
    **dict.fromkeys(("logs", "log"), "runs show"),
    **{word: f"runs {word}" for word in ("follow", "plot", "stop")},
    "doctor": "info",
    **dict.fromkeys(("exec", "shell"), "run"),
    "debug": "explain",
    "init": "new",
    "remove": "env remove",
    "test": "smoke",
    "tree": "why",
}

#: What only Python has: methods of a run.
OF_THE_ADAPTER: Final = ("download", "generate", "merge", "push")
