"""Which trials may be on a trainer together, and who leaves when their memory runs out.

Reckons what a trial takes from its options and the data; what a device holds is ``memory``'s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from trainers.lora.data.dataset import Dataset, padded
from trainers.lora.memory import DeviceMemory, Load, Room, is_out_of_memory
from trainers.lora.model.weights import WeightPool
from trainers.lora.options import LoraOptions
from trainers.lora.trial import Trial
from trainers.protocol import Report

ADVICE = (
    "Search smaller values or fix one: per_device_train_batch_size (gradient_accumulation_steps "
    "makes up for it), lora_r, max_length; or set gradient_checkpointing: true."
)


class Admission:
    """Keeps count of what the trials on one trainer take.

    Attributes:
        room: Of the device.
        displaced: Trials that are stepped no more, until they are removed.
    """

    def __init__(
        self,
        memory: DeviceMemory,
        dataset: Dataset,
        weights: WeightPool,
        most_tokens: int | None = None,
    ) -> None:
        """Begin with a base model and no trial; ``most_tokens`` as in ``Room``."""
        self.room = Room(memory, most_tokens)
        self.displaced: set[int] = set()
        self._dataset = dataset
        self._weights = weights
        self._loads: dict[int, Load] = {}
        self._passed: set[int] = set()

    def load(self, options: LoraOptions) -> Load:
        """Return what a trial with these options puts on the device."""
        lengths = self._dataset.train_lengths
        rows = min(options.per_device_train_batch_size, len(lengths))
        return Load(self._weights.num_parameters(options), padded(rows * max(lengths)))

    def fits(self, options: LoraOptions) -> bool:
        """Return whether a trial fits beside those present; alone it always does."""
        if not self._loads:
            return True
        return self.room.holds([*self._loads.values(), self.load(options)])

    @contextlib.contextmanager
    def joining(self, key: int, options: LoraOptions) -> Iterator[None]:
        """Within this a trial is made.

        Raises:
            MemoryError: There was no memory for it.
        """
        load = self.load(options)
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            message = self._verdict(load, error)
            self.room.ran_out([*self._loads.values(), load])
            raise MemoryError(message) from error
        self._loads[key] = load

    def leave(self, key: int) -> None:
        """Count a trial no more."""
        del self._loads[key]
        self._passed.discard(key)
        # Those who made room for each other would else meet again.
        if not self._loads and key not in self.displaced:
            self.room.is_empty_again()
        self.displaced.discard(key)

    @contextlib.contextmanager
    def passing(self, trials: Sequence[Trial], num_tokens: Sequence[int]) -> Iterator[None]:
        """Within this, these trials go forward and back in passes of so many tokens."""
        new = {trial.key for trial in trials} - self._passed
        with self.room.of_passes([self._loads[key] for key in sorted(new)], num_tokens):
            yield
        self._passed |= new

    def make_room(
        self, active: Sequence[Trial], savable_step: Callable[[Trial], int], message: str
    ) -> list[Report]:
        """Displace the youngest trial, or end the only one: a pass did not even fit alone.

        Args:
            active: Those that are stepped, the youngest last.
            savable_step: The step to which a trial can be saved.
            message: What torch said.
        """
        if not active:
            return []
        return [self._end(active[-1], savable_step(active[-1]), message)]

    def give_up(self, trial: Trial, error: Exception) -> Report:
        """Let a trial leave that ran out of memory in an update or a validation.

        What was begun there cannot be gone on with, so it goes back to its newest snapshot.
        """
        return self._end(trial, trial.progress.validated_step, error)

    def _end(self, trial: Trial, step: int, what: object) -> Report:
        verdict = self._verdict(self._loads[trial.key], what)
        self.room.ran_out(self._loads.values())
        if len(self._loads) == 1:
            return trial.fail(verdict, "out_of_memory")
        self.displaced.add(trial.key)
        said = f"out of memory with {len(self._loads)} trials on the device: {_one_line(what)}"
        return Report(trial.key, trial.progress.validation, step, end="displaced", message=said)

    def _verdict(self, load: Load, what: object) -> str:
        total = self.room.total_gib
        of = "" if total is None else f" of {total:.2g} GiB"
        return (
            f"it does not fit on the device even alone: its {load.num_weights:,} weights with their "
            f"optimizer and a pass of {load.num_tokens} tokens need more than is left{of} beside a "
            f"base model of {self.room.base_gib:.2g} GiB ({_one_line(what)}). {ADVICE}"
        )


def _one_line(what: object) -> str:
    return " ".join(str(what).split())
