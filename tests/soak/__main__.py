"""`python -m tests.soak`: kills for SOAK_MINUTES, then says what that has cost."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.soak.soak import Soak, described, told


def main() -> int:
    """Run the matrix if asked, then the soak; return 1 if anything was lost, left or done twice."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    minutes = float(os.environ.get("SOAK_MINUTES") or 20)
    parser.add_argument("--minutes", type=float, default=minutes, help="default: SOAK_MINUTES, 20")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the victims")
    parser.add_argument(
        "--storage", help="URL of an empty database; default: SQLite, in the folder"
    )
    parser.add_argument("--matrix", action="store_true", help="first kill at every named point")
    args = parser.parse_args()
    held = not args.matrix or _matrix_holds()
    # A short name: Ray's sockets lie below it, and their paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    url = args.storage or f"sqlite:///{folder / 'hpo.db'}"
    soak = Soak(folder, url, args.minutes * 60, args.seed, {"RAY_TMPDIR": str(folder / "ray")})
    soak.soak()
    print(described(soak), file=sys.stderr)
    if soak.found.all:
        print(f"The study and its log are in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    print(told(soak))
    return 1 if soak.found.all or not held else 0


def _matrix_holds() -> bool:
    """Kill at every named point, at the ones of a real `hpo run` too; what is said is for people."""
    pytest = [sys.executable, "-m", "pytest", "-m", "soak", "tests"]
    return subprocess.run(pytest, stdout=sys.stderr, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
