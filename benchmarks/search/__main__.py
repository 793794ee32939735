"""The command line of the benchmark of whole searches: ``python -m benchmarks.search equal``, and so on.

Contestants take turns, round by round. Each part may be run for some of them only.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.figures import read_figures
from benchmarks.publish import (
    DATA,
    MODEL,
    OutOption,
    check_setup,
    publish,
    quiet,
    results,
    tell,
)
from benchmarks.search.contestants import CONTESTANTS, OURS, Contestant, Done
from benchmarks.search.figures import (
    arrangement_figures,
    equal_figures,
    memory_figures,
    own_figures,
)
from benchmarks.search.workload import Dtype, Workload
from trainers.lora.model.processor import multiplies_bfloat16

NAME = "search"
RESULTS = results(NAME)
DTYPE: Dtype = "bfloat16" if multiplies_bfloat16() else "float32"
"""The type that this processor is fastest in."""

ARRANGEMENTS = ("1 x 2", "2 x 1")
"""Of a peer: trials side by side x threads of each."""

OUR_ARRANGEMENTS = ("4 x 2", "4 x 1", "8 x 1")
"""Of ours: trials side by side x threads of each process that they share: one on two cores, or two."""

MEMORY_CONCURRENCIES = (2, 4)
"""Trials side by side where memory is compared; ours in one host with both cores."""

OnlyOption = Annotated[
    list[str] | None, typer.Option("--only", help="This contestant, and again for more.")
]
RoundsOption = Annotated[int, typer.Option("--rounds", min=1, help="Of all contestants, in turn.")]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Of the base model, for all.")]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Compare whole searches: 16 trials of a small model, two cores. Type `all` for everything."""
    check_setup()


@app.command()
def arrangements(
    only: OnlyOption = None, dtype: DtypeOption = DTYPE, out: OutOption = RESULTS
) -> None:
    """Try every contestant in each arrangement of processes and threads, once, on six trials."""
    workload = _workload(scripted=True, dtype=dtype, num_trials=6)
    found: dict[str, dict[str, Done]] = {}
    for contestant in _chosen(only):
        tried = OUR_ARRANGEMENTS if contestant.name == OURS else ARRANGEMENTS
        found[contestant.name] = {
            arrangement: _run(contestant, workload, arrangement) for arrangement in tried
        }
    publish(_part("arrangements", dtype), arrangement_figures(found), 2, out)


@app.command()
def equal(
    only: OnlyOption = None,
    rounds: RoundsOption = 3,
    dtype: DtypeOption = DTYPE,
    out: OutOption = RESULTS,
) -> None:
    """The same configs, verdicts and steps for all."""
    chosen = _chosen(only)
    workloads = [_workload(scripted=True, dtype=dtype)] * rounds
    done = _rounds(chosen, workloads, _best(chosen, dtype, out))
    publish(_part("equal", dtype, rounds), equal_figures(done), 2, out)


@app.command()
def own(
    only: OnlyOption = None,
    rounds: RoundsOption = 3,
    dtype: DtypeOption = DTYPE,
    out: OutOption = RESULTS,
) -> None:
    """Each with its own sampler and pruner, from the same ten first configs; a seed a round."""
    chosen = [contestant for contestant in _chosen(only) if contestant.searches]
    workloads = [_workload(scripted=False, dtype=dtype, seed=seed) for seed in range(rounds)]
    done = _rounds(chosen, workloads, _best(chosen, dtype, out))
    publish(_part("own", dtype, rounds), own_figures(done), 2, out)


@app.command()
def memory(
    only: OnlyOption = None,
    rounds: RoundsOption = 3,
    dtype: DtypeOption = DTYPE,
    out: OutOption = RESULTS,
) -> None:
    """What all processes take together, with two and with four trials side by side."""
    chosen = _chosen(only or [OURS, "Ray Tune"])
    workloads = [_workload(scripted=True, dtype=dtype)] * rounds
    figures = []
    for concurrency in MEMORY_CONCURRENCIES:
        arranged = {of.name: f"{concurrency} x {2 if of.name == OURS else 1}" for of in chosen}
        figures += memory_figures(_rounds(chosen, workloads, arranged), concurrency)
    publish(_part("memory", dtype, rounds), figures, 2, out)


@app.command("all")
def all_(rounds: RoundsOption = 3, dtype: DtypeOption = DTYPE, out: OutOption = RESULTS) -> None:
    """All of them, one after the other: about three hours on two cores."""
    arrangements(None, dtype, out)
    equal(None, rounds, dtype, out)
    own(None, rounds, dtype, out)
    memory(None, rounds, dtype, out)


def _workload(*, scripted: bool, dtype: Dtype, num_trials: int = 16, seed: int = 0) -> Workload:
    return Workload(MODEL, DATA, scripted, seed, dtype=dtype, num_trials=num_trials)


def _part(name: str, dtype: str, rounds: int = 0) -> str:
    return f"{name}, {dtype}" + (", one round" if rounds == 1 else "")


def _chosen(only: Sequence[str] | None) -> list[Contestant]:
    known = {contestant.name: contestant for contestant in CONTESTANTS}
    for name in only or ():
        if name not in known:
            raise typer.BadParameter(f"{name!r} is no contestant. Known: {', '.join(known)}.")
    chosen = [known[name] for name in only or known]
    for contestant in chosen:
        contestant.prepare()
    return chosen


def _best(chosen: Sequence[Contestant], dtype: str, out: Path) -> dict[str, str]:
    """Return the arrangement in which each contestant was fastest, if several were tried."""
    part = read_figures(out).get(_part("arrangements", dtype))
    figures = part["figures"] if isinstance(part, dict) else []
    fastest: dict[str, str] = {}
    for figure in sorted(figures, key=lambda figure: float(figure["value"])):
        who, _, arrangement = figure["name"].rpartition(", ")
        fastest.setdefault(who, arrangement)
    return {of.name: fastest.get(of.name, of.arrangement) for of in chosen}


def _rounds(
    chosen: Sequence[Contestant], workloads: Sequence[Workload], arranged: Mapping[str, str]
) -> dict[str, list[Done]]:
    """Return what each contestant did of each workload, in their order."""
    done: dict[str, list[Done]] = {contestant.name: [] for contestant in chosen}
    for workload in workloads:
        for contestant in chosen:
            arrangement = arranged[contestant.name]
            done[contestant.name].append(_run(contestant, workload, arrangement))
    return done


def _run(contestant: Contestant, workload: Workload, arrangement: str) -> Done:
    concurrency, threads = map(int, arrangement.split(" x "))
    with tempfile.TemporaryDirectory(prefix="hpo-search-") as folder:
        done = contestant.run(workload.at(concurrency, threads), Path(folder) / "run")
    tell(
        f"{contestant.name}, {arrangement}: {done.spent.wall_s:.1f} s, "
        f"{done.course.warm_s:.1f} s without start-up, {done.course.num_steps} steps, "
        f"{done.course.num_validations} validations, best loss {done.course.best_loss:.4f}, "
        f"{done.spent.peak_mib:.0f} MiB"
    )
    return done


if __name__ == "__main__":
    quiet()
    sys.exit(app())
