"""The names under which `hpo` keeps what it knows in Optuna's attributes of studies and trials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Of a study
SPEC = "hpo:spec"
VERSION = "hpo:version"  # of the hpo that wrote the spec last
STOP = "hpo:stop"  # when somebody asked its drivers to leave, in seconds by the database's clock
CREATED = "hpo:created"  # by which attempt: its answer may be lost, and it is made again
METRIC_NAMES = "study:metric_names"  # Optuna's own: the dashboard writes it at the axes

# Of a trial
CONFIG = "hpo:config"
DIGEST = "hpo:digest"
REPORT = "hpo:report:"  # and the validation's index
END = "hpo:end"
LOSSES = "hpo:losses"  # causes, one for each time that the trial's process or node was lost
SAMPLER_STATE = (
    "hpo:sampler_state"  # what a sampler wrote into the study while it proposed the trial
)
CONSTRAINTS = "constraints"  # Optuna's own, in the form that optuna-dashboard 0.21 reads too
INFEASIBLE = [1.0]  # of a trial that fits on no device; of Optuna's samplers TPE minds it


def lightly(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what samplers and pruners need of a trial that has ended: not its config and metrics."""
    return {k: v for k, v in attributes.items() if k != CONFIG and not k.startswith(REPORT)}
