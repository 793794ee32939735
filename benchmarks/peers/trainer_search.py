"""transformers' ``Trainer.hyperparameter_search`` with its Optuna backend: TPE and SuccessiveHalving.

Side by side, as Optuna's documentation has it: several processes on one journal. What each of them
does is ``trainer_process``.
"""

from __future__ import annotations

from events import Events
from processes import run_workers
from workload import parse_arguments


def main() -> None:
    """Search, or follow the script."""
    arguments = parse_arguments(__doc__)
    Events(arguments.out).search_begin()
    run_workers("trainer_process.py", arguments)
    Events(arguments.out).search_end()


if __name__ == "__main__":
    main()
