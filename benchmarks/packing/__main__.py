"""The command line of the packing benchmarks: ``python -m benchmarks.packing speed``, and so on.

Prints a table to stdout and puts its figures into a JSON file; tells what it does on stderr.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from benchmarks.packing.cases import Case
from benchmarks.publish import (
    MODEL,
    ModelOption,
    OutOption,
    RepetitionsOption,
    ThreadsOption,
    check_setup,
    publish,
    quiet,
    results,
    set_threads,
    tell,
)
from hpo.cli.console import stdout

NAME = "packing"
RESULTS = results(NAME)
CASES = ("8x1x32", "4x1x64", "8x2x64", "4x4x64", "nf4-8x1x32")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Measure what it is worth that trials share one pass. Type `all` for everything."""
    check_setup()


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
    set_threads(threads)
    from benchmarks.packing.speed import profiles, speed_figures

    if profile:
        for one in cases:
            for name, found in profiles(str(model), one).items():
                stdout.print(f"{one}: {name}\n{found.table()}", markup=False, highlight=False)
        return
    figures = speed_figures(str(model), cases, repetitions, tell)
    publish("speed", figures, threads, out)


@app.command()
def memory(
    model: ModelOption = MODEL,
    threads: ThreadsOption = 2,
    repetitions: RepetitionsOption = 5,
    out: OutOption = RESULTS,
) -> None:
    """What eight trials take above the base model, against what one takes, and eight processes."""
    from benchmarks.packing.memory import memory_figures

    publish("memory", memory_figures(str(model), repetitions, threads, tell), threads, out)


@app.command()
def flow(
    model: ModelOption = MODEL,
    repetitions: RepetitionsOption = 5,
    out: OutOption = RESULTS,
) -> None:
    """How full the pack is while a study of 24 ASHA trials has trials left to begin."""
    from benchmarks.packing.flow import flow_figures

    figures = flow_figures(str(model), repetitions, tell)
    publish("flow", figures, len(os.sched_getaffinity(0)), out)  # a host takes all cores


@app.command()
def equality(
    model: ModelOption = MODEL,
    threads: ThreadsOption = 2,
    out: OutOption = RESULTS,
) -> None:
    """Whether eight trials in changing packs take the very same course as each one alone."""
    set_threads(threads)
    from benchmarks.packing.equality import equality_figures

    publish("equality", equality_figures(str(model), tell), threads, out)


@app.command()
def attention(
    threads: ThreadsOption = 2,
    repetitions: RepetitionsOption = 5,
    out: OutOption = RESULTS,
) -> None:
    """Attention of narrow rows in bfloat16, by plain products and by PyTorch's own kernel."""
    set_threads(threads)
    from benchmarks.packing.attention import attention_figures

    publish("attention", attention_figures(repetitions), threads, out)


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


if __name__ == "__main__":
    quiet()
    sys.exit(app())
