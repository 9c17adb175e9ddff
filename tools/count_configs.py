"""Count which training configs of a folder each runner accepts, and what it would not do as written.

    python tools/count_configs.py FOLDER [--single] [--show]

FOLDER is for example the folder `examples` of a clone of axolotl.  Only configs of LoRA and QLoRA
count.  With --single those for several cards, and those of another training, are left out.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from colablock.errors import ColablockError, InvalidConfig
from colablock.training.find_or_start import options_of
from colablock.training.runs.config import read_yaml
from colablock.training.runs.runners import RUNNERS

_SEVERAL_CARDS = (
    "deepspeed",
    "fsdp",
    "fsdp_config",
    "tensor_parallel_size",
    "context_parallel_size",
    "expert_parallel_size",
    "dp_shard_size",
    "use_ray",
)
_OTHER_TRAINING = ("rl", "reward_model", "process_reward_model", "pretraining_dataset")


def configs(folder: Path, *, single: bool) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield every config of an adapter below *folder*."""
    for path in sorted(folder.rglob("*.y*ml")):
        try:
            found = read_yaml(path)
        except ColablockError:
            continue
        if not found.get("base_model") or found.get("adapter") not in ("lora", "qlora"):
            continue
        others = (*_SEVERAL_CARDS, *_OTHER_TRAINING)
        if not single or not any(found.get(key) for key in others):
            yield path, found


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--single", action="store_true", help="only configs for one card")
    parser.add_argument(
        "--show", action="store_true", help="print what is refused, and what is not done as written"
    )
    args = parser.parse_args()
    found = list(configs(args.folder, single=args.single))
    for runner in RUNNERS:
        accepted, faults, told = 0, Counter[str](), Counter[str]()
        for path, _ in found:
            name = path.relative_to(args.folder)
            try:
                instead = options_of(path, runner=runner, values={}).notes
            except InvalidConfig as error:
                faults.update({f"{fault.path.partition('[')[0]}: {fault.message}" for fault in error.faults})
                if args.show:
                    print(f"{runner}: {name}")
            else:
                accepted += 1
                told.update({words.partition(": ")[2].partition(":")[0] for words in instead})
        print(f"{runner}: {accepted} of {len(found)} accepted")
        for kind, counted in (("refused", faults), ("not as written", told)) if args.show else ():
            for words, number in counted.most_common():
                print(f"  {number:4} {kind}: {words}")


if __name__ == "__main__":
    main()
