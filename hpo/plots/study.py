"""The pictures of a study: every trial's validations, and the metric against each parameter."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hpo.plots.style import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    dress,
    new_figure,
    say_nothing,
    scale,
    set_title,
)
from hpo.spec import StudySpec
from hpo.studies import TrialRecord
from hpo.tables import shown

WIDTH, HEIGHT = 9.0, 5.5
COLUMNS, PANEL = 3, 3.2
MAX_NAMED = 12
"""So many trials get their number beside their line; more would cover each other."""

MAX_TICKS = 12
OUTLIER = 3.0
"""Values beyond so many interquartile ranges above the upper quartile leave the linear axis."""

STYLES: Mapping[str, Mapping[str, Any]] = {
    "complete": {"color": GREY, "marker": "o"},
    "pruned": {"color": ORANGE, "marker": "x"},
    "failed, diverged, out of memory": {"color": RED, "marker": "v"},
    "running": {"color": GREY, "marker": ">"},
}


def draw_validations(
    trials: Sequence[TrialRecord], best: TrialRecord | None, spec: StudySpec
) -> Figure:
    """Draw each trial's metric over its steps: the best one strong, where others were stopped."""
    figure = new_figure(WIDTH, HEIGHT, f"{spec.study}: {spec.metric} of {_counted(trials)}")
    axes: Any = figure.subplots()
    dress(axes, f"{spec.metric} ({_better(spec)})", "optimizer step")
    curves = {trial.number: _curve(trial, spec.metric) for trial in trials}
    values = [value for curve in curves.values() for _, value in curve]
    if not values:
        say_nothing(axes, "no validation yet")
        return figure
    scale(axes, _within(values))
    strength = max(0.25, min(0.9, 8 / len(trials)))
    seen: set[str] = set()
    for trial in trials:
        curve = curves[trial.number]
        if not curve or (best is not None and trial.number == best.number):
            continue
        kind = _kind(trial)
        style = STYLES[kind]
        label = None if kind in seen else kind
        seen.add(kind)
        steps, heights = zip(*curve, strict=True)
        axes.plot(steps, heights, color=style["color"], linewidth=1, alpha=strength)
        axes.plot(
            *curve[-1], style["marker"], color=style["color"], markersize=6, label=label, ls=""
        )
        _name(axes, trial, curve[-1], style["color"], len(trials))
    if best is not None and curves[best.number]:
        curve = curves[best.number]
        label = f"best: trial {best.number}, {best.value:.4g}"
        axes.plot(*zip(*curve, strict=True), "o-", color=BLUE, linewidth=2.5, label=label)
        _name(axes, best, curve[-1], BLUE, len(trials))
    hidden = _limit(axes, values, spec)
    if hidden:
        axes.set_title(_above(hidden), fontsize=9, color=GREY, loc="right")
    axes.margins(x=0.06)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(frameon=False, fontsize=9, loc="best")
    return figure


def draw_parameters(
    trials: Sequence[TrialRecord], best: TrialRecord | None, spec: StudySpec
) -> Figure:
    """Draw each trial's value against each searched option."""
    names = [name for name in spec.space if any(name in trial.params for trial in trials)]
    rows = max(1, math.ceil(len(names) / COLUMNS))
    columns = max(1, min(COLUMNS, len(names)))
    width = max(columns * PANEL, 2 * PANEL)
    title = f"{spec.study}: {spec.metric} by parameter"
    figure = new_figure(width, rows * PANEL + 0.6, title)
    grid: Any = figure.subplots(rows, columns, squeeze=False, sharey=True)
    hidden = 0
    valued = [t for t in trials if t.value is not None and math.isfinite(t.value)]
    for index, axes in enumerate(grid.flat):
        if index >= max(1, len(names)):
            axes.set_visible(False)
            continue
        dress(axes, f"{spec.metric} ({_better(spec)})" if index % columns == 0 else "")
        if not names or not valued:
            say_nothing(axes, "no validation yet")
            continue
        _draw_parameter(axes, names[index], valued, best, spec)
        scale(axes, _within([float(t.value or 0.0) for t in valued]))
        hidden = _limit(axes, [float(t.value or 0.0) for t in valued], spec)
    if hidden:
        set_title(figure, f"{title} ({_above(hidden)})")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return figure


