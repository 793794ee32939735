"""How pictures look: colours that colour-blind people tell apart, axes that fit what is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

# Okabe and Ito, https://jfly.uni-koeln.de/color/
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, GREY, BLACK = "#CC79A7", "#8A8A8A", "#222222"

DPI = 120
LOG_ABOVE = 30.0
"""A positive quantity whose largest value is so many times its smallest gets a logarithmic axis."""


def new_figure(width: float, height: float, title: str) -> Figure:
    """Return an empty figure with a title, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    set_title(figure, title)
    return figure


def set_title(figure: Figure, title: str) -> None:
    """Give a figure its title, or another one."""
    figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")


def dress(axes: Any, ylabel: str, xlabel: str = "") -> None:
    """Give axes their names, a quiet grid, and no frame."""
    axes.set_ylabel(ylabel)
    axes.set_xlabel(xlabel)
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def scale(axes: Any, values: Iterable[float]) -> None:
    """Make the y axis logarithmic where a linear one would show only the largest values."""
    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) / min(finite) > LOG_ABOVE:
        axes.set_yscale("log")


def say_nothing(axes: Any, text: str) -> None:
    """Write into empty axes why they are."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set_xticks([])
    axes.set_yticks([])


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    figure.savefig(unfinished, format="png", dpi=DPI)
    unfinished.replace(path)
    return path
