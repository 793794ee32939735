"""The command line of the packing benchmarks: ``python -m benchmarks.packing speed``, and so on.

Prints a table to stdout and puts its figures into a JSON file; tells what it does on stderr.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cases import TEXT_FILE, Case
from benchmarks.conditions import ROOT, find_conditions
from benchmarks.figures import Figure, figures_table, read_figures, write_figures
from benchmarks.tables import update_page
from hpo.cli.console import stderr, stdout

RESULTS = ROOT / "benchmarks" / "results" / "packing.json"
PAGE = ROOT / "docs" / "packing.md"
MODEL = ROOT / "build" / "model"
CASES = ("8x1x32", "4x1x64", "8x2x64", "4x4x64", "nf4-8x1x32")

ModelOption = Annotated[Path, typer.Option("--model", help="Folder of the base model.")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="Torch computes with these.")]
RepetitionsOption = Annotated[
    int, typer.Option("--repetitions", min=1, help="Figures are medians of so many.")
]
OutOption = Annotated[Path, typer.Option("--out", help="The JSON file of the figures.")]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def check_setup(context: typer.Context) -> None:
    """Measure what it is worth that trials share one pass. Type `all` for everything."""
    if context.invoked_subcommand != "table" and not TEXT_FILE.exists():
        raise typer.BadParameter(f"{TEXT_FILE} does not exist. It is written by: make setup")


@app.command()
def speed(
    case: Annotated[
        list[str] | None,
        typer.Option("--case", help="TRIALSxROWSxTOKENS, or nf4-...; again for more of them."),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show the top operators instead of measuring.")
    ] = False,
    model: ModelOption = MODEL,
    threads: ThreadsOption = 2,
    repetitions: RepetitionsOption = 5,
    out: OutOption = RESULTS,
) -> None:
    """One pass for all trials, against stock PEFT, the same engine in turn, and the base model."""
    try:
        cases = [Case.parse(text) for text in case or CASES]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    _set_threads(threads)
    from benchmarks.packing_speed import profiles, speed_figures

    if profile:
        for one in cases:
            for name, found in profiles(str(model), one).items():
                stdout.print(f"{one}: {name}\n{found.table()}", markup=False, highlight=False)
        return
    figures = speed_figures(str(model), cases, repetitions, _tell)
    _publish("speed", figures, threads, out)


@app.command()
def memory(
    model: ModelOption = MODEL,
    threads: ThreadsOption = 2,
    repetitions: RepetitionsOption = 5,
    out: OutOption = RESULTS,
) -> None:
    """What eight trials take above the base model, against what one takes, and eight processes."""
    from benchmarks.packing_memory import memory_figures

    _publish("memory", memory_figures(str(model), repetitions, threads, _tell), threads, out)


@app.command()
def flow(
    model: ModelOption = MODEL,
    repetitions: RepetitionsOption = 5,
    out: OutOption = RESULTS,
) -> None:
    """How full the pack is while a study of 24 ASHA trials has trials left to begin."""
    from benchmarks.packing_flow import flow_figures

    figures = flow_figures(str(model), repetitions, _tell)
    _publish("flow", figures, len(os.sched_getaffinity(0)), out)  # a host takes all cores


@app.command()
def equality(
    model: ModelOption = MODEL,
    threads: ThreadsOption = 2,
    out: OutOption = RESULTS,
) -> None:
    """Whether eight trials in changing packs take the very same course as each one alone."""
    _set_threads(threads)
    from benchmarks.packing_equality import equality_figures

    _publish("equality", equality_figures(str(model), _tell), threads, out)


@app.command()
def attention(
    threads: ThreadsOption = 2,
    repetitions: RepetitionsOption = 5,
    out: OutOption = RESULTS,
) -> None:
    """Attention of narrow rows in bfloat16, by plain products and by PyTorch's own kernel."""
    _set_threads(threads)
    from benchmarks.packing_attention import attention_figures

    _publish("attention", attention_figures(repetitions), threads, out)


@app.command("all")
def all_(
    model: ModelOption = MODEL,
    threads: ThreadsOption = 2,
    repetitions: RepetitionsOption = 5,
    out: OutOption = RESULTS,
) -> None:
    """All of them, one after the other."""
    equality(model, threads, out)
    attention(threads, repetitions, out)
    memory(model, threads, repetitions, out)
    speed(None, False, model, threads, repetitions, out)
    flow(model, repetitions, out)


@app.command()
def table(
    out: OutOption = RESULTS,
    page: Annotated[Path, typer.Option("--page", help="Gets the figures as tables.")] = PAGE,
) -> None:
    """Put the figures that were measured into the page that explains them."""
    update_page(page, read_figures(out))
    _tell(f"{page} shows the figures of {out}")


def _publish(part: str, figures: Sequence[Figure], threads: int, out: Path) -> None:
    stdout.print(figures_table(part, figures))
    write_figures(out, part, figures, find_conditions(threads))
    num_missed = sum(figure.is_reached is False for figure in figures)
    _tell(f"{part}: {num_missed} goals missed. Written to {out}")


def _tell(message: str) -> None:
    stderr.print(message, markup=False, highlight=False)


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _quiet() -> None:
    """Keep what libraries say while they load out of the way of the tables."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


if __name__ == "__main__":
    _quiet()
    sys.exit(app())
