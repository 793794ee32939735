"""The command line of the demos' preparation: ``python -m hpo.demo model`` and the data sets.

What it made goes to stdout as one path, everything else to stderr.
"""

import argparse
import sys
from pathlib import Path

from hpo.demo.model import DemoError, cache_folder, prepare_model


def main() -> int:
    """Run one preparation; return the exit code."""
    arguments = _parser().parse_args()
    try:
        print(_prepare(arguments))
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _prepare(arguments: argparse.Namespace) -> Path:
    # A data set's module is imported when asked for: the model needs neither.
    if arguments.what == "model":
        return prepare_model(cache_folder())
    if arguments.what == "docstrings":
        from hpo.demo.docstrings import write_docstrings

        return write_docstrings(arguments.out)
    from hpo.demo.smart_home import write_smart_home

    return write_smart_home(arguments.out, arguments.seed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hpo.demo", description=__doc__)
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    what.add_parser("model", help="fetch and convert the small model; print its folder")
    docstrings = what.add_parser("docstrings", help="Python functions -> their one-line docstring")
    smart_home = what.add_parser("smart-home", help="spoken commands -> intent as JSON")
    for data_set in (docstrings, smart_home):
        data_set.add_argument("--out", type=Path, default=Path("data"), help="default: data")
    smart_home.add_argument("--seed", type=int, default=0, help="which sentences are drawn")
    return parser


if __name__ == "__main__":
    sys.exit(main())
