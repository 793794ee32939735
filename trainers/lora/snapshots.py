"""A trial as it was at an earlier step, in memory: to validate it beside training, and to save it."""

from __future__ import annotations

import contextlib
import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainers.lora.progress import Progress
from trainers.lora.trial import Trial


@dataclass
class Snapshot:
    """All of a trial that changes as it trains.

    Attributes:
        weights: Its adapter's, by name.
        optimizer: The optimizer's state of each weight.
        scaler: The gradient scaler's state, if it has one.
        progress: How far it was.
        best_weights: Of its best validation until then, if it keeps them.
    """

    weights: dict[str, Tensor]
    optimizer: defaultdict[Tensor, Any]
    scaler: dict[str, Any] | None
    progress: Progress
    best_weights: dict[str, Tensor] | None

    @property
    def step(self) -> int:
        return self.progress.step


def take_snapshot(trial: Trial) -> Snapshot:
    """Return a copy of the trial as it is now."""
    seen = _references(trial)
    state = {parameter: _cloned(state) for parameter, state in seen.optimizer.items()}
    return Snapshot(
        weights={name: tensor.clone() for name, tensor in seen.weights.items()},
        optimizer=defaultdict(dict, state),
        scaler=copy.deepcopy(seen.scaler),
        progress=copy.deepcopy(seen.progress),
        best_weights=seen.best_weights,  # replaced, never changed
    )


def exchange(trial: Trial, snapshot: Snapshot) -> Snapshot:
    """Let the trial be as in the snapshot; return how it was. Nothing is copied."""
    before = _references(trial)
    for name, parameter in trial.parameters.items():
        parameter.data = snapshot.weights[name]
    trial.optimizer.state = snapshot.optimizer
    if trial.scaler is not None:
        assert snapshot.scaler is not None
        trial.scaler.load_state_dict(snapshot.scaler)
    trial.progress = snapshot.progress
    trial.best_weights = snapshot.best_weights
    trial.results.clear()
    return before


@contextlib.contextmanager
def as_it_was(trial: Trial, snapshot: Snapshot | None) -> Iterator[None]:
    """Let the trial be as in the snapshot for a while; as it is if there is none."""
    if snapshot is None:
        yield
        return
    now = exchange(trial, snapshot)
    try:
        yield
    finally:
        exchange(trial, now)


def _references(trial: Trial) -> Snapshot:
    return Snapshot(
        weights={name: parameter.data for name, parameter in trial.parameters.items()},
        optimizer=trial.optimizer.state,
        scaler=None if trial.scaler is None else trial.scaler.state_dict(),
        progress=trial.progress,
        best_weights=trial.best_weights,
    )


def _cloned(state: Any) -> Any:
    """Copy an optimizer's state of one weight."""
    if isinstance(state, dict):
        return {name: _cloned(value) for name, value in state.items()}
    return state.clone() if isinstance(state, torch.Tensor) else copy.deepcopy(state)
