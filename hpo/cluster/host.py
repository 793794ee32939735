"""The process that owns a device: one base model, one trainer, all trials placed there.

A Ray actor (``host_actor``), found by name or made by the driver for its first trial on the device. It
trains in a thread of its own; its methods only pass messages. Knows nothing of the study: it is told
what to train, writes each checkpoint before its report leaves, and goes away when nobody calls or when
its trainer hangs. A trial that does not fit beside those on the device waits here until one has left.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hpo import faults
from hpo.checkpoints import CheckpointStore
from hpo.cluster.messages import HostSetup, Word
from hpo.cluster.pulse import Pulse, where_is
from hpo.cluster.seats import Seat
from hpo.errors import HpoError
from hpo.loading import to_stay
from hpo.lookup import find_trainer
from trainers.protocol import EndReason, Report, Trainer

ANSWER_SHARE = 0.1
"""So much of a pass's time its trials may wait for their verdicts, and their places for who comes next.
Both take some milliseconds, and a step that a stopped trial trains on is lost, as is a place in it."""

MAX_ANSWER_S = 1.0
MAX_SAVES = 4
"""Checkpoints that are written at once."""


def _leave_process() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)  # whatever hangs or is broken here may not be waited for


class ModelHost:
    """Trains trials on one device. Made a Ray actor elsewhere; usable without Ray in tests."""

    def __init__(
        self,
        setup: HostSetup,
        device: str,
        num_threads: int | None = None,
        leave_process: Callable[[], None] = _leave_process,
        notes: Path | None = None,
    ) -> None:
        """Begin to load.

        Args:
            setup: What the trainer is made of.
            device: As the trainer names it.
            num_threads: That compute on the processor; None: as the environment says.
            leave_process: Ends this process.
            notes: Folder for the notes of its stays.
        """
        if num_threads is not None:  # read when torch is loaded; Ray has set 1
            os.environ["OMP_NUM_THREADS"] = str(num_threads)
        self._setup = setup
        self._device = device
        self._leave_process = leave_process
        self._notes = notes
        self._store = CheckpointStore(setup.store, setup.disk_quota_gib)
        self._seats: dict[int, Seat] = {}
        self._waiting: deque[tuple[int, Seat, Path | None]] = deque()
        self._present: dict[int, Seat] = {}  # on the trainer; the training thread alone changes it
        self._joining: Seat | None = None
        self._requests: deque[Callable[[Trainer], None]] = deque()
        self._changed = threading.Condition()
        self._fatal: str | None = None
        self._loading = True
        self._pausing = False
        self._pulse = Pulse(setup.stall_timeout, setup.patience_s)
        threading.Thread(target=self._run, name="train", daemon=True).start()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    # Called by the driver

    def join(
        self,
        number: int,
        config: Mapping[str, object],
        stay: int = 0,
        alone: bool = False,
        note: str | None = None,
    ) -> int:
        """Let a trial join at the next step, from its newest checkpoint or from its beginning.

        One that is here already is begun again: a report of it may have been lost on its way. One
        that does not fit beside the others waits until it does.

        Args:
            number: Of the trial.
            config: The trainer's whole config.
            stay: Rising with each stay of this trial on any host.
            alone: Its next loss would be its last, so nobody else may be there to cause it, or to be
                lost with it.
            note: Name of a note of the stay.

        Returns:
            The id of this process.
        """
        with self._changed:
            self.leave(number)
            path = self._notes / note if self._notes is not None and note is not None else None
            seat = Seat(stay, config, alone, path)
            self._seats[number] = seat
            if self._pausing and self._loading:
                seat.words.append(Word(paused=True))
            self._requests.append(lambda trainer: self._add(number, seat))
            self._changed.notify_all()
            return os.getpid()

    def next_word(self, number: int, timeout_s: float, stay: int | None = None) -> Word:
        """Wait for a trial's next report; if there is none in time, return that it is alive."""
        self._pulse.called()
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                if self._fatal is not None:
                    return Word(fatal=self._fatal)
                seat = self._seats.get(number)
                if seat is None or stay not in (None, seat.stay):
                    return Word(gone=True)
                if seat.words:
                    return seat.words.popleft()
                if seat.awaits_verdict:  # who asks on has heard that the trial goes on
                    seat.awaits_verdict = False
                    self._changed.notify_all()
                left = deadline - time.monotonic()
                if left <= 0:
                    return Word(step=seat.steps_done, waiting=not seat.joined)
                self._changed.wait(left)

    def next_words(self, number: int, timeout_s: float, stay: int) -> list[Word]:
        """Wait for a trial's next report, and return with it all that has come since.

        So a driver that is busy hears them together, and is never further behind than one turn.
        """
        words = [self.next_word(number, timeout_s, stay)]
        with self._changed:
            seat = self._seats.get(number)
            if words[0].is_news and seat is not None and seat.stay == stay:
                words += seat.words
                seat.words.clear()
        return words

    def leave(self, number: int, stay: int | None = None) -> None:
        """Let a trial leave at the next step. One that is not here is no error.

        Args:
            number: Of the trial.
            stay: The stay that is over; the trial remains if it has come again since.
        """
        self._pulse.called()
        with self._changed:
            seat = self._seats.get(number)
            if seat is not None and (stay is None or seat.stay <= stay):
                del self._seats[number]
                self._requests.append(lambda trainer: self._let_go(trainer, number, seat))
                self._changed.notify_all()

    def pause(self) -> None:
        """Save every trial at the next step and train none any more."""
        self._pulse.called()
        with self._changed:
            if self._loading and not self._pausing:  # none has begun
                for seat in self._seats.values():
                    seat.words.append(Word(paused=True))
            self._pausing = True
            self._requests.append(self._save_all)
            self._changed.notify_all()

    # The training thread

    def _run(self) -> None:
        try:
            with self._pulse.busy():
                trainer = self._make_trainer()
        except (HpoError, ValueError) as error:
            self._die(str(error))
            return
        except BaseException:
            self._die(f"the model's host failed:\n{traceback.format_exc()}")
            return
        self._loading = False
        try:
            while True:
                self._serve(trainer)
                started, num_present = time.monotonic(), len(self._present)
                with self._pulse.busy():
                    self._advance(trainer)
                self._await_answers(num_present, ANSWER_SHARE * (time.monotonic() - started))
        except HpoError as error:
            self._die(str(error))
        except BaseException as error:
            self._crash(error)

    def _make_trainer(self) -> Trainer:
        sys.path += [folder for folder in self._setup.import_path if folder not in sys.path]
        with to_stay():
            return find_trainer(self._setup.trainer)(self._setup.fixed, self._device)

    def _serve(self, trainer: Trainer) -> None:
        """Carry out what was asked, and wait while there is nothing to train."""
        while True:
            with self._changed:
                request = self._requests.popleft() if self._requests else None
            with self._pulse.busy():
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

    def _add(self, number: int, seat: Seat) -> None:
        """Let a trial wait for room, to begin or to go on from its newest checkpoint.

        Its reports so far are said again: the last one may not have reached the database.
        """
        seat.note("waiting")
        checkpoint = self._store.newest(number)
        for warning in self._store.warnings():
            self._say(number, seat, Word(note=warning))
        if checkpoint is not None:
            seat.history = list(checkpoint.history)
            seat.steps_seen = seat.steps_done = checkpoint.step
            for report in seat.history:
                self._say(number, seat, Word(report=report))
        if seat.ended:
            return
        if self._pausing:
            self._say(number, seat, Word(paused=True))
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

    def _let_in(self, trainer: Trainer, number: int, seat: Seat, saved: Path | None) -> bool:
        """Add a trial if it fits; return False if it has to wait. Alone it never waits."""
        present = self._present.values()
        if present and (seat.alone or any(other.alone for other in present)):
            return False
        try:
            if present and not trainer.fits(seat.config):
                return False
            seat.note("present")
            self._joining = seat
            trainer.add(number, seat.config, saved)
            self._present[number] = seat
            seat.joined = True
            faults.reached("joined")
        except MemoryError as error:
            if present:
                seat.note("waiting")
                return False
            self._say_end(number, seat, "out_of_memory", str(error))
        except Exception as error:
            reason = str(error) if isinstance(error, ValueError) else traceback.format_exc()
            self._say_end(number, seat, "failed", reason)
        finally:
            self._joining = None
        return True

    def _remove(self, trainer: Trainer, number: int) -> None:
        seat = self._present.pop(number, None)
        if seat is not None:  # else it never began, or has ended
            seat.joined = False
            trainer.remove(number)

    def _let_go(self, trainer: Trainer, number: int, seat: Seat) -> None:
        self._remove(trainer, number)
        if seat.path is not None:
            seat.path.unlink(missing_ok=True)  # nobody will ask for it

    def _advance(self, trainer: Trainer) -> None:
        # One that left, or begins again, while this step was made has nobody to hear of it.
        heard = [
            (report, seat)
            for report in trainer.advance()
            if (seat := self._seats.get(report.trial)) is not None and seat.joined
        ]
        self._save_validations(trainer, heard)
        for report, seat in heard:
            if report.end == "displaced":
                self._displace(trainer, report, seat)
                continue
            seat.steps_seen = report.step
            if report.end is not None:  # its memory is for others, whenever the driver hears of it
                seat.note("over")
                self._remove(trainer, report.trial)
            self._say(report.trial, seat, Word(report=report))
        for number, seat in self._present.items():
            seat.steps_done = trainer.step(number)

    def _await_answers(self, num_before: int, timeout_s: float) -> None:
        """Give the driver a moment before a step that would be discarded, or leave a place empty.

        Those who have validated may be stopped, and the place of one that has ended may be taken.
        """

        def are_in() -> bool:
            seats = self._seats.values()
            is_judged = not any(seat.awaits_verdict for seat in seats)
            return is_judged and sum(not seat.ended for seat in seats) >= num_before

        with self._changed:
            self._changed.wait_for(lambda: self._pausing or are_in(), min(timeout_s, MAX_ANSWER_S))

    def _save_validations(self, trainer: Trainer, heard: Sequence[tuple[Report, Seat]]) -> None:
        """Write the checkpoints of the trials that have validated, several at a time.

        Each waits for the disk most of its time, and no report leaves before its checkpoint is whole.
        """
        validated = [(of, seat) for of, seat in heard if of.metrics and of.end != "displaced"]

        def save(report: Report, seat: Seat) -> None:
            seat.history.append(report)
            self._save(trainer, report.trial, seat, report.step, is_validation=True)

        if len(validated) == 1:
            save(*validated[0])
        elif validated:
            # A quota is counted from one checkpoint to the next; a URL has one folder to write from.
            is_free = self._setup.disk_quota_gib is None and self._store.is_local
            at_once = MAX_SAVES if is_free else 1
            with ThreadPoolExecutor(at_once, thread_name_prefix="save") as pool:
                for done in [pool.submit(save, report, seat) for report, seat in validated]:
                    done.result()

    def _displace(self, trainer: Trainer, report: Report, seat: Seat) -> None:
        """Save a trial that makes room, and hand it back to whoever has room for it."""
        number = report.trial
        if report.step > seat.steps_seen:
            self._save(trainer, number, seat, report.step, is_validation=False)
        seat.note("over")
        self._remove(trainer, number)
        reason = report.message or "it makes room for others"
        self._say(number, seat, Word(paused=True, reason=reason))

    def _save_all(self, trainer: Trainer) -> None:
        for number, seat in list(self._seats.items()):
            if seat.joined:
                step = trainer.step(number)
                if step > seat.steps_seen:
                    self._save(trainer, number, seat, step, is_validation=False)
            elif not any(waiting is seat for _, waiting, _ in self._waiting):
                continue  # it has ended, or asked to join after this request and will be told then
            self._say(number, seat, Word(paused=True))
        self._waiting.clear()

    def _save(
        self, trainer: Trainer, number: int, seat: Seat, step: int, *, is_validation: bool
    ) -> None:
        self._store.write(
            number, step, seat.history, is_validation, lambda folder: trainer.save(number, folder)
        )
        seat.steps_seen = step

    def _say_end(self, number: int, seat: Seat, end: EndReason, message: str) -> None:
        seat.note("over")
        said = Report(number, len(seat.history), seat.steps_seen, end=end, message=message)
        self._say(number, seat, Word(report=said))

    def _say(self, number: int, seat: Seat, word: Word) -> None:
        with self._changed:
            if self._seats.get(number) is seat:
                seat.words.append(word)
                seat.ended |= word.report is not None and word.report.end is not None
                seat.awaits_verdict |= word.report is not None and word.report.end is None
                self._changed.notify_all()

    # Its end

    def _die(self, reason: str) -> None:
        """Say that no trial can be trained here, and stay until everybody has heard."""
        with self._changed:
            self._fatal = reason
            self._changed.notify_all()

    def _crash(self, error: BaseException) -> None:
        """End this process: after an error of its own, a trainer and its device are not to be trusted.

        Alone on the trainer, a trial has failed by it. Of several, nobody knows whose error it was.
        """
        said = "".join(traceback.format_exception(error))
        present = list(self._present.values())
        for seat in present:
            if len(present) == 1:
                seat.note("failed", said)
            else:
                last = said.strip().splitlines()[-1]
                seat.note("lost", f"the trainer raised, with several trials: {last}")
        print(said, file=sys.stderr)
        self._leave_process()

    def _watch(self) -> None:
        """End this process when the trainer hangs, or no driver has called for a lease's length."""
        stalled = self._pulse.wait_for_end()
        for seat in list(self._seats.values()):
            if not stalled:
                seat.note("over")  # its driver has been away; nothing was wrong
            elif self._loading:
                seat.note("loading", f"{stalled}: the model was loading")
            elif seat is self._joining or (self._joining is None and seat.joined):
                seat.note("lost", stalled)
            else:
                seat.note("over")
        if stalled:
            print(f"{stalled}. It is at:\n{where_is('train')}", file=sys.stderr)
        self._leave_process()
