"""The picture of one trial: losses raw and smoothed, the metric, learning rate, gradient norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hpo.plots.curves import Curves, smoothed
from hpo.plots.style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    dress,
    new_figure,
    say_nothing,
    scale,
)

WIDTH, LOSS_HEIGHT, PANEL_HEIGHT = 9.0, 4.0, 1.6
LOSSES = ("eval_loss", "train_loss")
MAX_STEPS_WITH_DOTS = 3


def draw_trial(curves: Curves, title: str, metric: str, smoothing: float) -> Figure:
    """Draw training and validation together, over optimizer steps."""
    shows_metric = metric not in LOSSES and not curves.of_validations(metric).empty
    heights = [LOSS_HEIGHT, *[PANEL_HEIGHT] * (3 if shows_metric else 2)]
    figure = new_figure(WIDTH, sum(heights), title)
    panels: list[Any] = list(
        figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    )
    _draw_losses(panels.pop(0), curves, smoothing)
    if shows_metric:
        _draw_line(panels.pop(0), curves.of_validations(metric), metric, GREEN, marker="o")
    _draw_line(panels.pop(0), curves.of_steps("learning_rate"), "learning rate", BLUE)
    bottom = panels.pop(0)
    _draw_line(bottom, curves.of_steps("grad_norm"), "gradient norm", PURPLE)
    bottom.set_xlabel("optimizer step")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.align_ylabels()
    return figure


def _draw_losses(axes: Any, curves: Curves, smoothing: float) -> None:
    training, validation = curves.of_steps("loss"), curves.of_validations("eval_loss")
    dress(axes, "loss (nats per token)")
    if training.empty and validation.empty:
        say_nothing(axes, "no loss in the log yet")
        return
    if not training.empty:
        dots = "." if len(training) <= MAX_STEPS_WITH_DOTS else None
        raw = _finite(training)
        axes.plot(raw, color=BLUE, alpha=0.3, linewidth=1, marker=dots, label="training")
        if smoothing > 0:
            label = f"training, smoothed {smoothing:g}"
            axes.plot(smoothed(training, smoothing), color=BLUE, linewidth=2, label=label)
    if not validation.empty:
        line = _finite(validation)
        axes.plot(line, color=RED, linewidth=1.5, marker="o", markersize=5, label="validation")
        if line.notna().any():
            best = line.idxmin()
            label = f"lowest validation: {line[best]:.4g} at step {best}"
            axes.plot(
                best, line[best], "o", markersize=12, color=RED, fillstyle="none", label=label
            )
    scale(axes, [*training, *validation])
    _mark_infinite(axes, pd.concat([training, validation]))
    axes.legend(frameon=False, fontsize=9, loc="upper right")


def _draw_line(
    axes: Any, series: pd.Series, name: str, color: str, marker: str | None = None
) -> None:
    dress(axes, name)
    if series.empty or not np.isfinite(series).any():
        axes.text(
            0.5, 0.5, "not in the log", transform=axes.transAxes, ha="center", color="#8A8A8A"
        )
        axes.set_yticks([])
        return
    dots = marker or ("." if len(series) <= MAX_STEPS_WITH_DOTS else None)
    axes.plot(_finite(series), color=color, linewidth=1.3, marker=dots, markersize=5)
    if name == "learning rate":
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    else:
        scale(axes, series)
    _mark_infinite(axes, series)


def _mark_infinite(axes: Any, series: pd.Series) -> None:
    """Mark the steps whose value is NaN or infinite: a gap in a line is easily overlooked."""
    lost = sorted(set(series.index[~np.isfinite(series)]))
    if lost:
        top = axes.get_xaxis_transform()
        height = [0.98] * len(lost)
        axes.plot(
            lost, height, "v", color=ORANGE, transform=top, markersize=7, label="NaN or infinite"
        )


def _finite(series: pd.Series) -> pd.Series:
    return series.where(np.isfinite(series))
