"""A host's admission by memory, without Ray: who joins, who waits, who makes room."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import ANY

import pytest

from hpo.checkpoints import CheckpointStore
from hpo.cluster.host import ModelHost
from hpo.cluster.messages import HostSetup, Word
from hpo.cluster.seats import Note, read_note
from tests.fake_trainer import FakeTrainer
from tests.integration.command import journal, wait_until
from tests.new_process import printed_by
from trainers.protocol import Report

Options = dict[str, object]
MakeHost = Callable[..., "Driven"]


class Driven:
    """A host, and what is heard of its trials."""

    def __init__(self, folder: Path, stall_timeout: float = 1800.0, **fixed: object) -> None:
        self.folder = folder
        self.fixed: Options = {"journal": str(folder / "journal.jsonl"), **fixed}
        setup = HostSetup(
            "tests.fake_trainer:FakeTrainer",
            self.fixed,
            str(folder / "store"),
            patience_s=3600,
            stall_timeout=stall_timeout,
        )
        self.left = threading.Event()
        self.host = ModelHost(setup, "cpu", None, self._leave, folder / "notes")
        self.num_joins = 0
        self.store = CheckpointStore(folder / "store")

    def _leave(self) -> None:
        """Stand for the end of the process: its threads do nothing more."""
        self.left.set()
        threading.Event().wait()

    def join(self, number: int, *, alone: bool = False, **options: object) -> int:
        """Let a trial join; return its stay."""
        self.num_joins += 1
        config = {**self.fixed, **options}
        self.host.join(number, config, self.num_joins, alone, str(number))
        return self.num_joins

    def note_path(self, number: int) -> Path:
        return self.folder / "notes" / str(number)

    def note(self, number: int) -> Note | None:
        return read_note(self.note_path(number))

    def next(self, number: int) -> Word:
        word = self.host.next_word(number, timeout_s=20)
        assert word.is_news, f"nothing is heard of trial {number}"
        return word

    def last(self, number: int) -> tuple[list[int], Word]:
        """Return the steps of a trial's reports until it is over here, and its last word."""
        steps: list[int] = []
        while True:
            word = self.next(number)
            if word.report is not None and word.report.metrics:
                steps.append(word.report.step)
            if word.report is None or word.report.end is not None:
                return steps, word

    def steps(self, number: int) -> list[int]:
        return [
            line["step"]
            for line in journal(self.folder)
            if line["what"] == "step" and line["trial"] == number
        ]

    def most_at_once(self, num_steps: int) -> int:
        """Return the most trials that were between their joining and their last step at once."""
        present: set[object] = set()
        most = 0
        for line in journal(self.folder):
            present.add(line["trial"])
            most = max(most, len(present))
            if line["step"] == num_steps:
                present.discard(line["trial"])
        return most


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[MakeHost]:
    made: list[Driven] = []

    def make(**fixed: object) -> Driven:
        made.append(Driven(tmp_path, **fixed))
        return made[-1]

    yield make
    for driven in made:
        driven.host.pause()  # its thread trains on otherwise


def test_a_host_that_has_found_its_trainer_has_loaded_no_optuna() -> None:
    code = (
        "import sys; from hpo.cluster.host_actor import ModelHostActor;"
        "from hpo.lookup import find_trainer; find_trainer('lora');"
        "print([m for m in ('optuna', 'sqlalchemy', 'search_spaces') if m in sys.modules])"
    )
    assert printed_by(code) == "[]"


def test_what_does_not_fit_waits_and_joins_when_one_has_ended(make_host: MakeHost) -> None:
    host = make_host(memory=2.0, max_steps=4)
    for number in range(5):
        host.join(number)
    for number in range(5):
        assert host.last(number)[0] == [1, 2, 3, 4]
    assert host.most_at_once(4) == 2


def test_who_waits_longest_joins_first(make_host: MakeHost) -> None:
    host = make_host(memory=2.0, max_steps=3)
    sizes = [1.0, 1.0, 2.0, 0.5, 0.5]  # the third fits alone only, and the later ones at once
    for number, size in enumerate(sizes):
        host.join(number, size=size)
    for number in range(5):
        host.last(number)
    added = [line["trial"] for line in journal(host.folder) if line["what"] == "add"]
    assert added == [0, 1, 2, 3, 4]


