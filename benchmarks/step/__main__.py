"""The command line of the benchmark of the step: ``python -m benchmarks.step``."""

from __future__ import annotations

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

NAME = "step"
RESULTS = results(NAME)
CASES = ("1x1x64", "1x4x64", "1x4x128")
HALF_CASES = ("1x1x64",)
"""Where the processor has no bfloat16 of its own, a step takes a minute."""


def main(
    case: Annotated[
        list[str] | None, typer.Option("--case", help="1xROWSxTOKENS; again for more of them.")
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option("--dtype", help="float32 or bfloat16; default: both.")
    ] = None,
    model: ModelOption = MODEL,
    threads: ThreadsOption = 2,
    repetitions: RepetitionsOption = 5,
    out: OutOption = RESULTS,
) -> None:
    """Compare one trial's whole step with that of transformers' Trainer and PEFT on the same rows."""
    check_setup()
    set_threads(threads)
    from benchmarks.step.figures import step_figures
    from trainers.lora.model.processor import multiplies_bfloat16

    for one in dtype or ("float32", "bfloat16"):
        few = one == "bfloat16" and not multiplies_bfloat16()
        cases = [Case.parse(text) for text in case or (HALF_CASES if few else CASES)]
        publish(one, step_figures(str(model), cases, one, repetitions, tell), threads, out)


if __name__ == "__main__":
    quiet()
    typer.run(main)
