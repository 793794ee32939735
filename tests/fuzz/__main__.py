"""``python -m tests.fuzz --files 10000 --seed 1``: prints ``files N, failures 0, seconds S``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.fuzz.fuzzer import run
from tests.fuzz.guard import Canary
from tests.fuzz.surfaces import SURFACES, all_surfaces


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--files", type=int, default=1000, help="How many inputs to try.")
    parser.add_argument("--seed", type=int, default=0, help="The same seed tries the same inputs.")
    parser.add_argument("--only", choices=sorted(SURFACES), action="append", help="These surfaces.")
    parser.add_argument("--keep", type=Path, help="A folder for the inputs that fail.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        os.environ["HPO_CACHE"] = str(folder / "cache")
        os.chdir(folder)
        surfaces = all_surfaces(folder / "made", arguments.only)
        canary = Canary(folder / "CANARY")
        outcome = run(surfaces, arguments.files, arguments.seed, folder / "tried", canary)
    kinds: dict[str, list[int]] = {}
    for failure in outcome.failures:
        numbers = kinds.setdefault(failure.kind, [])
        if not numbers:
            print(
                f"\n--- {failure.surface} {failure.name}, input {failure.number}", file=sys.stderr
            )
            print(repr(failure.content[:1500]), file=sys.stderr)
            print(failure.what, file=sys.stderr)
        numbers.append(failure.number)
        if arguments.keep:
            arguments.keep.mkdir(parents=True, exist_ok=True)
            (arguments.keep / f"{failure.surface}-{failure.number}").write_bytes(failure.content)
    for kind, numbers in sorted(kinds.items(), key=lambda item: -len(item[1])):
        print(f"{len(numbers)} x {kind} (input {numbers[0]})", file=sys.stderr)
    counted = ", ".join(f"{name} {count}" for name, count in outcome.by_surface.most_common())
    print(counted, file=sys.stderr)
    print(outcome.line)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
