"""Runs `hpo` within this process: what a user types, without the seconds that a new process takes."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

from hpo.cli import main
from tests.integration.command import Result


def hpo_here(folder: Path, *arguments: str, debug: bool = False) -> Result:
    """Run `hpo` in a folder.

    Args:
        folder: Is the working directory meanwhile.
        arguments: The command line.
        debug: Raise errors instead of telling them.
    """
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["hpo", *arguments, *(["--debug"] if debug else [])]
    code: object = 0
    try:
        with (
            contextlib.chdir(folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = before
    assert isinstance(code, int), code
    return Result(code, out.getvalue(), err.getvalue())
