"""What Tune has in place of actors: how places are found, asked, freed and mourned, without Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from hpo.cluster import place as place_module
from hpo.cluster import places as places_module
from hpo.cluster.messages import HostSetup, Loss, Word
from hpo.cluster.places import WORDS, Places
from hpo.cluster.seats import Note
from trainers.protocol import Report

REPORT = Word(report=Report(3, 1, 1, {"eval_loss": 0.5}))


class Future:
    """What Ray answers some time."""

    def __init__(self, answer: object = None, *, is_ready: bool = True) -> None:
        self.answer, self.is_ready = answer, is_ready


class FakeHost:
    """A host that answers what it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.answers: list[Future] = []

    def __getattr__(self, method: str) -> Any:
        def remote(*args: object) -> Future:
            self.calls.append((method, *args))
            return self.answers.pop(0) if method != "leave" else Future()

        return SimpleNamespace(remote=remote)


class World:
    """Ray, as far as places see it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = FakeHost()
        self.hosts: list[tuple[str, str]] = []
        self.states: dict[object, str] = {}
        self.removed: list[object] = []
        self.killed: list[object] = []
        self.left: Future = Future((None, "", "logs"))
        for module, name, fake in (
            (places_module, "placement_group_table", self._table),
            (places_module, "remove_placement_group", self.removed.append),
            (places_module, "gpus_of", lambda group, request: Future("0,1")),
            (places_module, "ray", SimpleNamespace(wait=self._wait, get=self._get)),
            (place_module, "ray", SimpleNamespace(kill=self.killed.append)),
            (place_module, "host_on", self._host_on),
            (place_module, "done_on", self._done_on),
        ):
            monkeypatch.setattr(module, name, fake)

    def _table(self, group: object) -> dict[str, Any]:
        return {"state": self.states.get(group, "PENDING"), "bundles_to_node_id": {0: "a node"}}

    def _wait(self, futures: list[Future], timeout: float, **options: int) -> Any:
        ready = [future for future in futures if future.is_ready][:1]
        if not ready:
            time.sleep(timeout)
        return ready, []

    def _get(self, future: Future) -> object:
        if isinstance(future.answer, Exception):
            raise future.answer
        return future.answer

    def _host_on(self, node_id: str, device: str, *rest: object) -> FakeHost:
        self.hosts.append((node_id, device))
        return self.host

    def _done_on(self, *args: object) -> Future:
        return Future(self.left.answer)


class Tune:
    """Tune's loop: starts one trial, and keeps what it hears."""

    def __init__(self, places: Places, group: str = "group", **request: float) -> None:
        self.places = places
        self.heard: list[object] = []
        resources = SimpleNamespace(bundles=[request], to_placement_group=lambda: group)
        self.place = places.add_actor(
            cls=object,
            kwargs={"config": config(3, stay=1), "storage": object()},
            resource_request=resources,
            on_start=lambda place: self.heard.append("started"),
            on_stop=lambda place: self.heard.append("stopped"),
            on_error=lambda place, error: self.heard.append(error),
        )

    def train(self) -> None:
        self.call("train", on_result=lambda place, result: self.heard.append(result))

    def call(self, method: str, *args: object, **heard: Callable[..., object]) -> None:
        self.places.schedule_actor_task(self.place, method, args, {"storage": object()}, **heard)


def config(number: int, stay: int, stall_timeout: float = 100.0) -> dict[str, object]:
    setup = HostSetup("fake", {}, "store", 60.0, stall_timeout=stall_timeout)
    trial = {"number": number, "config": {"lora_r": 8}, "stay": stay, "alone": False}
    return {**trial, "setup": setup, "run_id": "run", "cpu_host": 1, "__trial_info__": object()}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(places_module, "MOURNED_AFTER_S", 0.05)
    return World(monkeypatch)


def set_clock(monkeypatch: pytest.MonkeyPatch, monotonic: Callable[[], float]) -> None:
    clock = SimpleNamespace(monotonic=monotonic, sleep=lambda seconds: None)
    monkeypatch.setattr(places_module, "time", clock)


