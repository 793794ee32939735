"""Figures of the step: how many times as fast as the Trainer's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from benchmarks.figures import Figure, at_least, ratio
from benchmarks.packing.cases import Case, read_text
from benchmarks.packing.pack import Pack
from benchmarks.rounds import measure_in_turn
from benchmarks.step.trainer_steps import TrainerSteps

LEAST = 1.0
LEAST_WITH_PROMPTS = 1.3
PROMPT_TARGET_SHARE = 0.25
"""Prompts are three times as long as answers."""

NUM_STEPS = 2
"""Of each contestant in a round."""


def step_figures(
    model: str,
    cases: Sequence[Case],
    dtype: str,
    num_rounds: int,
    tell: Callable[[str], None],
) -> list[Figure]:
    """Return the figures of these cases, each with loss on every token and on answers only."""
    text = read_text()
    figures = []
    for case in cases:
        assert case.num_trials == 1, "a step of one trial"
        prompts = replace(case, target_share=PROMPT_TARGET_SHARE)
        for one, least, what in (
            (case, LEAST, "loss on every token"),
            (prompts, LEAST_WITH_PROMPTS, "prompts three times as long as answers"),
        ):
            tell(f"step: {case}, {dtype}, {what}")
            figures += _figures_of(model, one, dtype, text, num_rounds, least, what)
    return figures


def _figures_of(
    model: str, case: Case, dtype: str, text: str, num_rounds: int, least: float, what: str
) -> list[Figure]:
    pack = Pack(model, case, text, dtype=dtype)
    (rows,) = pack.rows
    peer_rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": labels}
        for ids, mask, labels in zip(rows.input_ids, rows.attention_mask, rows.labels, strict=True)
    ]
    peer = TrainerSteps(model, peer_rows, case.rank(0), dtype)
    seconds = measure_in_turn(
        {"Trainer": partial(peer.run, NUM_STEPS), "ours": partial(_steps, pack)}, num_rounds
    )
    name = f"{case.num_rows} x {case.num_tokens}, {dtype}, {what}"
    num_tokens = NUM_STEPS * case.num_rows * case.num_tokens
    return [
        ratio(f"{name}: Trainer / ours", seconds["Trainer"], seconds["ours"], at_least(least)),
        *(
            Figure(f"{name}: tokens a second, {who}", tuple(num_tokens / s for s in of_who))
            for who, of_who in seconds.items()
        ),
    ]


def _steps(pack: Pack) -> float:
    start = time.perf_counter()
    for _ in range(NUM_STEPS):
        pack.advance()
    return time.perf_counter() - start
