"""The trainer itself: one base model, one dataset, and the trials on it.

Imports torch; ``trainers.lora.LoraTrainer`` is the way in that does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trainers.lora import step_log
from trainers.lora.admission import Admission
from trainers.lora.callbacks.own_callback import OwnCallback
from trainers.lora.capacity import Probe
from trainers.lora.checkpoint import save_trial
from trainers.lora.course import Course
from trainers.lora.data.dataset import load_dataset
from trainers.lora.data.encoding import Encoder
from trainers.lora.data.packing import check_keeps_apart
from trainers.lora.memory import DeviceMemory, is_out_of_memory
from trainers.lora.model.adapters import AdapterPool
from trainers.lora.model.base_model import BaseModel, load_base_model, load_tokenizer
from trainers.lora.model.full_weights import FullWeights
from trainers.lora.model.weights import WeightPool
from trainers.lora.options import LoraOptions
from trainers.lora.pack.ability import Ability, find_ability
from trainers.lora.pack.within_memory import MOST_TOKENS
from trainers.lora.passes import (
    Passes,
    PassFailed,
    PassOutOfMemory,
    StepLoss,
    StepOutcome,
    describe,
)
from trainers.lora.snapshots import as_it_was
from trainers.lora.trial import Trial
from trainers.lora.trial_maker import TrialMaker
from trainers.lora.validation.eval_sets import EvalSets
from trainers.lora.validation.generation import Generator
from trainers.lora.validation.results import Results
from trainers.lora.validation.side import IN_TURN, SideValidator, side_model
from trainers.lora.validation.validator import Validator
from trainers.protocol import Capacity, Plan, Report

_VISITOR = -1
"""Key of an adapter that comes to be validated only; trials' numbers start at 0."""


