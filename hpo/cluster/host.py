"""The process that owns a device: one base model, one trainer, all trials placed there.

A Ray actor, found by name or made by the first proxy that Ray places on the device. It trains in a
thread of its own; its methods only pass messages. Knows nothing of the study: it is told what to
train, writes each checkpoint before its report leaves, and goes away when nobody calls. A trial that
does not fit beside those on the device waits here until one has left.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpo.checkpoints import CheckpointStore
from hpo.cluster.messages import HostSetup, Word
from hpo.errors import HpoError
from hpo.lookup import find_trainer
from trainers.protocol import EndReason, Report, Trainer


@dataclass
class _Seat:
    """One trial on this host.

    Attributes:
        key: Of this stay; a trial that comes again gets another.
        config: The trainer's whole config.
        history: Its validations so far.
        words: Not heard yet.
        steps_seen: Of its newest report or checkpoint.
        joined: The trainer has it.
        ended: It has said its last word.
    """

    key: int
    config: Mapping[str, object]
    history: list[Report] = field(default_factory=list)
    words: deque[Word] = field(default_factory=deque)
    steps_seen: int = 0
    joined: bool = False
    ended: bool = False


class ModelHost:
    """Trains trials on one device. Made a Ray actor by the proxy; usable without Ray in tests."""

    def __init__(self, setup: HostSetup, device: str) -> None:
        self._setup = setup
        self._device = device
        self._store = CheckpointStore.open(setup.store, setup.disk_quota_gib)
        self._seats: dict[int, _Seat] = {}
        self._waiting: deque[tuple[int, _Seat, Path | None]] = deque()
        self._present: set[int] = set()  # on the trainer; the training thread alone changes it
        self._requests: deque[Callable[[Trainer], None]] = deque()
        self._changed = threading.Condition()
        self._num_joins = 0
        self._fatal: str | None = None
        self._pausing = False
        self._called_at = time.monotonic()
        threading.Thread(target=self._run, name="train", daemon=True).start()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    # Called by proxies and the driver

    def join(self, number: int, config: Mapping[str, object]) -> int:
        """Let a trial join at the next step, from its newest checkpoint or from its beginning.

        One that is here already is begun again: its proxy died, maybe with a report in its hands. One
        that does not fit beside the others waits until it does.

        Returns:
            What to leave with.
        """
        with self._changed:
            self.leave(number)
            self._num_joins += 1
            seat = _Seat(self._num_joins, config)
            self._seats[number] = seat
            self._requests.append(lambda trainer: self._add(number, seat))
            self._changed.notify_all()
            return seat.key

    def next_word(self, number: int, timeout_s: float) -> Word | None:
        """Wait for a trial's next report; None if there is none yet."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                self._called_at = time.monotonic()
                if self._fatal is not None:
                    return Word(fatal=self._fatal)
                words = self._seats[number].words
                if words:
                    return words.popleft()
                if self._called_at >= deadline:
                    return None
                self._changed.wait(min(1.0, deadline - self._called_at))

    def leave(self, number: int, key: int | None = None) -> None:
        """Let a trial leave at the next step. One that is not here is no error.

        Args:
            number: Of the trial.
            key: From ``join``: it stays if it has come again since, by another proxy.
        """
        with self._changed:
            self._called_at = time.monotonic()
            seat = self._seats.get(number)
            if seat is not None and key in (None, seat.key):
                del self._seats[number]
                self._requests.append(lambda trainer: self._remove(trainer, number))
                self._changed.notify_all()

    def pause(self) -> None:
        """Save every trial at the next step and train none any more."""
        with self._changed:
            self._called_at = time.monotonic()
            self._pausing = True
            self._requests.append(self._save_all)
            self._changed.notify_all()

    # The training thread

    def _run(self) -> None:
        try:
            trainer = self._make_trainer()
            while True:
                self._serve(trainer)
                self._advance(trainer)
        except (HpoError, ValueError) as error:
            self._die(str(error))
        except BaseException:
            self._die(f"the model's host failed:\n{traceback.format_exc()}")

    def _make_trainer(self) -> Trainer:
        sys.path += [folder for folder in self._setup.import_path if folder not in sys.path]
        return find_trainer(self._setup.trainer)(self._setup.fixed, self._device)

    def _serve(self, trainer: Trainer) -> None:
        """Carry out what was asked, and wait while there is nothing to train."""
        while True:
            with self._changed:
                request = self._requests.popleft() if self._requests else None
            if request is not None:
                request(trainer)
                continue
            self._admit(trainer)
            with self._changed:
                if self._requests:
                    continue
                if self._present and not self._pausing:
                    return
                self._changed.wait()

    def _add(self, number: int, seat: _Seat) -> None:
        """Let a trial wait for room, to begin or to go on from its newest checkpoint.

        Its reports so far are said again: the last one may not have reached the database.
        """
        checkpoint = self._store.newest(number)
        for warning in self._store.warnings():
            self._say(number, Word(note=warning))
        if checkpoint is not None:
            seat.history = list(checkpoint.history)
            seat.steps_seen = checkpoint.step
            for report in seat.history:
                self._say(number, Word(report=report))
        if seat.ended:
            return
        if self._pausing:
            self._say(number, Word(paused=True))
            return
        self._waiting.append((number, seat, checkpoint.folder if checkpoint else None))

    def _admit(self, trainer: Trainer) -> None:
        """Let the trials that wait join, first come first served, as long as they fit."""
        while self._waiting:
            number, seat, saved = self._waiting[0]
            has_left = self._seats.get(number) is not seat
            if not has_left and not self._let_in(trainer, number, seat, saved):
                return
            self._waiting.popleft()

    def _let_in(self, trainer: Trainer, number: int, seat: _Seat, saved: Path | None) -> bool:
        """Add a trial if it fits; return False if it has to wait. Alone it never waits."""
        try:
            if self._present and not trainer.fits(seat.config):
                return False
            trainer.add(number, seat.config, saved)
            self._present.add(number)
            seat.joined = True
        except MemoryError as error:
            if self._present:
                return False
            self._say_end(number, seat, "out_of_memory", str(error))
        except Exception as error:
            reason = str(error) if isinstance(error, ValueError) else traceback.format_exc()
            self._say_end(number, seat, "failed", reason)
        return True

    def _remove(self, trainer: Trainer, number: int) -> None:
        if number in self._present:  # else it never began, or has ended
            self._present.remove(number)
            trainer.remove(number)

    def _advance(self, trainer: Trainer) -> None:
        for report in trainer.advance():
            seat = self._seats.get(report.trial)
            if seat is None or not seat.joined:
                continue  # it left, or begins again, while this step was made
            if report.end == "displaced":
                self._displace(trainer, report, seat)
                continue
            if report.metrics:
                seat.history.append(report)
                self._save(trainer, report.trial, seat, report.step, is_validation=True)
            seat.steps_seen = report.step
            if report.end is not None:  # its memory is for others, whenever its proxy hears of it
                self._remove(trainer, report.trial)
                seat.joined = False
            self._say(report.trial, Word(report=report))

    def _displace(self, trainer: Trainer, report: Report, seat: _Seat) -> None:
        """Save a trial that makes room, and hand it back to whoever has room for it."""
        number = report.trial
        if report.step > seat.steps_seen:
            self._save(trainer, number, seat, report.step, is_validation=False)
        self._remove(trainer, number)
        seat.joined = False
        self._say(number, Word(paused=True, reason=report.message or "it makes room for others"))

    def _save_all(self, trainer: Trainer) -> None:
        for number, seat in list(self._seats.items()):
            if seat.joined:
                step = trainer.step(number)
                if step > seat.steps_seen:
                    self._save(trainer, number, seat, step, is_validation=False)
            elif not any(waiting is seat for _, waiting, _ in self._waiting):
                continue  # it has ended, or asked to join after this request and will be told then
            self._say(number, Word(paused=True))
        self._waiting.clear()

    def _save(
        self, trainer: Trainer, number: int, seat: _Seat, step: int, *, is_validation: bool
    ) -> None:
        self._store.write(
            number, step, seat.history, is_validation, lambda folder: trainer.save(number, folder)
        )

    def _say_end(self, number: int, seat: _Seat, end: EndReason, message: str) -> None:
        said = Report(number, len(seat.history), seat.steps_seen, end=end, message=message)
        self._say(number, Word(report=said))

    def _say(self, number: int, word: Word) -> None:
        with self._changed:
            seat = self._seats.get(number)
            if seat is not None:
                seat.words.append(word)
                seat.ended |= word.report is not None and word.report.end is not None
                self._changed.notify_all()

    def _die(self, reason: str) -> None:
        with self._changed:
            self._fatal = reason
            self._changed.notify_all()

    def _watch(self) -> None:
        """End this process when no driver has called for a lease's length: they are dead."""
        while time.monotonic() - self._called_at < self._setup.patience_s:
            time.sleep(min(1.0, self._setup.patience_s / 4))
        os._exit(0)
