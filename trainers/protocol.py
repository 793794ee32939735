"""The contract between a trainer and whatever drives it.

A trainer owns one base model on one device (or several devices that act as one) and trains any
number of trials on it. It knows nothing of searches, databases or clusters: it is told which
trials to add and remove, it is stepped, and it answers with reports. Torch is not imported here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict

ADAPTER_FOLDER = "adapter"
"""Inside a saved trial: what is handed to the user (weights that load without this package)."""

STATE_FOLDER = "state"
"""Inside a saved trial: the rest of what the trainer needs to go on."""

Scalar = bool | int | float | str | None
StepLine = Mapping[str, Scalar]
"""One optimizer step as a flat line: step, loss, learning_rate, grad_norm, seconds, ..."""


class TrainerOptions(BaseModel):
    """A trainer's options: one flat model, checked before any work starts.

    The names are the ones that users type, in ``fixed:`` or in ``space:``. Must be importable
    without torch, so that checking a file is fast.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True)

    shared: ClassVar[frozenset[str]] = frozenset()
    """Options that all trials on one base model must agree on: these may not be searched."""

    paths: ClassVar[frozenset[str]] = frozenset()
    """Options that may hold a path; a relative one starts at the folder of the file naming it."""

    default_paths: ClassVar[Mapping[str, str]] = {}
    """Of these, other tools' ones that have a value where a file does not give them."""

    aliases: ClassVar[Mapping[str, str]] = {}
    """Other tools' names for an option: alias -> name."""

    budget: ClassVar[frozenset[str]] = frozenset()
    """Options that set how long a trial trains and when it validates. May not be searched
    together with a pruner, because trials are compared by the index of their validation."""

    def num_validations(self) -> int | None:
        """Return the validations of a full trial, if the options alone say so.

        Hyperband needs the number before any data is read.
        """
        return None

    def metric_names(self) -> frozenset[str] | None:
        """Return the names of the metrics that every report will carry; None if unknown."""
        return None

    def pruning_problem(self) -> str | None:
        """Return why trials with these options cannot be pruned, and what to change; else None."""
        return None

    def sharing_problem(self) -> str | None:
        """Return why a trial with these options cannot share a device with others; else None."""
        return None

    @classmethod
    def for_metric(
        cls, given: Mapping[str, object], metric: str, direction: Literal["minimize", "maximize"]
    ) -> dict[str, object]:
        """Return ``given`` completed by what follows from the metric that its driver goes by.

        What a user gave is never changed.
        """
        return dict(given)

    @classmethod
    def translate(cls, given: Mapping[str, object]) -> dict[str, object]:
        """Return ``given`` with aliases replaced and other tools' values turned into ours.

        Raises:
            ValueError: An option is given twice, under its name and under an alias, or another
                tool's value has no meaning here. The message names both and what to do.
        """
        translated: dict[str, object] = {}
        source: dict[str, str] = {}
        for name, value in given.items():
            target = cls.aliases.get(name, name)
            if target in source:
                raise ValueError(
                    f"{name!r} and {source[target]!r} are the same option: give only one of them."
                )
            source[target] = name
            translated[target] = value
        return translated


@dataclass(frozen=True)
class Plan:
    """How long one trial will train, known before it starts.

    Attributes:
        num_train_samples: Examples in the training set, after cutting.
        num_eval_samples: Examples in the validation set, after cutting.
        num_steps: Optimizer steps of a full trial.
        num_validations: Validations of a full trial; a report's index runs from 1 to this.
        num_trainable_parameters: Trained weights of one trial.
        notes: What the user should know: truncated examples, a dtype chosen for them.
    """

    num_train_samples: int
    num_eval_samples: int
    num_steps: int
    num_validations: int
    num_trainable_parameters: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Capacity:
    """How many trials a device holds at once, and why.

    Attributes:
        num_trials: At least 1.
        base_gib: What the base model takes, with all that is loaded beside it; None if unknown.
        trial_gib: What the costliest trial takes beside it.
        total_gib: What the device has.
    """

    num_trials: int
    base_gib: float | None = None
    trial_gib: float | None = None
    total_gib: float | None = None


EndReason = Literal["finished", "stopped_early", "diverged", "failed", "out_of_memory", "displaced"]


