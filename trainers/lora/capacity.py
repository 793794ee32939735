"""How many trials a device holds: found out by training the costliest of them for a moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainers.lora.admission import Admission
from trainers.lora.data.dataset import Dataset
from trainers.lora.memory import is_out_of_memory
from trainers.lora.options import LoraOptions
from trainers.lora.passes import Passes, PassOutOfMemory, StepLoss
from trainers.lora.trial import Trial
from trainers.lora.validation.results import Indices
from trainers.protocol import Capacity

MOST = 64
"""No more are counted: nobody runs so many on a device."""

NUM_PASSES = 4
"""The first pass of a process sets up libraries, and tells nothing."""


@dataclass(frozen=True)
class Probe:
    """Trains trials that nobody keeps.

    Attributes:
        admission: Of a trainer without a trial; learns from this.
        passes: To train with.
        dataset: To train on.
        make: Makes a trial.
        remove: Removes it again.
    """

    admission: Admission
    passes: Passes
    dataset: Dataset
    make: Callable[[LoraOptions], Trial]
    remove: Callable[[], None]

    def capacity(self, configs: Sequence[LoraOptions]) -> Capacity:
        """Return how many trials of the costliest kind that fits at all are held at once.

        Those that do not fit even alone take no room from the others: they end.
        """
        room = self.admission.room
        loads = {self.admission.load(options): options for options in configs}
        by_cost = sorted(loads, key=lambda load: (load.num_tokens, load.num_weights), reverse=True)
        too_large = []
        for load in by_cost:
            if self._fits(loads[load]):
                break
            too_large.append(load)
            room.let_go()
        fitting = [load for load in loads if load not in too_large and room.holds([load])]
        if not fitting or not room.is_measured:
            return Capacity(1)
        costliest = max(fitting, key=room.needed_gib)
        count = 1
        while count < MOST and room.holds([costliest] * (count + 1)):
            count += 1
        return Capacity(count, room.base_gib, room.needed_gib(costliest), room.total_gib)

    def _fits(self, options: LoraOptions) -> bool:
        """Train a trial for some steps, and validate the longest examples."""
        room, load = self.admission.room, self.admission.load(options)
        try:
            trial = self.make(options.model_copy(update={"callbacks": ()}))
        except Exception as error:
            if is_out_of_memory(error):
                return False
            raise
        try:
            for number in range(NUM_PASSES):
                with room.of_passes([load] if number == 0 else [], self.passes.num_tokens):
                    (outcome,) = self.passes.backward([trial])
                if isinstance(outcome, StepLoss):
                    trial.update(outcome.loss, outcome.num_tokens, outcome.seconds, {})
                elif outcome is not None:
                    return not isinstance(outcome, PassOutOfMemory)
            with room.of_validation():
                longest = self._longest(options.per_device_eval_batch_size)
                self.passes.measure({trial.key: longest})
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            self.passes.forget(trial.key)
            self.remove()
        return True

    def _longest(self, size: int) -> list[Indices]:
        """Return the longest batch of a validation, if there is one."""
        lengths = [len(example.input_ids) for example in self.dataset.validation]
        order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        return [tuple(order[:size])] if order else []