def test_an_ended_trial_makes_room_though_its_proxy_has_not_left(make_host: MakeHost) -> None:
    host = make_host(memory=1.0, max_steps=2)
    host.join(0)
    host.last(0)
    host.join(1)
    assert host.last(1)[0] == [1, 2]


def test_one_that_leaves_makes_room(make_host: MakeHost) -> None:
    host = make_host(memory=1.0, max_steps=10**6, eval_steps=10**6)
    host.join(0)
    host.join(1, eval_steps=1)
    assert host.host.next_word(1, timeout_s=0.2).waiting, "it waits"
    host.host.leave(0)
    assert host.next(1).report.step == 1


def test_one_that_waits_may_leave(make_host: MakeHost) -> None:
    host = make_host(memory=1.0, max_steps=3, step_s=0.01)
    for number in range(3):
        host.join(number)
    host.host.leave(1)
    assert host.last(2)[0] == [1, 2, 3]
    assert host.steps(1) == []


def test_alone_a_trial_never_waits_whatever_the_trainer_says(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeTrainer, "fits", lambda self, options: False)
    host = make_host(max_steps=2)
    for number in range(3):
        host.join(number)
    for number in range(3):
        assert host.last(number)[0] == [1, 2]
    assert host.most_at_once(2) == 1


def test_the_youngest_makes_room_saved_as_it_is_and_goes_on_where_it_was(
    make_host: MakeHost,
) -> None:
    host = make_host(memory=1.5, max_steps=20, eval_steps=2, size=0.5)
    grows: Options = {"hidden_size": 0.5, "hidden_until": 3}
    for number, options in enumerate(({}, {}, grows)):
        host.join(number, **options)
    steps, word = host.last(2)
    assert steps == [2]
    assert word.paused
    assert word.reason == "out of memory: 2 of 1.5"
    saved = host.store.newest(2)
    assert saved.step == 3
    assert not saved.is_validation
    host.join(2, **grows)
    assert host.next(2).report.step == 2, "said again, as it may not have arrived"
    assert host.last(2)[0] == list(range(4, 21, 2))
    for number in (0, 1):
        assert host.last(number)[0] == list(range(2, 21, 2))
        assert host.steps(number) == list(range(1, 21)), "neighbours lose nothing"
    assert host.steps(2) == list(range(1, 21)), "and neither does it"


def test_one_that_made_room_is_not_added_again_before_somebody_has_left(
    make_host: MakeHost,
) -> None:
    host = make_host(memory=2.0, max_steps=10**6, eval_steps=5)
    host.join(0, hidden_size=1.0)
    host.next(0)
    host.join(1)
    for _ in range(20):  # as its driver would: adopted at once, here again
        word = host.host.next_word(1, timeout_s=0.05)
        if word.is_news:
            assert word.paused
            host.join(1)
    added = [line for line in journal(host.folder) if line["what"] == "add"]
    assert [line["trial"] for line in added] == [0, 1]
    host.host.leave(0)
    assert host.next(1).report.step == 5


def test_one_that_does_not_fit_alone_is_infeasible_and_its_neighbours_lose_nothing(
    make_host: MakeHost,
) -> None:
    host = make_host(memory=2.0, max_steps=6)
    host.join(0, hidden_size=0.5)
    host.join(1, hidden_size=3.0)  # shows only when it is trained
    assert host.last(1)[1].paused
    host.join(1, hidden_size=3.0)
    assert host.last(0)[0] == [1, 2, 3, 4, 5, 6]
    _, word = host.last(1)
    assert word.report.end == "out_of_memory"
    assert "4 of 2" in word.report.message
    host.join(2)
    assert host.last(2)[0] == [1, 2, 3, 4, 5, 6]


