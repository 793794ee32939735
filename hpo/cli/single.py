"""`hpo train`: one config, no search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpo.cli.console import print_json, stderr, stdout
from hpo.cli.target import JsonOption, require_file
from hpo.spec_file import read_config_file


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

    Interrupted, the same command goes on from its last checkpoint.
    """
    from hpo.single import train_config

    require_file(file)
    trainer, folder, config = read_config_file(file)
    target = Path(folder) if output_dir is None else output_dir.resolve()
    result = train_config(trainer, config, target, lambda text: stderr.print(text, markup=False))
    if json:
        print_json(result)
    else:
        stdout.print(f"best validation: {result['metrics']}", markup=False, soft_wrap=True)
        stdout.print(f"adapter: {result['adapter']}", markup=False, soft_wrap=True)
