"""The peers' environments: one folder a group below ``build/peers``, made from pinned requirements.

Needs the standard library only. A whole environment has a stamp that holds the digest of its
requirements: what is made already is left alone, what has changed is made anew.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).resolve().parent / "requirements"
CONSTRAINTS = PROJECT / "constraints.txt"
ENVIRONMENTS = PROJECT / "build" / "peers"
STAMP = ".installed"

GROUPS = ("common", "syne_tune", "llama_factory")


def python_of(group: str) -> Path:
    """Return the interpreter of a group's environment, which may not be made yet."""
    return ENVIRONMENTS / group / "bin" / "python"


def ensure(group: str) -> Path:
    """Make a group's environment unless it is whole and up to date; return its interpreter.

    Raises:
        ValueError: There is no such group.
        subprocess.CalledProcessError: pip failed; it has said why on stderr.
    """
    if group not in GROUPS:
        raise ValueError(f"there is no environment {group!r}. Known: {', '.join(GROUPS)}.")
    folder, digest = ENVIRONMENTS / group, _digest(group)
    stamp = folder / STAMP
    if stamp.is_file() and stamp.read_text() == digest:
        return python_of(group)
    print(f"Installing into {folder} (some minutes, once)", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    _pip(group, "install", "--requirement", str(REQUIREMENTS / f"{group}.txt"))
    _leave_out_cuda(group)
    stamp.write_text(digest)
    return python_of(group)


def _digest(group: str) -> str:
    sha = hashlib.sha256()
    for path in (REQUIREMENTS / f"{group}.txt", CONSTRAINTS):
        sha.update(path.read_bytes())
    return sha.hexdigest()


def _leave_out_cuda(group: str) -> None:
    """Take out what cannot be loaded beside a CPU build of torch, such as lies on some machines.

    PyPI has torchvision and torchaudio only as builds for CUDA. LLaMA-Factory asks for both, and
    for text uses neither; it imports torchaudio, which does without its compiled part.
    """
    (packages,) = (ENVIRONMENTS / group / "lib").glob("python*/site-packages")
    if not list(packages.glob("torch-*+cpu.dist-info")):
        return
    if (packages / "torchvision").exists():
        _pip(group, "uninstall", "--yes", "torchvision")
    for library in (packages / "torchaudio" / "lib").glob("*.so"):
        library.unlink()


def _pip(group: str, *arguments: str) -> None:
    command = [str(python_of(group)), "-m", "pip", "-qq", "--disable-pip-version-check"]
    subprocess.run([*command, *arguments], check=True, stdout=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the environments that are named, or all; print their interpreters."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(GROUPS))
    for group in parser.parse_args(arguments).groups or GROUPS:
        print(ensure(group))


if __name__ == "__main__":
    main()