@dataclass(frozen=True)
class Report:
    """What a trial says at a validation, or at its end.

    Attributes:
        trial: The key under which the trial was added.
        validation: Index of the newest validation, from 1; 0 if there was none yet.
        step: Optimizer steps done.
        metrics: Of this validation; empty if the report carries none (the trial diverged or failed).
        step_lines: One line per optimizer step since the previous report.
        samples: Generated examples of this validation, if the trainer makes any.
        notes: What the user should know of this trial's data and model: rows left out, examples cut
            off. On its first report after it was added.
        end: None while the trial goes on. ``finished``: the budget is used up; ``stopped_early``: by
            the trial's own patience; ``diverged``: NaN or an exploding loss; ``failed``: an error;
            ``out_of_memory``: it does not fit on the device even alone; ``displaced``: it makes room
            for the others and nothing is wrong with it. Its driver saves it if ``step`` is further
            than its newest checkpoint, removes it, and may add it again when others have left.
        message: Why it diverged, failed or found no room, in one line; with the traceback below for
            ``failed``.
    """

    trial: int
    validation: int
    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    step_lines: Sequence[StepLine] = ()
    samples: Sequence[Mapping[str, Scalar]] = ()
    notes: Sequence[str] = ()
    end: EndReason | None = None
    message: str | None = None


class Trainer(Protocol):
    """Trains several trials on one base model, one pass of all of them at a time.

    Not thread-safe but for ``save``: one thread calls it. A trial's losses and validations must not
    depend on which other trials are present, and must be the same after ``save``, a new process and
    ``add`` with ``resume_from`` as if nothing had happened.
    """

    Options: ClassVar[type[TrainerOptions]]

    def __init__(self, fixed: Mapping[str, object], device: str) -> None:
        """Load the base model and the data.

        Args:
            fixed: The options that all trials share, by name; at least ``Options.shared``'s.
            device: ``cpu``, ``cuda``, or ``auto`` (every device that the process sees).

        Raises:
            ValueError: What the user can mend: a missing file, a bad row, an unknown model. The
                message says what is wrong, where, and what to do.
        """
        ...

    def plan(self, options: Mapping[str, object]) -> Plan:
        """Return how long a trial with these options will train, without training it."""
        ...

    def add(
        self, trial: int, options: Mapping[str, object], resume_from: Path | None = None
    ) -> None:
        """Let a trial join at the next step, from its beginning or from a saved folder.

        Args:
            trial: A key of the caller's, unique among the trials present.
            options: The trial's whole config, ``fixed`` included, without aliases.
            resume_from: A folder written by ``save``.

        Raises:
            ValueError: The options are not valid, or the saved folder belongs to other options.
            MemoryError: There is no room for it. It is not present, and the others are as before.
        """
        ...

    def fits(self, options: Mapping[str, object]) -> bool:
        """Return whether a trial with these options fits beside those present.

        As far as measured: True where nothing is known or nobody is present. After the trainer was out
        of memory the same trials do not fit again until somebody has left.
        """
        ...

    def capacity(self, configs: Sequence[Mapping[str, object]]) -> Capacity:
        """Return how many trials like these fit on the device at once.

        Trains a step or two of the costliest of them to find out.

        Args:
            configs: Whole configs, at least one.

        Raises:
            ValueError: A trial is present, or no trial with these options can be made.
        """
        ...

    def advance(self) -> list[Report]:
        """Do one pass of every trial present; return the reports that this made.

        A pass is an optimizer step, or one of its batches where a trial accumulates gradients. A
        trial validates inside this call when its step is due. One whose report has an ``end`` is
        not stepped again, and stays until it is removed, so that it can be saved. An error in one
        trial becomes its report; the others go on. Where the trials do not fit, the youngest of
        them is displaced, and the others lose nothing. No trial makes two reports in one call,
        unless the second says that it is displaced.
        """
        ...

    def step(self, trial: int) -> int:
        """Return the optimizer steps that a trial has done."""
        ...

    def remove(self, trial: int) -> None:
        """Let a trial leave between two steps; its memory is freed.

        Raises:
            KeyError: No such trial is present.
        """
        ...

    def save(self, trial: int, folder: Path) -> None:
        """Write the trial as it is now into an empty folder, without pickles.

        ``ADAPTER_FOLDER`` holds what the user gets, ``STATE_FOLDER`` the rest. Several threads may call
        this at once, each for another trial, while nothing else is called.
        """
        ...

    def evaluate(
        self, options: Mapping[str, object], adapter: Path | None = None
    ) -> Mapping[str, float]:
        """Return the validation's metrics of a saved adapter, or of the base model as it is.

        Args:
            options: A trial's whole config.
            adapter: An ``ADAPTER_FOLDER`` of a trial with these options; None: before training.
        """
        ...

    @classmethod
    def merge(cls, options: Mapping[str, object], adapter: Path, folder: Path) -> None:
        """Write full weights, base model and adapter in one, into an empty folder.

        Args:
            options: The trial's whole config.
            adapter: An ``ADAPTER_FOLDER``.
            folder: Loads with transformers afterwards.

        Raises:
            ValueError: The weights cannot be merged, and why.
        """
        ...