class Engine:
    """Implements ``trainers.protocol.Trainer`` on checked options."""

    def __init__(self, fixed: LoraOptions, device: str) -> None:
        for entry in fixed.callbacks:
            OwnCallback(entry)  # one that cannot be made is said before anything is loaded
        # Data first: its mistakes are the most frequent, and a large model takes minutes.
        self._tokenizer = load_tokenizer(fixed)
        encoder = Encoder.of(fixed, self._tokenizer)
        self._dataset = load_dataset(fixed, encoder, _pad_token_id(self._tokenizer))
        self._base = load_base_model(fixed, device)
        if fixed.packing:
            check_keeps_apart(self._base.model, self._base.device)
        self._fixed = fixed
        side = side_model(self._base, fixed) if fixed.eval_async else None  # before any adapter
        ability = self._find_ability()
        self._notes = [*self._base.notes, *self._dataset.notes, *self._validation_notes(side)]
        if ability.problem is not None:
            self._notes.append(f"trials take turns, each with a pass of its own: {ability.problem}")
        self._sets = EvalSets(fixed, self._dataset.validation_sets)
        self._weights = self._make_weights()
        self._maker = TrialMaker(
            self._base, self._dataset, self._weights, self._tokenizer, self._notes
        )
        self._passes = Passes(self._base, self._weights, self._dataset, ability)
        self._validator = self._make_validator(self._base, self._passes)
        self._course = Course(self._validator, self._make_side(side))
        self._trials: dict[int, Trial] = {}
        self._resumed_at_end: set[int] = set()
        self._begun: set[int] = set()  # their step has more batches, or is done again
        memory = DeviceMemory(self._base.device)
        most_tokens = MOST_TOKENS.get(self._base.device.type)
        self._admission = Admission(memory, self._dataset, self._weights, most_tokens)

    def plan(self, options: LoraOptions) -> Plan:
        self._check_shared(options)
        schedule = self._maker.schedule(options)
        return Plan(
            num_train_samples=len(self._dataset.train),
            num_eval_samples=len(self._dataset.validation),
            num_steps=schedule.num_steps,
            num_validations=len(schedule.validation_steps),
            num_trainable_parameters=self._weights.num_parameters(options),
            notes=tuple(self._notes),
        )

    def add(self, key: int, options: LoraOptions, resume_from: Path | None) -> None:
        if key in self._trials:
            raise ValueError(f"trial {key} is on this trainer already. Remove it first.")
        self._check_shared(options)
        with self._admission.joining(key, options):
            trial = self._maker.make(key, options, resume_from)
            try:
                self._course.add(trial)
            except Exception:
                self._weights.remove(key)
                raise
        self._trials[key] = trial
        if trial.progress.end is not None:
            self._resumed_at_end.add(key)

    def fits(self, options: LoraOptions) -> bool:
        return self._admission.fits(options)

    def capacity(self, configs: Sequence[LoraOptions]) -> Capacity:
        if self._trials:
            present = ", ".join(map(str, self._trials))
            raise ValueError(f"the capacity is measured without a trial. Present: {present}.")
        for options in configs:
            self._check_shared(options)
        probe = Probe(
            self._admission,
            self._passes,
            self._dataset,
            make=lambda options: self._maker.make(_VISITOR, options, None),
            remove=lambda: self._weights.remove(_VISITOR),
        )
        return probe.capacity(configs)

    def advance(self) -> list[Report]:
        self._course.begin_round()
        reports = [self._trials[key].repeat_end() for key in sorted(self._resumed_at_end)]
        self._resumed_at_end.clear()
        ready = []
        for trial in self._active():
            if trial.key in self._begun:
                ready.append(trial)
                continue
            report = self._guarded(self._course.before_step, trial)
            reports += [report] if report is not None else []
            if self._course.may_step(trial, report):
                ready.append(trial)
        if not ready and not reports:
            self._course.wait_for_any()
        reports += self._step(ready)
        return reports

    def step(self, key: int) -> int:
        trial = self._get(key)
        snapshot = self._course.state_to_save(trial)
        return trial.step if snapshot is None else snapshot.step

    def remove(self, key: int) -> None:
        self._course.remove(self._get(key))
        self._leave(key)

    def save(self, key: int, folder: Path) -> None:
        trial = self._get(key)
        with as_it_was(trial, self._course.state_to_save(trial)):
            save_trial(trial, self._weights, self._dataset.digest, folder)

    def evaluate(self, options: LoraOptions, adapter: Path | None) -> dict[str, float]:
        self._check_shared(options)
        if not self._dataset.validation:
            raise ValueError(
                "there is nothing to validate on: give val_size or validation_file beside "
                "eval_strategy: no."
            )
        schedule = self._maker.schedule(options)
        with self._weights.visited():
            self._weights.add(_VISITOR, options, adapter)
            self._weights.activate(_VISITOR)
            try:
                parts = self._sets.final(len(schedule.validation_steps))
                return dict(self._validator.validate(_VISITOR, parts, Results()).metrics)
            finally:
                self._weights.remove(_VISITOR)

    def _active(self) -> list[Trial]:
        trials = self._trials.values()
        displaced = self._admission.displaced
        return [t for t in trials if t.progress.end is None and t.key not in displaced]

    def _step(self, trials: Sequence[Trial]) -> list[Report]:
        """Do one pass of these trials; return the reports that this made."""
        fresh = [trial for trial in trials if trial.key not in self._begun]
        reports = self._each(self._course.begin_step, fresh)
        self._begun |= {trial.key for trial in fresh}
        active = self._active()
        trials = [trial for trial in trials if trial in active]
        with self._admission.passing(trials, self._passes.num_tokens):
            outcomes = dict(zip(trials, self._passes.backward(trials), strict=True))
        stuck = [of for of in outcomes.values() if isinstance(of, PassOutOfMemory)]
        done = [trial for trial, of in outcomes.items() if isinstance(of, StepLoss | PassFailed)]
        with self._admission.room.of_validation():
            reports += self._finish(done, outcomes)
        if stuck:  # those steps are done again, with more room
            reports += self._admission.make_room(
                self._active(), self._savable_step, stuck[0].message
            )
        return reports

    def _finish(
        self, trials: Sequence[Trial], outcomes: Mapping[Trial, StepOutcome | None]
    ) -> list[Report]:
        """Update the weights of trials, and do what is due after their steps."""
        self._begun -= {trial.key for trial in trials}
        reports = self._each(lambda trial: self._update(trial, outcomes[trial]), trials)
        active = self._active()
        going_on = [trial for trial in trials if trial in active]
        self._course.measure_together(going_on)
        return reports + self._each(self._course.after_step, going_on)

    def _savable_step(self, trial: Trial) -> int:
        """Return the step to which a trial can be saved: not within one, for its callbacks."""
        if trial.key in self._begun and trial.callbacks is not None:
            return trial.progress.validated_step
        return self.step(trial.key)

    def _update(self, trial: Trial, outcome: StepOutcome | None) -> Report | None:
        """Update a trial's weights by its gradients; return a report if that ends it."""
        if isinstance(outcome, PassFailed):
            return trial.fail(outcome.message)
        assert isinstance(outcome, StepLoss)
        measured = {**step_log.memory(self._base.device), "pack": outcome.num_trials}
        return trial.update(outcome.loss, outcome.num_tokens, outcome.seconds, measured)

    def _each(self, act: Callable[[Trial], Report | None], trials: Sequence[Trial]) -> list[Report]:
        """Act on trials one by one; return the reports that this made."""
        reports = [self._guarded(act, trial) for trial in trials]
        return [report for report in reports if report is not None]

    def _guarded(self, act: Callable[[Trial], Report | None], trial: Trial) -> Report | None:
        """Let an error become this trial's report; the others go on."""
        try:
            return act(trial)
        except Exception as error:
            if is_out_of_memory(error):
                return self._admission.give_up(trial, error)
            return trial.fail(describe(error))

    def _leave(self, key: int) -> None:
        del self._trials[key]
        self._resumed_at_end.discard(key)
        self._passes.forget(key)
        self._begun.discard(key)
        self._weights.remove(key)
        self._admission.leave(key)

    def _make_weights(self) -> WeightPool:
        if self._fixed.finetuning_type == "full":
            return FullWeights(self._base, self._tokenizer)
        return AdapterPool(self._base)

    def _make_validator(self, base: BaseModel, passes: Passes) -> Validator:
        generator = Generator(base, self._tokenizer)
        return Validator(self._fixed, self._dataset, self._sets, passes, generator)

    def _make_side(self, base: BaseModel | None) -> SideValidator | None:
        if base is None:
            return None
        adapters = AdapterPool(base)
        passes = Passes(base, adapters, self._dataset, find_ability(base, self._fixed.max_length))
        return SideValidator(self._make_validator(base, passes), adapters)

    def _find_ability(self) -> Ability:
        if self._fixed.finetuning_type == "full":
            return Ability(None)
        return find_ability(self._base, self._fixed.max_length)

    def _validation_notes(self, side: BaseModel | None) -> list[str]:
        notes = []
        if self._fixed.eval_async and side is None:
            notes.append(IN_TURN)
        if not self._fixed.has_validation_data:
            notes.append("nothing is validated: neither val_size nor validation_file is given")
        elif not self._fixed.validates:
            notes.append(
                f"eval_strategy: no: the {len(self._dataset.validation)} validation examples are "
                f"not trained on, and not used"
            )
        return notes

    def _check_shared(self, options: LoraOptions) -> None:
        for name in sorted(LoraOptions.shared):
            here, given = getattr(self._fixed, name), getattr(options, name)
            if here != given:
                raise ValueError(
                    f"{name}: {given!r} differs from {here!r}, with which this trainer was made. "
                    f"Trials on one trainer share it."
                )

    def _get(self, key: int) -> Trial:
        if key not in self._trials:
            present = ", ".join(map(str, self._trials)) or "none"
            raise KeyError(f"trial {key} is not on this trainer. Present: {present}.")
        return self._trials[key]


def _pad_token_id(tokenizer: object) -> int:
    """Return any id: padding is masked out and never a target."""
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if isinstance(value, int):
            return value
    return 0
