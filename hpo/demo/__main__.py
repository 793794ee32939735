"""The command line of the demos: ``python -m hpo.demo model``, the data sets, and ``compare``.

What it made goes to stdout, everything else to stderr.
"""

import argparse
import sys
from pathlib import Path

from hpo.demo.model import DemoError, prepare_model
from hpo.errors import HpoError
from hpo.store.scratch import cache_folder


def main() -> int:
    """Run one preparation; return the exit code."""
    arguments = _parser().parse_args()
    try:
        if arguments.what == "compare":
            _compare(arguments)
        else:
            print(_prepare(arguments))
    except HpoError as error:
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


def _compare(arguments: argparse.Namespace) -> None:
    from hpo.cli.target import find_target
    from hpo.demo.compare import compare

    record = find_target(arguments.study, arguments.storage).open()
    best = record.best()
    if best is None:
        raise DemoError(f"the study {record.name!r} has no completed trial to compare.")
    compare(record, best, arguments.answers, arguments.scored)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hpo.demo", description=__doc__)
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    what.add_parser("model", help="fetch and convert the small model; print its folder")
    docstrings = what.add_parser("docstrings", help="Python functions -> their one-line docstring")
    smart_home = what.add_parser("smart-home", help="spoken commands -> intent as JSON")
    beside = what.add_parser("compare", help="a study's best adapter beside the untuned model")
    beside.add_argument("study", help="a study's name, or its YAML file")
    beside.add_argument("--storage", help="as for hpo")
    beside.add_argument("--answers", type=int, default=5, help="to show; default: 5")
    beside.add_argument("--scored", type=int, default=100, help="JSON answers; default: 100")
    for data_set in (docstrings, smart_home):
        data_set.add_argument("--out", type=Path, default=Path("data"), help="default: data")
    smart_home.add_argument("--seed", type=int, default=0, help="which sentences are drawn")
    return parser


if __name__ == "__main__":
    sys.exit(main())
