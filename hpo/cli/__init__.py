"""The command line: `hpo VERB ...`. Data goes to stdout, everything else to stderr.

Exit codes: 0 done; 1 the study ended without one complete trial; 2 the user's mistake; 130 stopped by
Ctrl-C after saving.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings

from hpo.loading import to_stay

INTERRUPTED = 130


def main() -> None:
    """Run the command line; what a user can mend ends in one message, without a traceback."""
    if os.getcwd() not in sys.path:  # trainers and samplers of the user's own, by dotted path
        sys.path.insert(0, os.getcwd())
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of kernels that it can do without
    ours = logging.StreamHandler()  # libraries bring handlers of their own
    ours.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger("hpo").addHandler(ours)

    with to_stay():
        from hpo.cli.app import app
        from hpo.cli.console import stderr
        from hpo.errors import HpoError

    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments, prog_name="hpo")
    except HpoError as error:
        if debug:
            raise
        stderr.print(f"[bold red]error:[/bold red] {_escaped(str(error))}", soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        stderr.print("stopped at once; `hpo resume` goes on from the last checkpoints.")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        from hpo.storage.database import without_secrets

        stderr.print(
            f"[bold red]error:[/bold red] {type(error).__name__}: "
            f"{_escaped(without_secrets(str(error)))}\nThis should not happen. Type the same with "
            f"--debug for the traceback.",
            soft_wrap=True,
        )
        sys.exit(1)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
