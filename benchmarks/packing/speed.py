"""Speed of a packed pass: against stock PEFT, against the same engine in turn, against the base."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from benchmarks.figures import Figure, at_least, at_most, ratio
from benchmarks.packing.base_pass import BasePass
from benchmarks.packing.cases import Case, read_text
from benchmarks.packing.pack import Pack
from benchmarks.packing.peft_in_turn import PeftInTurn, load_stock_model
from benchmarks.packing.profile import Profile
from benchmarks.packing.rows import Rows
from benchmarks.rounds import Contestant, measure_in_turn

PEFT_GOALS = {
    "8x1x32": 2.0,
    "4x1x64": 1.7,
    "8x2x64": 1.35,
    "4x4x64": 1.2,
    "nf4-8x1x32": 1.8,
}
"""How many times as fast as stock PEFT in turn; the names are the cases."""

BOUND_SHARE = 0.9
"""Of what packing gains on the base model alone, the engine is to gain so much."""

BASE_MULTIPLE = 1.2
"""A packed pass is to take at most so many times as long as the base model's own."""

PROMPT_TARGET_SHARE = 0.25
"""Of a row, where its larger part is a prompt."""

PEERS = {"Trainer's bf16 autocast": True, "adapters in bfloat16": False}
"""Both ways to use stock PEFT in bfloat16, and whether it is with autocast."""

Seconds = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Bench:
    """The models of the contestants that have no engine, loaded once for all cases of a base.

    Attributes:
        model: Folder of the base model.
        quantized: Whether the base is in NF4.
        num_trials: The most that a case has.
    """

    model: str
    quantized: bool
    num_trials: int

    @cached_property
    def peers(self) -> dict[str, PeftInTurn]:
        """Stock PEFT, each way."""
        ranks = [Case(self.num_trials, 1, 1).rank(trial) for trial in range(self.num_trials)]
        return {
            name: PeftInTurn(load_stock_model(self.model, self.quantized), ranks, autocast)
            for name, autocast in PEERS.items()
        }

    @cached_property
    def base(self) -> BasePass:
        """The base model alone."""
        return BasePass(load_stock_model(self.model, self.quantized))


def speed_figures(
    model: str, cases: Sequence[Case], num_rounds: int, tell: Callable[[str], None]
) -> list[Figure]:
    """Return the figures of these cases.

    Args:
        model: Folder of the base model.
        cases: In the order of the table.
        num_rounds: Repetitions.
        tell: Told of each case before it is measured.
    """
    figures: list[Figure] = []
    text = read_text()
    for quantized in sorted({case.quantized for case in cases}):
        chosen = [case for case in cases if case.quantized == quantized]
        bench = Bench(model, quantized, max(case.num_trials for case in chosen))
        for case in chosen:
            tell(f"speed: {case}")
            figures += _figures_of(bench, case, text, num_rounds)
            tell(f"speed: {case}, loss on the last quarter of each row")
            figures.append(_prompt_figure(bench, case, text, num_rounds))
        del bench
        gc.collect()
    return figures


def profiles(model: str, case: Case) -> dict[str, Profile]:
    """Return where the time goes in a packed pass, and in the base model's own."""
    pack = Pack(model, case, read_text())
    base = BasePass(load_stock_model(model, case.quantized))
    return _profiles(pack, base, pack.rows)


def _profiles(pack: Pack, base: BasePass, rows: Sequence[Rows]) -> dict[str, Profile]:
    return {"packed": Profile(pack.packed), "base packed": Profile(partial(base.packed, rows))}


def _figures_of(bench: Bench, case: Case, text: str, num_rounds: int) -> list[Figure]:
    pack = Pack(bench.model, case, text)
    rows = pack.rows
    contestants: dict[str, Contestant] = {
        "base in turn": partial(bench.base.in_turn, rows),
        "base packed": partial(bench.base.packed, rows),
        **{name: partial(peer.run, rows) for name, peer in bench.peers.items()},
        "packed": pack.packed,
        "alone": pack.alone,
    }
    figures = _ratios(case, measure_in_turn(contestants, num_rounds))
    missed = [number for number, figure in enumerate(figures) if figure.is_reached is False]
    if missed:  # the first one says why; it is the same for all
        found = _profiles(pack, bench.base, rows)
        why = f"beyond the base's pass: {found['packed'].beyond(found['base packed'])}"
        first = figures[missed[0]]
        note = "; ".join(filter(None, [first.note, why, f"more by --case {case} --profile"]))
        figures[missed[0]] = replace(first, note=note)
    return figures


def _ratios(case: Case, seconds: Seconds) -> list[Figure]:
    goal = PEFT_GOALS.get(str(case))
    peer = _faster_peer(seconds)
    bound = ratio(
        f"{case}: base in turn / base packed",
        seconds["base in turn"],
        seconds["base packed"],
        note="what packing can gain on the base model alone",
    )
    gain = ratio(f"{case}: alone / packed", seconds["alone"], seconds["packed"])
    return [
        bound,
        ratio(
            f"{case}: PEFT in turn / packed",
            seconds[peer],
            seconds["packed"],
            None if goal is None else at_least(goal),
            f"PEFT with {peer}, the faster way here",
        ),
        gain,
        ratio(
            f"{case}: (alone / packed) / (base in turn / base packed)",
            gain.values,
            bound.values,
            at_least(BOUND_SHARE),
        ),
        ratio(
            f"{case}: packed / base packed",
            seconds["packed"],
            seconds["base packed"],
            at_most(BASE_MULTIPLE),
        ),
    ]


def _prompt_figure(bench: Bench, case: Case, text: str, num_rounds: int) -> Figure:
    pack = Pack(bench.model, replace(case, target_share=PROMPT_TARGET_SHARE), text)
    rows = pack.rows
    contestants: dict[str, Contestant] = {
        **{name: partial(peer.run, rows) for name, peer in bench.peers.items()},
        "packed": pack.packed,
    }
    seconds = measure_in_turn(contestants, num_rounds)
    peer = _faster_peer(seconds)
    name = f"{case}, loss on the last quarter: PEFT in turn / packed"
    return ratio(name, seconds[peer], seconds["packed"], note=f"PEFT with {peer}")


def _faster_peer(seconds: Seconds) -> str:
    return min(PEERS, key=lambda name: statistics.median(seconds[name]))