def _draw_parameter(
    axes: Any, name: str, trials: Sequence[TrialRecord], best: TrialRecord | None, spec: StudySpec
) -> None:
    axes.set_xlabel(name)
    having = [trial for trial in trials if name in trial.params]
    values = [trial.params[name] for trial in having]
    kind = spec.space[name]
    is_range = isinstance(kind, dict) and kind.get("type") in ("float", "int")
    if is_range and len(set(values)) > 1:
        places = dict(zip((t.number for t in having), map(float, values), strict=True))
        if isinstance(kind, dict) and kind.get("log"):
            axes.set_xscale("log")
        elif all(isinstance(value, int) for value in values):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    else:
        choices = [shown(value) for value in sorted(set(values), key=_order)]
        spread = np.random.default_rng(0).uniform(-0.15, 0.15, len(having))
        places = {
            trial.number: choices.index(shown(value)) + float(shift)
            for trial, value, shift in zip(having, values, spread, strict=True)
        }
        axes.set_xticks(range(len(choices))[:MAX_TICKS], [_short(c) for c in choices[:MAX_TICKS]])
        axes.set_xlim(-0.6, len(choices) - 0.4)
        if sum(map(len, choices)) > 24:
            axes.tick_params(axis="x", labelrotation=30)
    for kind_, style in STYLES.items():
        chosen = [t for t in having if _kind(t) == kind_ and t is not best]
        axes.plot(
            [places[t.number] for t in chosen],
            [t.value for t in chosen],
            style["marker"],
            color=style["color"],
            alpha=0.8,
            markersize=6,
            label=kind_ if any(_kind(t) == kind_ and t is not best for t in trials) else None,
        )
    if best is not None and best.number in places:
        axes.plot(
            places[best.number],
            best.value,
            "*",
            color=BLUE,
            markersize=15,
            label=f"best: trial {best.number}",
        )


def _curve(trial: TrialRecord, metric: str) -> list[tuple[int, float]]:
    points = []
    for said in trial.reports.values():
        value = said.get("metrics", {}).get(metric)
        if isinstance(value, int | float) and math.isfinite(value):
            points.append((int(said.get("step", 0)), float(value)))
    return points


def _kind(trial: TrialRecord) -> str:
    if trial.state == "FAIL" or trial.reason in ("diverged", "out_of_memory"):
        return "failed, diverged, out of memory"
    return {"COMPLETE": "complete", "PRUNED": "pruned"}.get(trial.state, "running")


def _name(
    axes: Any, trial: TrialRecord, place: tuple[int, float], color: str, num_trials: int
) -> None:
    if num_trials <= MAX_NAMED:
        axes.annotate(
            str(trial.number),
            place,
            xytext=(7, 0),
            textcoords="offset points",
            color=color,
            fontsize=9,
            va="center",
        )


def _within(values: Sequence[float]) -> list[float]:
    """Return the values without those far above the others."""
    low, high = np.percentile(values, [25, 75])
    return [value for value in values if value <= high + OUTLIER * (high - low)] or list(values)


def _limit(axes: Any, values: Sequence[float], spec: StudySpec) -> int:
    """Keep diverging trials from flattening all others on a linear axis; return the values cut."""
    within = _within(values)
    if spec.direction == "minimize" and axes.get_yscale() == "linear" and max(values) > max(within):
        margin = 0.05 * (max(within) - min(within) or 1.0)
        axes.set_ylim(min(within) - margin, max(within) + margin)
        return sum(value > max(within) for value in values)
    return 0


def _above(hidden: int) -> str:
    return f"{hidden} value{'s' if hidden > 1 else ''} above the picture"


def _better(spec: StudySpec) -> str:
    return "lower is better" if spec.direction == "minimize" else "higher is better"


def _counted(trials: Sequence[TrialRecord]) -> str:
    counts = Counter(_kind(trial) for trial in trials)
    details = ", ".join(f"{counts[kind]} {kind}" for kind in STYLES if counts[kind])
    noun = "trial" if len(trials) == 1 else "trials"
    return f"{len(trials)} {noun}" + (f" ({details})" if details else "")


def _order(value: object) -> tuple[float, str]:
    """Order numbers by size and before words."""
    return (float(value), "") if isinstance(value, int | float) else (math.inf, str(value))


def _short(text: str) -> str:
    return text if len(text) <= 14 else f"{text[:12]}.."
