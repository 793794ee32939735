"""What Tune has in place of actors: the places of trials, which need no process of their own.

Tune starts an actor for each trial, and calls it for each result. Ours would only pass on what a host
says; so Tune's manager of actors is replaced by one that asks the hosts. Seen in Ray 2.60,
``tune_controller``, whose names these are.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError
from ray.util.placement_group import placement_group_table, remove_placement_group

from hpo.cluster.messages import Word
from hpo.cluster.on_node import gpus_of
from hpo.cluster.place import Place

WORDS = "words"

FIRST_POLL_S = 0.005
"""Ray makes a place within some milliseconds, if there is room."""

MOST_POLL_S = 0.1

MOURNED_AFTER_S = 1.0
"""A dead host's name is free when Ray has noticed, too; and a network may be back."""

MOST_PER_LOOK_S = 2.0
"""A driver that was itself away (stopped, asleep, swapped out) blames nobody for that time."""

Callback = Callable[..., object]


class _TunesPlace(Place):
    """A place with what Tune keeps at its actors."""

    def __init__(self, resources: Any, on_start: Callback, on_stop: Callback) -> None:
        (request,) = resources.bundles
        super().__init__(resources.to_placement_group(), dict(request))
        self.on_start = on_start
        self.on_stop: Callback | None = on_stop

    def set_on_stop(self, on_stop: Callback | None) -> None:
        self.on_stop = on_stop

    def set_on_error(self, on_error: Callback | None) -> None:
        """Do nothing: a node's end is told as a loss, never as an error."""


@dataclass
class _Asked:
    """What is asked for a place.

    Attributes:
        place: The one.
        then: Called with the answer.
        failed: Called with why there is none.
        silent_s: How long a host has not answered; None: nobody is to blame for the time it takes.
    """

    place: Place
    then: Callable[[Any], object]
    failed: Callable[[RayError], object]
    silent_s: float | None = None


