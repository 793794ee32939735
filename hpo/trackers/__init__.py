"""Experiment trackers: TensorBoard, W&B, MLflow, Comet and Trackio, through their own SDKs.

One process a tracker, beside the driver (``outlet``). It reads the trials' own logs (``follower``) and
hands them to an SDK (one file each), so that an SDK that hangs, crashes or fails costs no trial
anything, and what it missed is logged later. Nothing of an SDK is imported in the driver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from hpo.errors import SpecError


@dataclass(frozen=True)
class Kind:
    """A tracker that users name.

    Attributes:
        target: The class that logs to it.
        module: What its SDK is imported as.
        package: What `pip install` calls that.
    """

    target: str
    module: str
    package: str


TRACKERS: Mapping[str, Kind] = {
    "tensorboard": Kind("hpo.trackers.tensorboard:TensorBoard", "tensorboardX", "tensorboardX"),
    "wandb": Kind("hpo.trackers.wandb:WeightsAndBiases", "wandb", "wandb"),
    "mlflow": Kind("hpo.trackers.mlflow:MLflow", "mlflow", "mlflow-skinny"),
    "comet_ml": Kind("hpo.trackers.comet_ml:Comet", "comet_ml", "comet-ml"),
    "trackio": Kind("hpo.trackers.trackio:Trackio", "trackio", "trackio"),
}
"""By the names that transformers gives them."""


def installed() -> list[str]:
    """Return the trackers whose package is there."""
    return [name for name, kind in TRACKERS.items() if find_spec(kind.module) is not None]


def chosen(names: Sequence[str]) -> list[str]:
    """Return the trackers that `report_to:` names; `all` are those that are installed."""
    return installed() if "all" in names else list(names)


def check_installed(names: Sequence[str]) -> None:
    """Check that a run can report to these.

    Raises:
        SpecError: A package is missing; with the command that installs it.
    """
    there = installed()
    missing = [name for name in chosen(names) if name not in there]
    if missing:
        packages = " ".join(TRACKERS[name].package for name in missing)
        raise SpecError(
            f"report_to: {', '.join(missing)} needs a package that is not installed. Type "
            f"`pip install {packages}`, or take it out of 'report_to:'."
        )