def begun(world: World, *answers: object, **request: float) -> Tune:
    """Return a loop whose trial has a place, on a host that answers so."""
    tune = Tune(Places(), **(request or {"CPU": 1.0}))
    world.states["group"] = "CREATED"
    world.host.answers = [Future(answer) for answer in answers]
    while not tune.heard:
        tune.places.next(timeout=0.01)
    tune.heard.clear()
    return tune


def hear(tune: Tune, times: int = 1) -> None:
    """Ask for a trial's next words, so many times; the last of them stay."""
    for _ in range(times):
        tune.heard.clear()
        tune.train()
        while not tune.heard:
            tune.places.next(timeout=0.1)


def said(tune: Tune, *words: Word) -> bool:
    return tune.heard == [{WORDS: list(words), "number": 3, "stay": 1}]


def test_a_trial_begins_when_ray_has_room_and_joins_the_host_there(world: World) -> None:
    tune = Tune(Places(), CPU=1.0)
    assert not tune.places.next(timeout=0.0)
    assert (tune.heard, tune.places.num_pending_actors, tune.places.num_live_actors) == ([], 1, 0)
    world.states["group"] = "CREATED"
    tune.places.next(timeout=0.0)
    assert (tune.heard, tune.places.num_pending_actors, tune.places.num_live_actors) == (
        ["started"],
        0,
        1,
    )
    world.host.answers = [Future(77), Future([REPORT])]
    for expected in (Word(waiting=True), REPORT):
        tune.heard.clear()
        tune.train()
        assert tune.places.next(timeout=1.0)
        assert said(tune, expected)
    assert world.hosts == [("a node", "cpu1")]
    assert world.host.calls == [
        ("join", 3, {"lora_r": 8}, 1, False, "run-3-1"),
        ("next_words", 3, 20.0, 1),
    ]


def test_with_gpus_the_host_is_that_of_those_which_the_place_has(world: World) -> None:
    tune = begun(world, 77, CPU=0.001, GPU=2.0)
    tune.train()
    assert world.hosts == [("a node", "0,1")]


def test_a_driver_that_waits_for_room_looks_seldom(world: World) -> None:
    places = Places()
    tune = Tune(places, CPU=1.0)
    looked = 0
    ends_at = time.monotonic() + 1.0
    while time.monotonic() < ends_at:
        assert not places.next(timeout=0.1)
        looked += 1
    assert looked < 20
    assert not places.remove_actor(tune.place), "there is nothing that Tune has to be told"
    assert (world.removed, places.num_total_actors) == (["group"], 0)


def test_another_trial_takes_the_place_of_one_that_is_over(world: World) -> None:
    tune = begun(world, 77, 77)
    tune.train()
    tune.places.leave(3, 1)
    tune.places.clear_actor_task_futures(tune.place)
    tune.call("reset", config(4, stay=2), on_result=lambda place, ok: tune.heard.append(ok))
    while True not in tune.heard:
        tune.places.next(timeout=0.1)
    tune.train()
    assert [call[:2] for call in world.host.calls] == [("join", 3), ("leave", 3), ("join", 4)]
    assert world.removed == [], "Ray keeps it for this run"


def test_a_place_that_is_given_back_is_free_and_tune_is_told(world: World) -> None:
    tune = begun(world, 77)
    tune.train()
    tune.call("stop")
    assert tune.places.remove_actor(tune.place)
    assert world.removed == ["group"]
    assert tune.places.num_actor_tasks == 0, "its trial's words are for nobody"
    tune.places.next(timeout=0.1)
    assert tune.heard == ["stopped"]
    assert world.host.calls[-1] == ("leave", 3, 1)


@pytest.mark.parametrize(
    ("note", "counted"),
    [(Note("present"), True), (Note("waiting"), False), (Note("over"), False)],
    ids=lambda x: getattr(x, "state", ""),
)
def test_a_dead_hosts_note_tells_whether_its_trial_was_trained(
    world: World, note: Note, counted: bool
) -> None:
    tune = begun(world, 77, RayActorError())
    world.left = Future((note, "its last output", "logs"))
    hear(tune, 2)
    ((loss,),) = [[word.loss for word in result[WORDS]] for result in tune.heard]
    assert (loss.is_counted, loss.host, loss.output) == (counted, "logs:77", "its last output")
    assert not tune.places.is_actor_failed(tune.place), "the next host is made there"


