"""Several drivers on one study on a PostgreSQL, some in processes of their own: killed, frozen, slow."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from benchmarks.driver.postgres import Server
from hpo.checkpoints import CheckpointStore
from hpo.errors import ExhaustedError, LeaseLostError, StudyError
from hpo.storage.database import Lock
from hpo.storage.leases import DRIVERS, LEASES
from hpo.storage.rows import Rows
from hpo.storage.stored_trials import TRIALS
from hpo.studies import StudyRecord
from hpo.study import Study
from hpo.verdicts import build_judge
from tests.integration.command import wait_until
from tests.integration.drivers import Driver, drive, open_only, stand_in, take_all, train_all
from tests.one_worker import again, make_spec, start
from trainers.protocol import Report

RANDOM = {"type": "random", "seed": 0}


def everything(url: str) -> dict[str, list[Any]]:
    """Return every row of every table but the drivers' own breath."""
    engine = sa.create_engine(url)
    metadata = sa.MetaData()
    metadata.reflect(engine)
    with engine.connect() as connection:
        rows = {
            table.name: sorted(map(repr, connection.execute(sa.select(table))))
            for table in metadata.sorted_tables
            if table.name != DRIVERS.name
        }
    engine.dispose()
    return rows


def age(url: str, table: sa.Table, seconds: float) -> None:
    """Let time pass for leases."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(table.update().values(expires_at=table.c.expires_at - seconds))
    engine.dispose()


def leases(record: StudyRecord) -> dict[int, tuple[int, str]]:
    """Return the epoch and the owner of each trial's lease, by its number."""
    query = sa.select(TRIALS.c.number, LEASES.c.epoch, LEASES.c.owner).join(
        LEASES, LEASES.c.trial_id == TRIALS.c.trial_id
    )
    rows = record.database.look(lambda connection: connection.execute(query).all())
    return {number: (epoch, owner) for number, epoch, owner in rows}


def all_claims(drivers: list[Driver]) -> list[tuple[int, int, str]]:
    return [tuple(claim) for driver in drivers for claim in driver.said()]


class TestRaces:
    @pytest.mark.parametrize("num_trials", [120, pytest.param(1000, marks=pytest.mark.soak)])
    def test_four_drivers_share_out_all_trials_and_after_kills_all_orphans(
        self, num_trials: int, tmp_path: Path, postgres: Server
    ) -> None:
        url = postgres.create(f"shares{num_trials}")
        enough = num_trials // 5
        record = start(make_spec(tmp_path, sampler=RANDOM, lease_s=1000), url)

        begun = time.monotonic()
        drivers = [drive(take_all, url, tmp_path, num_trials) for _ in range(4)]
        wait_until(
            lambda: min(len(d.said()) for d in drivers) > 2 and record.num_trials() > enough,
            "every driver has begun, and a fifth of the trials are proposed",
        )
        drivers[0].signal(signal.SIGKILL)
        assert [driver.ended(300) for driver in drivers[1:]] == [0, 0, 0]
        print(f"{num_trials} proposed by 4 drivers: {time.monotonic() - begun:.1f} s")
        claims = all_claims(drivers)
        assert len({number for number, _, _ in claims}) == len(claims) >= num_trials - 1
        trials = record.stored.all()
        assert [trial.number for trial in trials] == list(range(num_trials))
        assert len({trial.system_attrs["hpo:digest"] for trial in trials}) == num_trials
        held = leases(record)
        assert all(held[number] == (epoch, owner) for number, epoch, owner in claims)

        age(url, LEASES, 2000)
        begun = time.monotonic()
        heirs = [drive(take_all, url, tmp_path, num_trials) for _ in range(4)]
        wait_until(lambda: len(all_claims(heirs)) > enough, "a fifth of the trials are adopted")
        for heir in heirs[:2]:
            heir.signal(signal.SIGKILL)
        assert [heir.ended(300) for heir in heirs[2:]] == [0, 0]
        print(f"{num_trials} adopted by 4 drivers: {time.monotonic() - begun:.1f} s")
        adopted = all_claims(heirs)
        assert {epoch for _, epoch, _ in adopted} == {2}
        assert len({number for number, _, _ in adopted}) == len(adopted) >= num_trials - 2
        held = leases(record)
        assert all(held[number] == (epoch, owner) for number, epoch, owner in adopted)
        assert {epoch for epoch, _ in held.values()} == {2}

    def test_many_may_open_an_empty_database_at_once(
        self, tmp_path: Path, postgres: Server
    ) -> None:
        url = postgres.create("empty")
        drivers = [drive(open_only, url, tmp_path) for _ in range(6)]
        assert [driver.ended() for driver in drivers] == [0] * 6

    def test_best_is_whole_at_every_moment_and_in_the_end_the_databases_best(
        self, tmp_path: Path, postgres: Server
    ) -> None:
        url, num_trials = postgres.create("best"), 30
        spec = make_spec(tmp_path, sampler=RANDOM, pruner={"type": "none"}, lease_s=5,
                         fixed={"max_steps": 2})  # fmt: skip
        record = start(spec, url)
        drivers = [drive(train_all, url, tmp_path, num_trials) for _ in range(3)]
        best = Path(spec.output_dir) / "s" / "best"
        seen: set[int] = set()
        looks = 0
        while any(driver.process.is_alive() for driver in drivers):
            try:
                seen.add(json.loads((best / "trial.json").read_text())["number"])
                looks += 1
            except FileNotFoundError:
                pass  # not yet, or for the blink of its replacement
            time.sleep(0.001)
        assert [driver.ended() for driver in drivers] == [0, 0, 0]
        assert all(driver.said() for driver in drivers)
        assert looks > 10
        assert len(seen) > 1
        winner = record.best()
        story = json.loads((best / "trial.json").read_text())
        assert (story["number"], story["value"]) == (winner.number, winner.value)
        assert [t.state for t in record.trials()] == ["COMPLETE"] * num_trials
        left = [p.name for p in best.parent.iterdir() if p.name.startswith(".best")]
        assert left == []
        store = CheckpointStore(best.parent)
        kept = {n for n in range(num_trials) if store.steps(n)}
        ranking = sorted(record.trials(), key=lambda t: (t.value, t.number))
        assert kept == {t.number for t in ranking[: spec.keep_checkpoints]}