def test_one_whose_joining_runs_out_of_memory_waits_and_alone_is_infeasible(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = FakeTrainer.add

    def refusing(self: FakeTrainer, trial: int, options: Options, saved: object = None) -> None:
        too_much = sum(t.options.size for t in self._trials.values()) + options.get("size", 1.0)
        if too_much > 2.0:
            raise MemoryError("no room for its weights")
        add(self, trial, options, saved)

    monkeypatch.setattr(FakeTrainer, "add", refusing)
    host = make_host(max_steps=3)
    for number, size in enumerate((1.5, 1.5, 3.0)):
        host.join(number, size=size)
    assert host.last(0)[0] == host.last(1)[0] == [1, 2, 3]
    _, word = host.last(2)
    assert (word.report.end, word.report.message) == ("out_of_memory", "no room for its weights")


def test_paused_also_those_that_wait_are_handed_back(make_host: MakeHost) -> None:
    host = make_host(memory=1.0, max_steps=10**6, eval_steps=10**6)
    host.join(0)
    host.join(1)
    assert host.host.next_word(1, timeout_s=0.2) == Word(waiting=True)
    for _ in range(2):  # the driver asks again and again
        host.host.pause()
    assert host.next(0).paused
    assert host.next(1).paused
    assert host.store.newest(1) is None
    host.join(2)
    assert host.next(2).paused


def test_a_late_leave_of_an_old_proxy_does_not_end_a_trial_that_came_again(
    make_host: MakeHost,
) -> None:
    host = make_host(max_steps=3, step_s=0.02)
    old = host.join(0)
    new = host.join(0)
    host.host.leave(0, old)
    assert host.last(0)[0] == [1, 2, 3]
    host.host.leave(0, new)
    assert host.host.next_word(0, timeout_s=0).gone


def test_one_that_must_be_alone_waits_until_it_is_and_lets_nobody_in(make_host: MakeHost) -> None:
    host = make_host(max_steps=6, step_s=0.01)
    host.join(0)
    host.join(1)
    host.join(2, alone=True)
    host.join(3)
    host.join(4)
    for number in range(5):
        assert host.last(number)[0] == [1, 2, 3, 4, 5, 6]
    lines = [(line["what"], line["trial"]) for line in journal(host.folder)]
    first, last = lines.index(("add", 2)), len(lines) - 1 - lines[::-1].index(("step", 2))
    assert {trial for _, trial in lines[first : last + 1]} == {2}
    assert {trial for _, trial in lines[:first]} == {0, 1}, "first come, first served"
    assert ("add", 3) in lines[last:]


def test_notes_tell_who_is_lost_when_the_process_dies_now(make_host: MakeHost) -> None:
    host = make_host(memory=1.0, max_steps=10**6, eval_steps=5)
    host.join(0)
    host.join(1)
    host.next(0)
    wait_until(lambda: host.note(1), "the second one waits")
    assert (host.note(0).state, host.note(1).state) == ("present", "waiting")
    host.host.leave(0)
    host.next(1)
    assert (host.note(0), host.note(1).state) == (None, "present"), (
        "who left is asked after no more"
    )


def test_a_trainer_that_hangs_ends_its_process_and_the_trials_on_it_are_lost(
    make_host: MakeHost, capfd: pytest.CaptureFixture[str]
) -> None:
    host = make_host(stall_timeout=0.5, memory=2.0, max_steps=9)
    host.join(0)
    host.join(1, acts="hang")
    host.join(2)
    assert host.left.wait(20), "it ends itself"
    assert [host.note(n).state for n in range(3)] == ["lost", "lost", "over"]
    assert host.note(0).message == "stalled: no step for 0.5 s"
    assert "_act" in capfd.readouterr().err, "where it hangs"


def test_waiting_for_work_is_no_stall(make_host: MakeHost) -> None:
    host = make_host(stall_timeout=0.4, max_steps=2, step_s=0.1)
    host.join(0)
    host.last(0)
    assert not host.left.wait(1.5)
    host.join(1)
    assert host.last(1)[0] == [1, 2]


def test_a_model_that_does_not_load_in_time_is_no_trials_loss(make_host: MakeHost) -> None:
    host = make_host(stall_timeout=0.5, base="slow")
    host.join(0)
    assert host.left.wait(20)
    assert host.note(0).state == "loading"


def test_asked_to_stop_while_the_model_loads_it_hands_everybody_back_at_once(
    make_host: MakeHost,
) -> None:
    host = make_host(base="slow")
    host.join(0)
    host.host.pause()
    host.join(1)
    assert host.next(0).paused
    assert host.next(1).paused


def test_an_error_of_a_trainer_with_one_trial_is_that_trials(make_host: MakeHost) -> None:
    host = make_host(max_steps=9)
    host.join(0, acts="raise")
    assert host.left.wait(20)
    note = host.note(0)
    assert (note.state, note.validation, note.step) == ("failed", 2, 2)
    assert note.message.strip().endswith("RuntimeError: the trainer's own mistake")
    assert "Traceback" in note.message


def test_an_error_of_a_trainer_with_several_trials_is_nobodys_and_all_go_on(
    make_host: MakeHost,
) -> None:
    host = make_host(memory=2.0, max_steps=9)
    host.join(0)
    host.join(1, acts="raise")
    host.join(2)
    assert host.left.wait(20)
    assert [host.note(n).state for n in range(3)] == ["lost", "lost", "waiting"]
    assert "the trainer's own mistake" in host.note(0).message
    assert host.store.newest(0).step >= 2


def test_a_host_that_nobody_calls_leaves_and_loses_no_trial(tmp_path: Path) -> None:
    setup = HostSetup("tests.fake_trainer:FakeTrainer", {}, str(tmp_path / "store"), patience_s=0.5)
    left = threading.Event()

    def leave() -> None:
        left.set()
        threading.Event().wait()

    host = ModelHost(setup, "cpu", None, leave, tmp_path)
    host.join(0, {"max_steps": 10**6, "step_s": 0.01, "eval_steps": 5}, 1, False, "note")
    assert left.wait(20)
    assert read_note(tmp_path / "note") == Note("over", step=ANY, validation=ANY)
    host.pause()


def test_a_word_that_a_trial_is_alive_tells_its_step_and_no_news(make_host: MakeHost) -> None:
    host = make_host(max_steps=10**6, eval_steps=10**6)
    host.join(0)
    wait_until(lambda: host.host.next_word(0, timeout_s=0.05).step > 3, "it steps")
    word = host.host.next_word(0, timeout_s=0.05)
    assert not word.is_news
    assert not word.waiting


def test_trials_that_validate_together_are_saved_at_once_and_none_is_heard_of_before(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    meeting = threading.Barrier(2, timeout=20)  # two that are saved one after the other never meet
    save, advance = FakeTrainer.save, FakeTrainer.advance

    def together(self: FakeTrainer) -> list[Report]:
        return advance(self) if len(self._trials) == 2 else []

    def met(self: FakeTrainer, trial: int, folder: Path) -> None:
        if tmp_path in folder.parents:  # not the host of a test before that pauses only now
            meeting.wait()
        save(self, trial, folder)

    monkeypatch.setattr(FakeTrainer, "save", met)
    monkeypatch.setattr(FakeTrainer, "advance", together)
    host = make_host(max_steps=2)
    for number in range(2):
        host.join(number)
    for _ in range(2):
        for number in range(2):
            report = host.next(number).report
            assert report is not None
            newest = host.store.newest(number)
            assert newest is not None
            assert newest.step >= report.step


def test_a_trial_waits_a_moment_for_its_verdict_and_not_for_ever(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.cluster.host.ANSWER_SHARE", 1e9)  # of a pass that takes no time
    monkeypatch.setattr("hpo.cluster.host.MAX_ANSWER_S", 20.0)
    host = make_host(max_steps=3)
    stay = host.join(0)
    assert host.next(0).report is not None
    host.host.leave(0, stay)  # its verdict, at once: no step is made for nothing
    host.join(1)
    assert host.last(1)[0] == [1, 2, 3]  # who asks for the next report goes on
    assert host.steps(0) == [1]

    monkeypatch.setattr("hpo.cluster.host.MAX_ANSWER_S", 0.0)
    host.join(2)
    wait_until(lambda: host.steps(2) == [1, 2, 3], "a trial whose proxy is silent trains on")


def test_a_place_waits_a_moment_for_its_next_trial_and_not_for_ever(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.cluster.host.ANSWER_SHARE", 1e9)  # of a pass that takes no time
    monkeypatch.setattr("hpo.cluster.host.MAX_ANSWER_S", 20.0)
    host = make_host(memory=2.0, max_steps=50, eval_steps=50)
    host.join(0, max_steps=1, eval_steps=1)
    host.join(1, step_s=0.01)
    host.last(0)
    wait_until(lambda: host.note(1) is not None, "the other one has joined")
    host.join(2, max_steps=1, eval_steps=1)
    host.last(2)
    seen = host.steps(1)
    time.sleep(0.3)
    assert host.steps(1) == seen, "no step is made while the place is empty"
    assert len(seen) < 50
    monkeypatch.setattr("hpo.cluster.host.MAX_ANSWER_S", 0.0)
    host.join(3)
    assert host.last(1)[0] == [50]
    assert host.last(3)[0] == [50], "nobody takes the other place"