def test_a_trials_own_error_is_its_end(world: World) -> None:
    tune = begun(world, 77, RayActorError())
    world.left = Future((Note("failed", "its own mistake", 2, 20), "", "logs"))
    hear(tune, 2)
    end = Report(3, 2, 20, end="failed", message="its own mistake")
    assert said(tune, Word(report=end))


def test_a_place_whose_node_is_lost_says_so_and_takes_no_other_trial(world: World) -> None:
    tune = begun(world, 77, [REPORT], RayActorError())
    world.left = Future(RayError("the node is dead"))
    hear(tune, 3)
    assert said(tune, Word(loss=Loss("its node was lost", True, "a node", True)))
    assert tune.places.is_actor_failed(tune.place)


def test_a_name_that_still_belongs_to_a_dying_host_is_tried_again(world: World) -> None:
    tune = begun(world, RayActorError(), 78)
    for _ in range(2):
        hear(tune)
        assert said(tune, Word(waiting=True))
    tune.call("stop")
    assert [call[0] for call in world.host.calls] == ["join", "leave", "join", "leave"]


def test_a_host_that_cannot_be_reached_is_joined_again_and_no_loss_is_counted(world: World) -> None:
    tune = begun(world, 77, [REPORT], ActorUnavailableError("the network", None), 77, [REPORT])
    for word in (Word(waiting=True), REPORT, Word(waiting=True), Word(waiting=True), REPORT):
        hear(tune)
        assert said(tune, word)
    asked = [call[0] for call in world.host.calls]
    assert asked == ["join", "next_words", "next_words", "join", "next_words"]


def test_why_a_host_could_not_be_made_is_said(world: World) -> None:
    error = RayError("line one\nno such environment")
    tune = begun(world, *[error] * 20)
    while not tune.heard or tune.heard[-1][WORDS][0].loss is None:
        hear(tune)
    (word,) = tune.heard[-1][WORDS]
    assert word.loss.cause == "its host failed: no such environment"
    assert not word.loss.is_counted


def test_a_host_that_does_not_answer_is_killed_once_and_all_its_trials_know_why(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(places_module, "MOST_PER_LOOK_S", 60.0)
    set_clock(monkeypatch, lambda: clock[0])
    places = Places()
    world.states = {"one": "CREATED", "two": "CREATED"}
    tunes = [Tune(places, group, CPU=1.0) for group in ("one", "two")]
    places.next(timeout=0.0)
    world.host.answers = [Future(77), Future(77)]
    for tune in tunes:
        tune.train()
        places.next(timeout=0.0)
    silent = [Future(is_ready=False), Future(is_ready=False)]
    world.host.answers = list(silent)
    for tune in tunes:
        tune.train()
    for _ in range(3):
        places.kill_silent()
        assert world.killed == []
        clock[0] += 50.0
    places.kill_silent()
    assert world.killed == [world.host]
    for future, tune in zip(silent, tunes, strict=True):
        future.is_ready, future.answer = True, RayActorError()
        tune.heard.clear()
    world.left = Future((Note("present"), "", "logs"))
    while not all(tune.heard for tune in tunes):
        clock[0] += 1.0
        places.next(timeout=0.0)
    causes = {tune.heard[0][WORDS][0].loss.cause for tune in tunes}  # type: ignore[index]
    assert causes == {"stalled: its host process did not answer for 100 s"}


def test_a_driver_that_was_away_blames_no_host(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune = begun(world, 77)
    tune.train()
    tune.places.next(timeout=0.1)
    world.host.answers = [Future(is_ready=False)]
    tune.train()
    now = time.monotonic()
    set_clock(monkeypatch, lambda: now + 10_000.0)
    tune.places.kill_silent()
    assert world.killed == []


def test_an_answer_that_a_busy_driver_has_not_heard_is_no_silence(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places_module, "MOST_PER_LOOK_S", 1e6)
    tune = begun(world, 77, [REPORT])
    tune.train()
    tune.places.next(timeout=0.1)
    tune.train()  # and its answer is there at once
    now = time.monotonic()
    set_clock(monkeypatch, lambda: now + 10_000.0)
    tune.places.kill_silent()
    assert world.killed == []
