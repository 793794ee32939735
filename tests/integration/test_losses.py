"""Processes and nodes that die, hang or freeze under a study: what goes on, what fails, and why."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from hpo import trial_log
from hpo.cluster.driver import Driver
from hpo.errors import TrainerError
from hpo.studies import StudyRecord
from hpo.study import Study
from tests.integration.command import journal, trained, wait_until
from tests.integration.ray_cluster import joined_cluster
from tests.integration.test_cluster import Listening
from tests.one_worker import make_spec, sqlite, start

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STALL_S = 3.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with joined_cluster(num_gpus=2) as cluster:
        yield cluster


class Heard(Listening):
    """Keeps which losses the user was told of."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[tuple[int, str, bool]] = []

    def lost(self, number: int, cause: str, over: bool) -> None:
        self.losses.append((number, cause, over))


def begin(tmp_path: Path, **changes: object) -> StudyRecord:
    """Store a study of slow trials on the fake trainer."""
    fixed = {"max_steps": 8, "step_s": 0.1, "journal": str(tmp_path / "journal.jsonl")}
    spec = make_spec(
        tmp_path,
        **{
            "resources": {"gpu": 0.5},
            "pruner": {"type": "none"},
            "stall_timeout": STALL_S,
            "max_failures": 1,
            "max_identical_errors": 20,
            **changes,
            "fixed": {**fixed, **dict(changes.get("fixed", {}))},
        },
    )
    return start(spec, sqlite(tmp_path))


def run(record: StudyRecord, num_trials: int) -> Heard:
    """Run a study in this process."""
    study, heard = Study(record, num_trials), Heard()
    try:
        Driver(study, heard).run()
    finally:
        study.close()
    return heard


def check_complete(record: StudyRecord, number: int, num_steps: int = 8) -> None:
    trial = record.trials()[number]
    assert trial.state == "COMPLETE", (trial.reason, trial.message)
    assert [said["step"] for said in trial.reports.values()] == list(range(1, num_steps + 1))


def meanwhile(act: Callable[[], None]) -> threading.Thread:
    """Do something while a driver runs on the main thread."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def test_who_kills_hangs_or_freezes_its_host_fails_by_itself_and_no_neighbour_does(
    tmp_path: Path, cluster: Cluster
) -> None:
    acts = ["", "kill", "", "hang", "", "freeze", "", ""]
    record = begin(
        tmp_path,
        space={
            "acts": {"type": "categorical", "choices": ["", "kill", "hang", "freeze"]},
            "y": {"type": "int", "low": 1, "high": 100},
        },
        enqueue=[{"acts": act, "y": y} for y, act in enumerate(acts, 1)],
    )
    heard = run(record, len(acts))
    causes = {"kill": "without a word", "hang": "no step for 3 s", "freeze": "did not answer for"}
    for trial, act in zip(record.trials(), acts, strict=True):
        if not act:
            check_complete(record, trial.number)
            continue
        assert (trial.state, trial.reason) == ("FAIL", "lost")
        assert causes[act] in trial.message
        assert (trial.number, True) in {(number, over) for number, _, over in heard.losses}
        assert trial.step == 2, "its steps before that stand"
    assert any(not over for _, _, over in heard.losses), "it was tried again"


@pytest.mark.soak
def test_a_node_that_is_lost_gives_its_trials_to_the_others(
    tmp_path: Path, cluster: Cluster
) -> None:
    node = cluster.add_node(num_cpus=1, num_gpus=1)
    cluster.wait_for_nodes()
    record = begin(tmp_path, fixed={"max_steps": 40}, resources={"gpu": 1})

    def strike() -> None:
        wait_until(lambda: all(len(trained(tmp_path, 0).get(n, [])) > 3 for n in range(3)), "all")
        assert len({line["pid"] for line in journal(tmp_path)}) == 3
        cluster.remove_node(node, allow_graceful=False)

    thread = meanwhile(strike)
    heard = run(record, 3)
    thread.join()
    for number in range(3):
        check_complete(record, number, 40)
    ((_, cause, over),) = heard.losses
    assert cause == "its node was lost"
    assert not over


def test_a_study_whose_trials_all_fail_alike_stops_and_keeps_the_rest(
    tmp_path: Path, cluster: Cluster
) -> None:
    record = begin(
        tmp_path,
        fixed={"acts": "raise", "acts_at": 2},
        max_identical_errors=3,
        resources={"gpu": 1},
        max_concurrent=1,
    )
    with pytest.raises(
        TrainerError, match="the last 3 trials failed with the same error"
    ) as raised:
        run(record, 50)
    assert "the trainer's own mistake" in str(raised.value)
    assert "hpo resume s" in str(raised.value)
    assert raised.value.exit_code == 1
    trials = record.trials()
    assert [trial.reason for trial in trials[:3]] == ["failed"] * 3
    assert len(trials) <= 4, "the others are not burnt"
    assert {trial.state for trial in trials[3:]} <= {"WAITING"}


@pytest.mark.soak
def test_a_model_whose_loading_kills_the_process_ends_the_run_with_what_it_wrote(
    tmp_path: Path, cluster: Cluster
) -> None:
    record = begin(tmp_path, fixed={"base": "deadly"})
    with pytest.raises(TrainerError, match="ended while they loaded the model") as raised:
        run(record, 3)
    assert "no such device" in str(raised.value)
    assert {trial.state for trial in record.trials()} == {"WAITING"}, "no trial is to blame"


@pytest.mark.soak
def test_what_a_dead_process_wrote_stands_in_the_trials_log(
    tmp_path: Path, cluster: Cluster
) -> None:
    from rich.console import Console

    from hpo.progress import RunProgress

    record = begin(tmp_path, fixed={"acts": "hang", "acts_once": str(tmp_path / "once")})
    study = Study(record, 1)
    with (tmp_path / "said").open("w") as said:
        progress = RunProgress(study, Console(file=said, width=300))
        Driver(study, progress).run()
        progress.close()
    study.close()
    check_complete(record, 0)
    lines = trial_log.read(study.folder / "0")
    (lost,) = [line for line in lines if line["kind"] == trial_log.LOST]
    assert lost["cause"] == "stalled: no step for 3 s"
    assert "in _act" in lost["output"]
    text = (tmp_path / "said").read_text()
    assert (
        "trial 0 lost: stalled: no step for 3 s; goes on from its newest checkpoint (loss 1 of 1)"
        in text
    )
