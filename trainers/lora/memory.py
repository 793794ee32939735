"""The memory of a device: what there is, what passes were seen to take, and which trials fit.

Knows no trial and no model, only how much each trial puts on the device. What is not known, such as
the peak of a pass where it cannot be measured, counts as nothing until memory runs out.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

GIB = 2**30

_BYTES_PER_WEIGHT = 4
"""Trained weights are float32, and so are their gradients."""

_COPIES_AT_REST = 4
"""Of a trial's weights between two steps: themselves, stacked with others', and two averages of the
optimizer (most have fewer)."""

_COPIES_OF_GRADIENTS = 2
"""When a pass is over, and nothing else of it is left: as it leaves them, and for the optimizer."""

_USED_AT_MOST = 0.95
"""Of a device: the rest goes to pieces between the tensors."""

_SIGNS = (
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


class DeviceMemory:
    """The memory that this process may use on one device, in bytes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_cuda = device.type == "cuda"

    def total(self) -> int | None:
        """Return what this process may have in all, with what it has; None if that is unknown."""
        if self._is_cuda:
            free, _ = torch.cuda.mem_get_info(self._device)
            return free + torch.cuda.memory_reserved(self._device)
        if self._device.type != "cpu":
            return None
        available = psutil.virtual_memory().available
        return self.in_use() + int(min([available, *_left_in_control_groups()]))

    def in_use(self) -> int:
        """Return what this process has now."""
        if self._is_cuda:
            return torch.cuda.memory_allocated(self._device)
        return int(psutil.Process().memory_info().rss)

    def forget_peak(self) -> None:
        """Let ``peak`` begin again from here."""
        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak stays unknown
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int | None:
        """Return the most that this process had since ``forget_peak``; None if it is unknown."""
        if self._is_cuda:
            return torch.cuda.max_memory_allocated(self._device)
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return None

    def let_go(self) -> None:
        """Hand back what nobody uses any more, after memory ran out."""
        gc.collect()
        if self._is_cuda:
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Load:
    """What one trial puts on a device.

    Attributes:
        num_weights: That it trains.
        num_tokens: The most that one of its passes can have, with padding.
    """

    num_weights: int
    num_tokens: int

    @property
    def num_bytes(self) -> int:
        """What it takes between two steps, when the optimizer has begun."""
        return self._copies(_COPIES_AT_REST)

    @property
    def num_bytes_after_pass(self) -> int:
        """What it takes when its gradients are there."""
        return self._copies(_COPIES_AT_REST + _COPIES_OF_GRADIENTS)

    @property
    def num_bytes_after_first_pass(self) -> int:
        """The same before the optimizer has begun: weights, their stack, and gradients."""
        return self._copies(3)

    def _copies(self, count: int) -> int:
        return self.num_weights * _BYTES_PER_WEIGHT * count


class Room:
    """Reckons which trials fit on a device together, from what was measured so far."""

    def __init__(self, memory: DeviceMemory, most_tokens: int | None = None) -> None:
        """Take a device that holds what all trials share, and none of them.

        Args:
            memory: Its.
            most_tokens: Of a pass of several trials; None: as many as they have.
        """
        self._memory = memory
        self._most_tokens = math.inf if most_tokens is None else most_tokens
        self._base = memory.in_use()
        self._bytes_per_token = 0.0
        self._validation = 0
        self._num_passes = 0
        self._too_much: list[tuple[Load, ...]] = []

    @property
    def is_measured(self) -> bool:
        """Whether anything is known of what a pass takes."""
        return self._bytes_per_token > 0

    @property
    def base_gib(self) -> float:
        """What all trials share."""
        return self._base / GIB

    @property
    def total_gib(self) -> float | None:
        """What there is in all; None if unknown."""
        total = self._memory.total()
        return None if total is None else total / GIB

    def needed_gib(self, load: Load) -> float:
        """Return what one trial takes beside what all share, in its passes."""
        return (load.num_bytes + self._bytes_per_token * load.num_tokens) / GIB

    def holds(self, loads: Collection[Load]) -> bool:
        """Return whether these trials fit together, as far as is known."""
        total = self._memory.total()
        most = math.inf if total is None else _USED_AT_MOST * total
        need = self._need(loads)
        return need <= most and all(need < self._need(others) for others in self._too_much)

    def ran_out(self, loads: Collection[Load]) -> None:
        """Learn that these trials do not fit together, whatever was reckoned."""
        self._too_much.append(tuple(loads))
        self.let_go()

    def let_go(self) -> None:
        """Hand back what nobody uses any more, after memory ran out."""
        self._memory.let_go()

    def is_empty_again(self) -> None:
        """Forget what was learned when memory ran out: another process may have been the cause."""
        self._too_much.clear()

    @contextlib.contextmanager
    def of_passes(self, new: Sequence[Load], num_tokens: Sequence[int]) -> Iterator[None]:
        """Within this, trials go forward and back; learn what a token takes.

        Args:
            new: Of those trials whose first pass it is.
            num_tokens: Filled in by the end: of each pass that was made.
        """
        resting = self._memory.in_use()
        self._memory.forget_peak()
        yield
        peak = self._memory.peak()
        self._num_passes += 1
        if self._num_passes == 1:  # sets up libraries, and reads weights that were only mapped
            own = sum(load.num_bytes_after_first_pass for load in new)
            self._base = max(self._base, self._memory.in_use() - own)
            return
        if peak is None or not num_tokens:
            return
        taken = (peak - resting) / max(num_tokens)
        self._bytes_per_token = max(self._bytes_per_token, taken)

    @contextlib.contextmanager
    def of_validation(self) -> Iterator[None]:
        """Within this, trials may be validated; learn what the largest validation takes."""
        resting = self._memory.in_use()
        self._memory.forget_peak()
        yield
        self._validation = max(self._validation, (self._memory.peak() or 0) - resting)

    def _need(self, loads: Collection[Load]) -> float:
        resting = self._base + sum(load.num_bytes for load in loads)
        tokens = [load.num_tokens for load in loads]
        at_once = min(sum(tokens), max(self._most_tokens, *tokens)) if tokens else 0
        passing = resting + self._bytes_per_token * at_once
        after = self._base + sum(load.num_bytes_after_pass for load in loads)
        return max(passing, after, resting + self._validation)


def _left_in_control_groups(root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Yield what each limit on this process's control groups leaves, of both versions."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers in ("", "memory"):
                folder = root / controllers / name.lstrip("/")
                for place in (folder, *folder.parents):
                    yield from _left_in(place)
                    if place == root:
                        break


def _left_in(folder: Path) -> Iterator[int]:
    """Yield what a control group's limit leaves; what only caches files counts as left."""
    names = (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for limit, used, cached in names:
        with contextlib.suppress(OSError, ValueError):  # no such file; "max": no limit
            most, now = (int((folder / name).read_text()) for name in (limit, used))
            statistics = dict(
                line.split() for line in (folder / "memory.stat").read_text().splitlines()
            )
            yield max(0, most - now + int(statistics.get(cached, 0)))
