"""What the command lines of all benchmarks share: where figures go, and what is said meanwhile.

Tables go to stdout, figures into ``benchmarks/results/NAME.json``, messages to stderr.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.conditions import ROOT, find_conditions
from benchmarks.figures import Figure, figures_table, write_figures
from hpo.cli.console import stderr, stdout

MODEL = ROOT / "build" / "model"
DATA = ROOT / "data" / "docstrings"

ModelOption = Annotated[Path, typer.Option("--model", help="Folder of the base model.")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="Torch computes with these.")]
RepetitionsOption = Annotated[
    int, typer.Option("--repetitions", min=1, help="Figures are medians of so many.")
]
OutOption = Annotated[Path, typer.Option("--out", help="The JSON file of the figures.")]


def results(name: str) -> Path:
    """Return the JSON file of a benchmark's figures."""
    return ROOT / "benchmarks" / "results" / f"{name}.json"


def publish(part: str, figures: Sequence[Figure], threads: int, out: Path) -> None:
    """Show a part's figures, and put them into their file."""
    stdout.print(figures_table(part, figures))
    write_figures(out, part, figures, find_conditions(threads))
    num_missed = sum(figure.is_reached is False for figure in figures)
    tell(f"{part}: {num_missed} goals missed. Written to {out}")


def tell(message: str) -> None:
    """Say on stderr what is done."""
    stderr.print(message, markup=False, highlight=False, soft_wrap=True)


def check_setup() -> None:
    """Refuse to measure where the model or the data is not there yet."""
    for path in (MODEL, DATA / "train.json"):
        if not path.exists():
            raise typer.BadParameter(f"{path} does not exist. It is written by: make setup")


def set_threads(threads: int) -> None:
    """Let torch compute in so many threads."""
    import torch

    torch.set_num_threads(threads)


def quiet() -> None:
    """Keep what libraries say while they load out of the way of the tables."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
