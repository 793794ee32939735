"""`hpo train`: one config, no search."""

from __future__ import annotations

import logging
import signal
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from hpo.cli import INTERRUPTED
from hpo.cli.console import print_json, stderr, stdout
from hpo.cli.target import JsonOption
from hpo.config_file import read_config_file


def train(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A flat YAML of options: the config.yaml of a best trial, or a LLaMA-Factory file.",
        ),
    ],
    output_dir: Annotated[
        Path | None, typer.Option(help="Instead of the file's 'output_dir:'.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Train one config, as one trial of a study would be: same losses, same checkpoints.

    Ctrl-C saves and leaves; the same command goes on from there, or from its last checkpoint.
    """
    from hpo.single import InterruptedTrainingError, train_config

    config = read_config_file(file)
    steps = logging.getLogger("trainers")  # a line for each step, or as `logging_steps` says
    steps.setLevel(logging.INFO)
    spoken = logging.StreamHandler()
    spoken.setFormatter(logging.Formatter("%(message)s"))
    steps.addHandler(spoken)
    steps.propagate = False
    if output_dir is not None:
        config = replace(config, output_dir=output_dir.resolve())
    caught: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _frame: caught.append(received))
    try:
        result = train_config(
            config, lambda text: stderr.print(text, markup=False), lambda: bool(caught)
        )
    except InterruptedTrainingError:
        stderr.print(f"saved and stopped. To go on: hpo train {file}")
        raise typer.Exit(INTERRUPTED) from None
    if json:
        print_json(result)
    else:
        what = "last step" if config.metric is None else f"best {config.metric}"
        step = f"{what} (step {result['step']}): {result['metrics']}"
        stdout.print(step, markup=False, soft_wrap=True)
        stdout.print(f"adapter: {result['adapter']}", markup=False, soft_wrap=True)
