"""The study's rules, with one worker and no Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hpo.study
from hpo import trial_log
from hpo.checkpoints import CheckpointStore
from hpo.errors import ExhaustedError, StudyError
from hpo.studies import create_study, open_study
from hpo.study import Study
from tests.one_worker import SPACE, Worker, again, make_spec, picture, sqlite, start
from trainers.protocol import Report


def run(tmp_path: Path, trials: int = 8, **changes: object) -> list[tuple[object, ...]]:
    spec = make_spec(tmp_path, **changes)
    record = start(spec, sqlite(tmp_path))
    Worker(Study(record, trials)).work()
    return picture(record)


class TestDeterminism:
    @pytest.mark.parametrize(
        "sampler",
        ["random", "tpe", "qmc", "nsga2", "cmaes", "gp", "grid", "optuna.samplers.RandomSampler"],
    )
    def test_same_seed_gives_the_same_study(self, tmp_path: Path, sampler: str) -> None:
        changes = {"sampler": {"type": sampler, "seed": 3}}
        if sampler == "gp":
            changes["sampler"]["n_startup_trials"] = 3
        if sampler == "grid":
            changes["space"] = {"y": {"type": "int", "low": 1, "high": 4}, "kind": ["a", "b"]}
        if sampler == "cmaes":
            changes["space"] = {
                "x": {"type": "float", "low": -1, "high": 1},
                "overfit": {"type": "float", "low": 0, "high": 1},
            }
        first = run(tmp_path / "1", **changes)
        assert first == run(tmp_path / "2", **changes)

    @pytest.mark.parametrize("sampler", ["random", "tpe", "qmc", "nsga2"])
    def test_stopped_and_resumed_after_every_trial_gives_the_same_study(
        self, tmp_path: Path, sampler: str
    ) -> None:
        changes = {
            "sampler": {
                "type": sampler,
                "seed": 3,
                **({"n_startup_trials": 3} if sampler == "tpe" else {}),
            }
        }
        whole = run(tmp_path / "whole", **changes)
        spec = make_spec(tmp_path / "parts", **changes)
        record = start(spec, sqlite(tmp_path / "parts"))
        for trials in range(1, 9):
            Worker(Study(record, trials)).work()
            record = again(spec, sqlite(tmp_path / "parts"))
        assert picture(record) == whole

    def test_other_seed_gives_another_study(self, tmp_path: Path) -> None:
        one = run(tmp_path / "1", sampler={"type": "tpe", "seed": 1})
        two = run(tmp_path / "2", sampler={"type": "tpe", "seed": 2})
        assert one != two


class _Killed(BaseException):
    pass


def _killed(*args: object) -> object:
    raise _Killed


class TestKills:
    """A driver killed at any write goes on to the very study that nobody killed."""

    def test_no_step_before_the_last_checkpoint_is_trained_again(self, tmp_path: Path) -> None:
        spec = make_spec(tmp_path, fixed={"max_steps": 6})
        record = start(spec, sqlite(tmp_path))
        study = Study(record, 2)
        claim = study.next_trial()
        first = Worker(study)
        first.study.report = _stop_after(study, 3)
        with pytest.raises(_Killed):
            first.train(claim.number, claim.config)
        study._lock.release()
        second = Worker(Study(again(spec, sqlite(tmp_path)), 2))
        second.work()
        assert [s for n, s in first.trained if n == 0] == [1, 2, 3]
        assert [s for n, s in second.trained if n == 0] == [4, 5, 6]
        assert [t.state for t in record.trials()].count("RUNNING") == 0

    def test_a_report_that_only_the_checkpoint_knows_is_filed(self, tmp_path: Path) -> None:
        spec = make_spec(tmp_path, pruner={"type": "none"})
        record = start(spec, sqlite(tmp_path))
        study = Study(record, 1)
        claim = study.next_trial()
        history = [Report(0, 1, 1, {"eval_loss": 0.5}), Report(0, 2, 2, {"eval_loss": 0.4})]
        study.store.write(0, 2, history, True, _save)
        study._lock.release()
        study = Study(again(spec, sqlite(tmp_path)), 1)
        assert study.next_trial() == hpo.study.Claim(0, 2, claim.config, True)
        assert [r["metrics"]["eval_loss"] for r in record.trials()[0].reports.values()] == [
            0.5,
            0.4,
        ]

    def test_a_trial_that_had_passed_a_rung_has_passed_it_for_good(self, tmp_path: Path) -> None:
        spec = make_spec(tmp_path)
        study = Study(start(spec, sqlite(tmp_path)), 2)
        for losses in ([0.5, 0.3, 0.1, 0.1], [0.4, 0.3, 0.2]):  # each leads at another rung
            number = study.next_trial().number
            for index, loss in enumerate(losses, start=1):
                study._file(number, Report(number, index, index, {"eval_loss": loss}), loss)
        study._lock.release()
        resumed = Study(again(spec, sqlite(tmp_path)), 2)
        assert resumed.next_trial().number == 0
        assert [t.state for t in resumed.record.trials()] == ["RUNNING", "RUNNING"]

    def test_the_last_validation_of_a_full_budget_is_never_judged(self, tmp_path: Path) -> None:
        spec = make_spec(tmp_path)
        study = Study(start(spec, sqlite(tmp_path)), 2)
        for number, loss in ((0, 0.1), (1, 0.9)):
            assert study.next_trial().number == number
            last = Report(number, 9, 9, {"eval_loss": loss}, end="finished")
            study.store.write(number, 9, [last], True, _save)
            study._file(number, last, loss)  # killed before it was told
        study._lock.release()
        resumed = Study(again(spec, sqlite(tmp_path)), 2)
        with pytest.raises(ExhaustedError):
            resumed.next_trial()
        assert [t.state for t in resumed.record.trials()] == ["COMPLETE", "COMPLETE"]

    def test_a_checkpoint_whose_report_is_under_way_is_not_deleted(self, tmp_path: Path) -> None:
        spec = make_spec(tmp_path, pruner={"type": "none"})
        study = Study(start(spec, sqlite(tmp_path)), 1)
        study.next_trial()
        losses = [0.9, 0.8, 0.1, 0.5, 0.6, 0.7]
        history = [
            Report(0, index, index, {"eval_loss": loss}, end="finished" if index == 6 else None)
            for index, loss in enumerate(losses, start=1)
        ]
        for index in range(1, 7):
            study.store.write(0, index, history[:index], True, _save)
        study.report(0, history[0])
        study._lock.release()
        resumed = Study(again(spec, sqlite(tmp_path)), 1)
        with pytest.raises(ExhaustedError):
            resumed.next_trial()
        best = json.loads((resumed.folder / "best" / "trial.json").read_text())
        assert (best["step"], best["value"]) == (3, 0.1)

    @pytest.mark.parametrize("end", [None, "finished"])
    def test_the_log_of_a_trial_has_its_last_validation_before_its_end_is_stored(
        self, tmp_path: Path, end: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study = Study(start(make_spec(tmp_path), sqlite(tmp_path)), 2)
        for number, loss in ((0, 0.1), (1, 0.9)):  # the second is pruned, unless it is at its end
            assert study.next_trial().number == number
            if number == 1:
                monkeypatch.setattr(study._rows, "end", _killed)
                with pytest.raises(_Killed):
                    study.report(1, Report(1, 1, 1, {"eval_loss": loss}, [{"step": 1}], end=end))
            else:
                study.report(0, Report(0, 1, 1, {"eval_loss": loss}, [{"step": 1}]))
        lines = trial_log.read(study.store.trial_folder(1))
        assert [(line["kind"], line.get("verdict")) for line in lines] == [
            ("step", None),
            ("validation", end or "pruned"),
        ]

    def test_the_log_of_a_trial_has_its_last_loss_before_its_end_is_stored(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        record = start(make_spec(tmp_path, max_failures=0), sqlite(tmp_path))
        study = Study(record, 1)
        number = study.next_trial().number
        monkeypatch.setattr(study._rows, "end", _killed)
        with pytest.raises(_Killed):
            study.lose(number, "killed by SIGSEGV", "Fatal Python error")
        (line,) = trial_log.read(study.store.trial_folder(number))
        assert (line["cause"], line["output"]) == ("killed by SIGSEGV", "Fatal Python error")

    def test_a_verdict_that_was_not_told_is_told_on_adoption(self, tmp_path: Path) -> None:
        spec = make_spec(tmp_path)
        record = start(spec, sqlite(tmp_path))
        study = Study(record, 2)
        first = study.next_trial()
        assert not study.report(first.number, Report(0, 1, 1, {"eval_loss": 0.1}))
        study.store.write(0, 1, [], True, _save)
        study.report(first.number, Report(0, 2, 2, {"eval_loss": 0.1}, end="finished"))
        second = study.next_trial()
        # killed after the report was stored and before its verdict
        study._file(second.number, Report(1, 1, 1, {"eval_loss": 0.9}), 0.9)
        study._lock.release()
        resumed = Study(again(spec, sqlite(tmp_path)), 2)
        with pytest.raises(ExhaustedError):
            resumed.next_trial()
        assert [t.state for t in record.trials()] == ["COMPLETE", "PRUNED"]


def _save(folder: Path) -> None:
    for name in ("adapter", "state"):
        (folder / name).mkdir()
        (folder / name / "x.json").write_text("{}")


def _stop_after(study: Study, step: int) -> object:
    report = study.report

    def stopping(number: int, said: Report) -> bool:
        over = report(number, said)
        if said.step == step:
            raise _Killed
        return over

    return stopping


class TestTrials:
    def test_a_grid_is_tried_once_each_and_then_ends(self, tmp_path: Path) -> None:
        space = {"y": {"type": "int", "low": 1, "high": 3}, "kind": ["a", "b"]}
        spec = make_spec(tmp_path, space=space, sampler={"type": "grid"})
        record = start(spec, sqlite(tmp_path))
        reason = Worker(Study(record, 100)).work()
        points = [(t.params["y"], t.params["kind"]) for t in record.trials()]
        assert points == [(y, kind) for y in (1, 2, 3) for kind in "ab"]
        assert "all 6 points" in reason

    @pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2", "brute_force", "qmc"])
    def test_a_finite_space_has_no_duplicates_and_a_clear_end(
        self, tmp_path: Path, sampler: str
    ) -> None:
        space = {"y": {"type": "int", "low": 1, "high": 4}, "kind": ["a", "b", "c"]}
        spec = make_spec(tmp_path, space=space, sampler={"type": sampler})
        record = start(spec, sqlite(tmp_path))
        reason = Worker(Study(record, 100)).work()
        points = {(t.params["y"], t.params["kind"]) for t in record.trials()}
        assert len(points) == len(record.trials()) == 12
        assert "all 12 configs" in reason

    def test_a_sampler_that_repeats_itself_does_not_end_the_search(self, tmp_path: Path) -> None:
        space = {"x": {"type": "float", "low": -1.0, "high": 0.0}}
        sampler = {"type": "gp", "n_startup_trials": 3}
        record = start(make_spec(tmp_path, space=space, sampler=sampler), sqlite(tmp_path))
        Worker(Study(record, 8)).work()
        assert len(record.trials()) == 8

    def test_enqueued_configs_come_first(self, tmp_path: Path) -> None:
        enqueue = [{"x": 0.25, "y": 3, "kind": "b"}, {"x": -0.5, "y": 1, "kind": "a"}]
        record = start(make_spec(tmp_path, enqueue=enqueue), sqlite(tmp_path))
        Worker(Study(record, 4)).work()
        assert [t.params for t in record.trials()[:2]] == enqueue

    def test_constraints_hold_for_every_trial(self, tmp_path: Path) -> None:
        record = start(make_spec(tmp_path, constraints=["x * y <= 0.2"]), sqlite(tmp_path))
        Worker(Study(record, 12)).work()
        assert all(t.params["x"] * t.params["y"] <= 0.2 for t in record.trials())

    def test_nothing_is_proposed_ahead(self, tmp_path: Path) -> None:
        record = start(make_spec(tmp_path), sqlite(tmp_path))
        study = Study(record, 5)
        study.next_trial()
        assert [t.state for t in record.trials()] == ["RUNNING"]

    def test_extending_goes_on_counting(self, tmp_path: Path) -> None:
        spec = make_spec(tmp_path)
        record = start(spec, sqlite(tmp_path))
        Worker(Study(record, 3)).work()
        Worker(Study(again(spec, sqlite(tmp_path)), 5)).work()
        assert [t.number for t in record.trials()] == [0, 1, 2, 3, 4]

    def test_a_second_study_of_the_same_name_is_refused(self, tmp_path: Path) -> None:
        spec = make_spec(tmp_path)
        create_study(spec, sqlite(tmp_path))
        with pytest.raises(StudyError, match="hpo resume s"):
            create_study(spec, sqlite(tmp_path))

    def test_checkpoints_of_another_study_are_never_gone_on_from(self, tmp_path: Path) -> None:
        spec = make_spec(tmp_path)
        Worker(Study(create_study(spec, sqlite(tmp_path)), 1)).work()
        (tmp_path / "hpo.db").unlink()  # as a user does who wants to begin again
        with pytest.raises(StudyError, match="holds the checkpoints of another study"):
            create_study(spec, sqlite(tmp_path))
        with pytest.raises(StudyError, match="no study at all"):
            open_study("s", sqlite(tmp_path))

    def test_a_second_driver_on_sqlite_is_refused(self, tmp_path: Path) -> None:
        record = start(make_spec(tmp_path), sqlite(tmp_path))
        study = Study(record, 1)
        with pytest.raises(StudyError, match="being run by another process"):
            Study(open_study("s", sqlite(tmp_path)), 1)
        study.close()

    def test_an_unknown_study_names_the_nearest(self, tmp_path: Path) -> None:
        start(make_spec(tmp_path, study="docstrings"), sqlite(tmp_path))
        with pytest.raises(StudyError, match="Did you mean 'docstrings'"):
            open_study("docstring", sqlite(tmp_path))


class TestWidening:
    def test_a_widened_range_is_used(self, tmp_path: Path) -> None:
        when = {"type": "float", "low": 0, "high": 1, "when": "y > 1"}
        space = {**SPACE, "overfit": when}
        narrow = make_spec(tmp_path, space={**space, "x": {"type": "float", "low": -1, "high": 0}})
        wide = make_spec(tmp_path, space={**space, "x": {"type": "float", "low": -1, "high": 9}})
        record = start(narrow, sqlite(tmp_path))
        Worker(Study(record, 15)).work()
        Worker(Study(again(narrow, sqlite(tmp_path)).update_spec(wide), 40)).work()
        assert any(t.params["x"] > 0 for t in record.trials()[15:])


class TestEnds:
    def claimed(self, tmp_path: Path, **changes: object) -> Study:
        study = Study(start(make_spec(tmp_path, **changes), sqlite(tmp_path)), 2)
        study.next_trial()
        return study

    def test_a_pruned_trial_keeps_every_report(self, tmp_path: Path) -> None:
        study = self.claimed(tmp_path)
        study.report(0, Report(0, 1, 1, {"eval_loss": 0.1}))
        study.next_trial()
        assert study.report(1, Report(1, 1, 1, {"eval_loss": 0.2}))
        trial = study.record.trials()[1]
        assert (trial.state, trial.reason, trial.value) == ("PRUNED", "pruned", 0.2)

    def test_nan_ends_a_trial_at_once_and_is_not_best(self, tmp_path: Path) -> None:
        study = self.claimed(tmp_path)
        assert study.report(0, Report(0, 1, 1, {"eval_loss": float("nan")}))
        trial = study.record.trials()[0]
        assert (trial.state, trial.reason) == ("PRUNED", "diverged")
        assert study.record.best() is None

    def test_a_missing_metric_fails_the_trial_and_names_what_there_is(self, tmp_path: Path) -> None:
        study = self.claimed(tmp_path)
        assert study.report(0, Report(0, 1, 1, {"loss": 0.1}))
        trial = study.record.trials()[0]
        assert trial.state == "FAIL"
        assert "no metric 'eval_loss'" in trial.message
        assert "loss" in trial.message

    def test_a_value_is_the_best_validation(self, tmp_path: Path) -> None:
        study = self.claimed(tmp_path, pruner={"type": "none"})
        for index, loss in enumerate([0.5, 0.2, 0.9], start=1):
            end = "finished" if index == 3 else None
            study.store.write(0, index, [], True, _save)
            study.report(0, Report(0, index, index, {"eval_loss": loss}, end=end))
        trial = study.record.trials()[0]
        assert (trial.state, trial.value, trial.best_step) == ("COMPLETE", 0.2, 2)
        assert study.store.steps(0) == [2]
        best = json.loads((study.folder / "best" / "trial.json").read_text())
        assert (best["number"], best["step"], best["value"]) == (0, 2, 0.2)

    def test_the_result_stands_though_its_checkpoint_is_torn_later(self, tmp_path: Path) -> None:
        study = self.claimed(tmp_path, pruner={"type": "none"})
        for number, loss in ((0, 0.1), (1, 0.9)):
            study.store.write(number, 1, [], True, _save)
            study.report(number, Report(number, 1, 1, {"eval_loss": loss}, end="finished"))
            if number == 0:
                (study.folder / "0" / "1" / "adapter" / "x.json").write_text("torn")
                study.next_trial()
        best = json.loads((study.folder / "best" / "trial.json").read_text())
        assert best["number"] == 0

    def test_maximize_takes_the_largest(self, tmp_path: Path) -> None:
        study = self.claimed(tmp_path, metric="score", direction="maximize")
        for index, score in enumerate([0.5, 0.9, 0.2], start=1):
            end = "finished" if index == 3 else None
            study.store.write(0, index, [], True, _save)
            study.report(0, Report(0, index, index, {"score": score}, end=end))
        assert study.record.trials()[0].value == 0.9

    def test_a_pruned_trial_is_never_best(self, tmp_path: Path) -> None:
        record = start(make_spec(tmp_path), sqlite(tmp_path))
        Worker(Study(record, 12)).work()
        best = record.best()
        assert best.state == "COMPLETE"
        assert any(t.state == "PRUNED" for t in record.trials())

    def test_a_report_said_twice_is_stored_once(self, tmp_path: Path) -> None:
        study = self.claimed(tmp_path, pruner={"type": "none"})
        report = Report(0, 1, 1, {"eval_loss": 0.5})
        assert not study.report(0, report)
        assert not study.report(0, report)
        assert len(study.record.trials()[0].reports) == 1


class TestDisk:
    def test_checkpoints_of_trials_that_cannot_win_are_deleted(self, tmp_path: Path) -> None:
        spec = make_spec(tmp_path, pruner={"type": "none"}, keep_checkpoints=2)
        record = start(spec, sqlite(tmp_path))
        Worker(Study(record, 6)).work()
        store = CheckpointStore(Path(spec.output_dir) / "s")
        kept = {t.number for t in record.trials() if store.steps(t.number)}
        ranking = sorted(record.trials(), key=lambda t: t.value)
        assert kept == {t.number for t in ranking[:2]}

    def test_a_running_trial_keeps_best_latest_and_the_one_before(self, tmp_path: Path) -> None:
        spec = make_spec(tmp_path, pruner={"type": "none"})
        study = Study(start(spec, sqlite(tmp_path)), 1)
        study.next_trial()
        for index, loss in enumerate([0.9, 0.1, 0.5, 0.6, 0.7], start=1):
            study.store.write(0, index, [], True, _save)
            study.report(0, Report(0, index, index, {"eval_loss": loss}))
        assert study.store.steps(0) == [2, 4, 5]

    def test_release_hands_a_trial_back_under_its_number(self, tmp_path: Path) -> None:
        spec = make_spec(tmp_path)
        study = Study(start(spec, sqlite(tmp_path)), 3)
        claim = study.next_trial()
        study.close()
        assert [t.state for t in study.record.trials()] == ["WAITING"]
        resumed = Study(again(spec, sqlite(tmp_path)), 3)
        assert resumed.next_trial() == hpo.study.Claim(0, 2, claim.config, True)
