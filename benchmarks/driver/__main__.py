"""The command line of the driver's benchmarks: ``python -m benchmarks.driver study``, and so on."""

from __future__ import annotations

import sys

import typer

from benchmarks.publish import OutOption, RepetitionsOption, publish, quiet, results, tell

NAME = "driver"
RESULTS = results(NAME)
THREADS = 1
"""Nothing here computes with torch."""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Measure what the search itself costs, without training. Type `all` for everything."""


@app.command()
def study(repetitions: RepetitionsOption = 5, out: OutOption = RESULTS) -> None:
    """An ask, a report, a tell with 100, 1,000 and 10,000 trials stored, in SQLite and PostgreSQL."""
    from benchmarks.driver.study_costs import study_figures

    publish("study", study_figures(repetitions, tell), THREADS, out)


@app.command()
def tune(repetitions: RepetitionsOption = 5, out: OutOption = RESULTS) -> None:
    """Reports a second all the way through Tune."""
    from benchmarks.driver.through_tune import tune_figures

    publish("tune", tune_figures(repetitions, tell), THREADS, out)


@app.command()
def turns(repetitions: RepetitionsOption = 5, out: OutOption = RESULTS) -> None:
    """From one trial to the next on a worker, and from `hpo run` to the first step."""
    from benchmarks.driver.turnover import start_figures, turnover_figures

    figures = turnover_figures(repetitions, tell) + start_figures(repetitions, tell)
    publish("turns", figures, THREADS, out)


@app.command()
def nodes(repetitions: RepetitionsOption = 5, out: OutOption = RESULTS) -> None:
    """Fake trials on 1, 2, 4 and 8 simulated nodes."""
    from benchmarks.driver.scale_out import scale_figures

    publish("nodes", scale_figures(repetitions, tell), THREADS, out)


@app.command("all")
def all_(repetitions: RepetitionsOption = 5, out: OutOption = RESULTS) -> None:
    """All of them, one after the other."""
    study(repetitions, out)
    tune(repetitions, out)
    turns(repetitions, out)
    nodes(repetitions, out)


if __name__ == "__main__":
    quiet()
    sys.exit(app())