class TestFrozen:
    @pytest.fixture
    def frozen(self, request: Any, tmp_path: Path, postgres: Server) -> Iterator[Any]:
        lock, where = request.param
        url = postgres.create(f"frozen-{where}-{int(lock)}")
        record = start(make_spec(tmp_path, lease_s=4), url)
        driver = drive(stand_in, url, tmp_path, int(lock), where)
        wait_until(lambda: "holds" in driver.said(), "the driver holds what it shall hold")
        driver.signal(signal.SIGSTOP)
        yield url, record, driver
        driver.process.kill()

    @pytest.mark.parametrize(
        "frozen", [(Lock.PROPOSING, "turn"), (Lock.BEST, "turn"), (Lock.BEST, "row")], indirect=True
    )
    def test_nobody_waits_for_a_frozen_driver_and_it_goes_on_when_it_thaws(
        self, frozen: Any, request: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("hpo.storage.database.FROZEN_AFTER_S", 2.0)
        url, record, driver = frozen
        begun = time.monotonic()
        other = Study(again(record.spec, url), 3)
        taken = other.next_trial()
        other.report(taken.number, Report(taken.number, 1, 1, {"eval_loss": 0.2}, end="finished"))
        assert taken.number == 1
        age(url, LEASES, 100)  # the frozen driver's; ours are renewed below
        other._renew_at = 0.0
        assert other.tick() == set()
        orphan = other.next_trial()
        waited = time.monotonic() - begun
        assert (orphan.number, orphan.epoch, orphan.adopted) == (0, 2, True)
        assert waited < 15, waited
        before = everything(url)

        driver.journal.with_suffix(".go").touch()
        driver.signal(signal.SIGCONT)
        assert driver.ended(30) == 0
        said = driver.said()
        if ["wrote", 0] not in said and ["lost", 0] not in said:
            assert ["ticked", [0]] in said
            if request.node.callspec.params["frozen"][0] == Lock.PROPOSING:
                assert ["lasts", False] in said
        assert ["next", 2] in said  # it goes on with the rest
        after = everything(url)
        assert before["trial_intermediate_values"] == after["trial_intermediate_values"]
        assert leases(record)[0] == (2, other.owner)


class TestSlow:
    def both(self, tmp_path: Path, url: str, num_trials: int = 3) -> tuple[Study, Study]:
        spec = make_spec(tmp_path)
        slow, quick = Study(start(spec, url), num_trials), Study(again(spec, url), num_trials)
        slow.next_trial()
        age(url, LEASES, 100)
        assert quick.next_trial().epoch == 2
        return slow, quick

    @pytest.mark.parametrize("act", ["report", "last_report", "nan", "fail", "lose", "release"])
    def test_a_late_write_is_refused_and_changes_no_table(
        self,
        act: str,
        tmp_path: Path,
        postgres: Server,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        url = postgres.create(f"late-{act}")
        slow, quick = self.both(tmp_path, url)
        before = everything(url)
        acts = {
            "report": lambda: slow.report(0, Report(0, 1, 1, {"eval_loss": 0.1})),
            "last_report": lambda: slow.report(0, Report(0, 1, 1, {}, end="failed", message="x")),
            "nan": lambda: slow.report(0, Report(0, 1, 1, {"eval_loss": float("nan")})),
            "fail": lambda: slow.fail(0, "it broke"),
            "lose": lambda: slow.lose(0, "its node was lost"),
            "release": lambda: slow.release(0),
        }
        for _ in range(2):  # also when it knows
            with pytest.raises(LeaseLostError):
                acts[act]()
            slow.drop(0)
        assert everything(url) == before
        assert sum("taken over by another driver" in r.getMessage() for r in caplog.records) == 1
        assert slow.next_trial().number == 1  # with the rest it goes on
        assert not quick.report(0, Report(0, 1, 1, {"eval_loss": 0.2}))

    def test_a_tick_and_the_leaving_tell_what_is_lost_once(
        self, tmp_path: Path, postgres: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        url = postgres.create("late-tick")
        slow, quick = self.both(tmp_path, url)
        slow._renew_at = 0.0
        assert slow.tick() == {0}
        slow._renew_at = 0.0
        assert slow.tick() == set()
        before = everything(url)
        slow.close()
        assert everything(url) == before
        assert sum("taken over" in r.getMessage() for r in caplog.records) == 1
        assert quick.claimed == {0}

    def test_leaving_late_says_so(
        self, tmp_path: Path, postgres: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        url = postgres.create("late-leave")
        slow, _ = self.both(tmp_path, url)
        before = everything(url)
        slow.close()
        assert everything(url) == before
        assert sum("taken over" in r.getMessage() for r in caplog.records) == 1


@contextmanager
def clock_off_by(seconds: float) -> Iterator[None]:
    """Let this machine's clocks be wrong."""
    real_time, real_monotonic = time.time, time.monotonic

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.fromtimestamp(real_time(), tz) + timedelta(seconds=seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time", lambda: real_time() + seconds)
        patch.setattr("datetime.datetime", Wrong)
        patch.setattr("time.monotonic", lambda: real_monotonic() + max(0.0, seconds))
        yield


@pytest.mark.parametrize("off_by", [36_000.0, -36_000.0])
def test_leases_and_stops_go_by_the_databases_clock_alone(
    off_by: float, tmp_path: Path, postgres: Server
) -> None:
    url = postgres.create(f"clock{off_by:g}")
    spec = make_spec(tmp_path)
    dead, heir = Study(start(spec, url), 1), None
    dead.next_trial()
    with clock_off_by(off_by):
        heir = Study(again(spec, url), 1)
        assert heir.next_trial() is None  # not before its lease has run out
        age(url, LEASES, spec.lease_s - 20)
        assert heir.next_trial() is None
        assert not heir.stop_requested()
        again(spec, url).request_stop()
    assert dead.stop_requested()
    assert heir.stop_requested()
    assert not Study(again(spec, url), 1).stop_requested()
    age(url, LEASES, 30)
    with clock_off_by(off_by):
        assert heir.next_trial().epoch == 2
        heir.report(0, Report(0, 1, 1, {"eval_loss": 0.1}, end="finished"))
    (trial,) = heir.record.trials()
    assert 0 <= trial.seconds < 60


class TestPresence:
    def test_a_study_is_driven_while_any_driver_breathes_trial_or_not(
        self, tmp_path: Path, postgres: Server
    ) -> None:
        url = postgres.create("driven")
        spec = make_spec(tmp_path)
        record = start(spec, url)
        assert not record.is_driven()
        one, idle = Study(record, 1), Study(again(spec, url), 1)
        one.next_trial()
        one.close()
        assert record.is_driven()
        with pytest.raises(StudyError, match="is being run"):
            record.delete()
        assert len(record.trials()) == 1
        age(url, DRIVERS, 100)  # as when the idle one has died
        assert not record.is_driven()
        idle._renew_at = 0.0
        idle.tick()
        assert record.is_driven()
        idle.close()
        assert not record.is_driven()
        record.delete()
        assert all(not rows for name, rows in everything(url).items()
                   if name not in ("version_info", "alembic_version", "hpo_schema"))  # fmt: skip

    def test_a_driver_of_a_deleted_study_ends_with_one_message(
        self, tmp_path: Path, postgres: Server
    ) -> None:
        url = postgres.create("deleted")
        spec = make_spec(tmp_path)
        thawed = Study(start(spec, url), 3)
        thawed.next_trial()
        age(url, DRIVERS, 100)
        again(spec, url).delete()
        with pytest.raises(StudyError, match="was deleted"):
            thawed.next_trial()
        thawed.close()

    def test_a_killed_driver_is_gone_after_its_lease(
        self, tmp_path: Path, postgres: Server
    ) -> None:
        url = postgres.create("killed-driver")
        record = start(make_spec(tmp_path, lease_s=1), url)
        driver = drive(stand_in, url, tmp_path, int(Lock.BEST), "turn")
        wait_until(lambda: "holds" in driver.said(), "the driver runs")
        assert record.is_driven()
        driver.signal(signal.SIGKILL)
        wait_until(lambda: not record.is_driven(), "its lease has run out", 10)


def test_a_turn_that_is_cut_off_makes_no_second_trial_of_a_number(
    tmp_path: Path, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.create("cut-off")
    spec = make_spec(tmp_path)
    one, two = Study(start(spec, url), 9), Study(again(spec, url), 9)
    propose = one._proposer.propose
    taken: list[int] = []

    def cut_off(*args: Any) -> Any:
        proposal = propose(*args)
        cut(url, idle_in_transaction=True)
        taken.append(two.next_trial().number)  # waits for nobody: the lock is lost
        return proposal

    monkeypatch.setattr(one._proposer, "propose", cut_off)
    assert one.next_trial() is None
    assert taken == [0]
    monkeypatch.undo()
    assert one.next_trial().number == 1
    assert [trial.number for trial in one.record.trials()] == [0, 1]
    digests = {trial.system_attrs["hpo:digest"] for trial in one.record.stored.all()}
    assert len(digests) == 2


def cut(url: str, *, idle_in_transaction: bool = False) -> int:
    """Cut off every other connection to a database, or those that hold a transaction open."""
    which = "AND state = 'idle in transaction'" if idle_in_transaction else ""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        killed = connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                f"WHERE datname = current_database() AND pid <> pg_backend_pid() {which}"
            )
        ).all()
    engine.dispose()
    return len(killed)


@pytest.mark.parametrize("seed", range(3))
def test_verdicts_of_three_drivers_are_one_function_of_all_stored_reports(
    seed: int, tmp_path: Path, postgres: Server
) -> None:
    url = postgres.create(f"property{seed}")
    spec = make_spec(tmp_path, sampler=RANDOM, pruner={"type": "asha", "reduction_factor": 2})
    record = start(spec, url)
    draw = random.Random(seed)
    drivers = [Study(record, 18), Study(again(spec, url), 18), Study(again(spec, url), 18)]
    running: dict[int, tuple[Study, int]] = {}
    verdicts = []
    while True:
        if len(running) < 6:
            driver = draw.choice(drivers)
            try:
                claim = driver.next_trial()
            except ExhaustedError:
                break
            if claim is not None:
                running[claim.number] = (driver, 0)
        number = draw.choice(sorted(running))
        driver, validation = running[number]
        value = round(draw.random(), 2)
        report = Report(number, validation + 1, validation + 1, {"eval_loss": value})
        stopped = driver.report(number, report)
        wanted = _verdict(record, number, validation + 1, value)
        verdicts.append(wanted)
        assert stopped == wanted, (number, validation + 1)
        if stopped:
            del running[number]
        elif validation + 1 == 8:
            driver.fail(number, "it has had enough")
            del running[number]
        else:
            running[number] = (driver, validation + 1)
    assert min(verdicts.count(True), verdicts.count(False)) > 5


def _verdict(record: StudyRecord, number: int, validation: int, value: float) -> bool:
    """Return ASHA's verdict by its definition, over all that is stored."""
    judge = build_judge(record.spec.pruner)
    if not judge.is_rung(validation):
        return False
    rung = [
        trial.intermediate_values[validation]
        for trial in record.stored.all()
        if validation in trial.intermediate_values
    ]
    better = sum(other < value for other in rung)
    return better >= max(1, len(rung) // judge.reduction_factor)


def test_renewals_in_opposite_orders_never_wait_in_a_ring(tmp_path: Path, postgres: Server) -> None:
    url = postgres.create("ring")
    record = start(make_spec(tmp_path), url)
    study = Study(record, 12)
    claims = [study.next_trial() for _ in range(12)]
    held = [(study._trials.id_of(claim.number), claim.epoch) for claim in claims]
    lost: list[int] = []

    def renew(order: list[tuple[int, int]]) -> None:
        rows = Rows(record.database, record.study_id, study.owner, 30.0)
        for _ in range(25):
            lost.extend(rows.renew(order))

    threads = [threading.Thread(target=renew, args=[order]) for order in (held, held[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert lost == []
    query = sa.text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    assert record.database.look(lambda connection: connection.execute(query).scalar_one()) == 0
