"""One trial of ``syne_tune_search``: takes its config from the command line, reports to stdout."""

from __future__ import annotations

import argparse
from pathlib import Path

from events import Events
from workload import Config, read_workload


def main() -> None:
    """Train until the script or Syne Tune says to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--st_checkpoint_dir", type=Path, required=True)
    parser.add_argument("--entry", type=int, help="of the script; else a config is given")
    for name in ("learning_rate", "lora_r", "batch_size"):
        parser.add_argument(f"--{name}", type=float)
    given = parser.parse_args()
    workload = read_workload(given.workload)
    number = int(given.st_checkpoint_dir.parent.name)  # Syne Tune names the folder after its trial
    scripted = None if given.entry is None else workload.course()[given.entry]
    config = Config.of(vars(given)) if scripted is None else scripted.config
    Events(given.out).begin(number, config)

    import torch
    from syne_tune import Reporter

    from trial import resident, train_trial

    torch.set_num_threads(workload.threads)
    reporter = Reporter()

    def report(index: int, loss: float) -> bool:
        reporter(validation=index, eval_loss=loss)
        return False  # Syne Tune kills the process

    base, data = resident(workload)
    train_trial(base, workload, data, given.out, number, config, report)


if __name__ == "__main__":
    main()
