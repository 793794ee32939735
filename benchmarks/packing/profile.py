"""Where the time of a pass goes, by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

TOP = 15
NAMED = 5
US_PER_MS = 1000.0


class Profile:
    """The operators of one run, by the time that they took themselves."""

    def __init__(self, run: Callable[[], object]) -> None:
        """Run something once to warm up, and once under the profiler."""
        run()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            run()
        self._averages = profiler.key_averages()

    @property
    def milliseconds(self) -> dict[str, float]:
        """Of each operator, without the operators that it calls."""
        return {event.key: event.self_cpu_time_total / US_PER_MS for event in self._averages}

    def table(self) -> str:
        """Return the top operators as torch prints them."""
        text: str = self._averages.table(sort_by="self_cpu_time_total", row_limit=TOP)
        return text

    def beyond(self, other: Profile) -> str:
        """Return in one line which operators take most time here beyond what they take there."""
        theirs = other.milliseconds
        extra = {name: ms - theirs.get(name, 0.0) for name, ms in self.milliseconds.items()}
        top = sorted(extra, key=lambda name: -extra[name])[:NAMED]
        return ", ".join(f"{name} +{extra[name]:.0f} ms" for name in top)