class Places:
    """Takes the place of Tune's own manager of actors, for which it has no option."""

    def __init__(self, wait_s: float | None = None) -> None:
        """Hold none.

        Args:
            wait_s: How long at most for something to happen; None: as Tune says.
        """
        self._wait_s = wait_s
        self._pending: dict[_TunesPlace, Mapping[str, Any]] = {}  # with their first trial
        self._unplaced: set[_TunesPlace] = set()  # pending, and Ray has no room for them yet
        self._live_actors_to_ray_actors_resources: dict[_TunesPlace, tuple[None, None]] = {}
        self._asked: dict[Any, _Asked] = {}  # by its future, the oldest first
        self._soon: deque[tuple[Place, Callable[[], object]]] = deque()
        self._later: deque[tuple[float, Place, Callable[[], object]]] = deque()
        self._poll_s = FIRST_POLL_S
        self._looked_at = time.monotonic()

    # What Tune calls

    def add_actor(
        self,
        cls: object,
        kwargs: Mapping[str, Any],
        resource_request: Any,
        on_start: Callback,
        on_stop: Callback,
        on_error: Callback,
    ) -> _TunesPlace:
        """Ask Ray for a place for a trial."""
        place = _TunesPlace(resource_request, on_start, on_stop)
        self._pending[place] = _plain(kwargs["config"])
        self._unplaced.add(place)
        self._poll_s = FIRST_POLL_S
        return place

    def schedule_actor_task(
        self,
        tracked_actor: _TunesPlace,
        method_name: str,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        on_result: Callback | None = None,
        on_error: Callback | None = None,
        _return_future: bool = False,
    ) -> None:
        """Ask for a trial's next words, let another trial take its place, or let it leave."""
        place = tracked_actor
        if method_name == "stop":
            place.leave()
            return
        assert on_result is not None
        if method_name == "reset":
            place.leave()
            place.take(_plain(args[0]))
            self._soon.append((place, partial(on_result, place, True)))
        else:
            assert method_name == "train", method_name
            self._listen(place, on_result)

    def remove_actor(
        self, tracked_actor: _TunesPlace, kill: bool = False, stop_future: object = None
    ) -> bool:
        """Give a place back to Ray; return whether Tune will be told."""
        place = tracked_actor
        remove_placement_group(place.group)
        self.clear_actor_task_futures(place)
        self._unplaced.discard(place)
        if self._pending.pop(place, None) is not None:
            return False
        del self._live_actors_to_ray_actors_resources[place]
        if place.on_stop is not None:
            self._soon.append((place, partial(place.on_stop, place)))
        return True

    def clear_actor_task_futures(self, tracked_actor: _TunesPlace) -> None:
        """Listen no more to what was asked for a place."""
        place = tracked_actor
        self._asked = {future: x for future, x in self._asked.items() if x.place is not place}
        self._soon = deque(due for due in self._soon if due[0] is not place)
        self._later = deque(due for due in self._later if due[1] is not place)

    def is_actor_started(self, tracked_actor: _TunesPlace) -> bool:
        """Return whether a trial is there, or may come there."""
        return tracked_actor in self._live_actors_to_ray_actors_resources

    def is_actor_failed(self, tracked_actor: _TunesPlace) -> bool:
        """Return whether no other trial may come there."""
        return tracked_actor.is_lost

    @property
    def num_live_actors(self) -> int:
        """The places that Ray has given."""
        return len(self._live_actors_to_ray_actors_resources)

    @property
    def num_pending_actors(self) -> int:
        """The places that Ray has not given yet."""
        return len(self._pending)

    @property
    def num_total_actors(self) -> int:
        """All places."""
        return self.num_live_actors + self.num_pending_actors

    @property
    def num_actor_tasks(self) -> int:
        """What is asked and not answered."""
        return len(self._asked)

    def get_live_actors_resources(self) -> dict[str, float]:
        """Return nothing: for Tune's own display, which is off."""
        return {}

    def cleanup(self) -> None:
        """Give every place back to Ray."""
        for place in (*self._pending, *self._live_actors_to_ray_actors_resources):
            self.remove_actor(place)

    def next(self, timeout: float = MOST_POLL_S) -> bool:
        """Wait for one thing to happen, and act on it; return whether one has."""
        for place in list(self._unplaced):
            self._look_for(place)
        now = time.monotonic()
        if self._soon:
            _, act = self._soon.popleft()
            act()
            return True
        if self._later and self._later[0][0] <= now:
            _, _, act = self._later.popleft()
            act()
            return True
        wait_s = timeout if self._wait_s is None else self._wait_s
        if self._unplaced:
            wait_s = min(wait_s, self._poll_s)
            self._poll_s = min(2 * self._poll_s, MOST_POLL_S)
        if self._later:
            wait_s = min(wait_s, self._later[0][0] - now)
        if not self._asked:
            time.sleep(wait_s)
            return False
        ready, _ = ray.wait(list(self._asked), num_returns=1, timeout=wait_s)
        for future in ready:
            asked = self._asked.pop(future)
            try:
                answer = ray.get(future)
            except RayError as error:
                asked.failed(error)
            else:
                asked.then(answer)
        return bool(ready)

    # What the driver calls

    def leave(self, number: int, stay: int) -> None:
        """Let a trial leave its host, if it is still there: its place may idle until the next comes."""
        for place in self._live_actors_to_ray_actors_resources:
            if (place.number, place.stay) == (number, stay):
                place.leave()

    def kill_silent(self) -> None:
        """Kill the hosts that have not answered for too long."""
        now = time.monotonic()
        passed_s = min(now - self._looked_at, MOST_PER_LOOK_S)
        self._looked_at = now
        for future, asked in self._asked.items():
            if asked.silent_s is None:
                continue
            asked.silent_s += passed_s
            limit_s = asked.place.limit_s
            if asked.silent_s > limit_s and not ray.wait([future], timeout=0)[0]:
                for other in self._asked.values():
                    if other.silent_s is not None and asked.place.shares_host(other.place):
                        other.silent_s = 0.0
                        other.place.blame(
                            f"stalled: its host process did not answer for {limit_s:g} s"
                        )
                asked.place.kill_host()

    # One place

    def _look_for(self, place: _TunesPlace) -> None:
        """See whether Ray has made room for a place, and on which node."""
        found = placement_group_table(place.group)
        if found["state"] != "CREATED":
            return
        self._unplaced.discard(place)
        node_id = found["bundles_to_node_id"][0]
        if place.request.get("GPU"):
            self._asked[gpus_of(place.group, place.request)] = _Asked(
                place,
                lambda gpus: self._begin(place, node_id, gpus),
                lambda error: self._unplaced.add(
                    place
                ),  # that node was lost; Ray looks for another
            )
        else:
            self._begin(place, node_id, "")

    def _begin(self, place: _TunesPlace, node_id: str, gpus: str) -> None:
        config = self._pending.pop(place)
        self._live_actors_to_ray_actors_resources[place] = None, None
        place.settle(node_id, gpus)
        place.take(config)
        place.on_start(place)

    def _listen(self, place: Place, on_result: Callback) -> None:
        def say(words: Sequence[Word]) -> None:
            on_result(place, {WORDS: words, "number": place.number, "stay": place.stay})

        def mourn(error: RayError) -> None:
            self._asked[place.left(error)] = _Asked(
                place,
                lambda left: say([place.mourned(left)]),
                lambda error: say([place.lost()]),
            )

        def failed(error: RayError) -> None:
            is_away = isinstance(error, ActorUnavailableError)
            act = partial(mourn, error) if not is_away else lambda: say([place.unheard()])
            self._later.append((time.monotonic() + MOURNED_AFTER_S, place, act))

        self._asked[place.ask()] = _Asked(
            place, lambda answer: say(place.heard(answer)), failed, silent_s=0.0
        )


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's config without what Tune adds to it for a class of its own."""
    return {name: value for name, value in config.items() if not name.startswith("__")}
