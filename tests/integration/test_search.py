"""A whole search through Ray, by the command line, and every verb that looks at it afterwards."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.command import Result, hpo, journal, write_study

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("search")
    write_study(
        folder,
        fixed={"note": "3 rows were left out", "answers": True},
        report_to=["tensorboard", "trackio"],
        run_name="x{x:.3f}-{number}",
    )
    return folder, hpo(folder, "run", "study.yaml", "--trials", "7")


def test_a_search_ends_with_a_table_the_best_config_and_what_to_do_next(
    searched: tuple[Path, Result],
) -> None:
    folder, result = searched
    assert result.code == 0, result.err
    assert "best: trial" in result.out
    assert f"adapter: {folder / 'runs' / 's' / 'best' / 'adapter'}" in result.out
    assert "hpo resume s --trials 14" in result.out
    assert "Traceback" not in result.err


def test_one_tune_trial_is_one_stored_trial(searched: tuple[Path, Result]) -> None:
    folder, _ = searched
    status = hpo(folder, "status", "s", "--json").json()
    assert [t["number"] for t in status["trials"]] == list(range(7))
    assert {t["state"] for t in status["trials"]} <= {"COMPLETE", "PRUNED"}
    begun = [line["trial"] for line in journal(folder) if line["what"] == "add"]
    assert sorted(begun) == list(range(7))


def test_all_trials_of_a_device_are_trained_by_one_host(searched: tuple[Path, Result]) -> None:
    folder, _ = searched
    assert len({line["pid"] for line in journal(folder)}) == 1


def test_pruned_trials_keep_all_reports_and_completed_ones_have_the_full_budget(
    searched: tuple[Path, Result],
) -> None:
    folder, _ = searched
    for trial in hpo(folder, "status", "s", "--json").json()["trials"]:
        steps = [v["step"] for v in trial["validations"]]
        assert steps == list(range(1, len(steps) + 1))
        assert (trial["state"] == "COMPLETE") == (len(steps) == 9)


def test_best_is_a_folder_that_trains_again(searched: tuple[Path, Result]) -> None:
    folder, _ = searched
    best = hpo(folder, "best", "s", "--json").json()
    config = folder / "runs" / "s" / "best" / "config.yaml"
    again = hpo(folder, "train", str(config), "--json", "--output-dir", "again")
    assert again.code == 0, again.err
    assert again.json()["metrics"]["eval_loss"] == pytest.approx(best["value"], abs=0)


def test_export_hands_over_adapter_and_full_weights(searched: tuple[Path, Result]) -> None:
    folder, _ = searched
    result = hpo(folder, "export", "s", "--merge", "--out", "out")
    assert result.code == 0, result.err
    assert (folder / "out" / "adapter" / "weight.json").exists()
    assert (folder / "out" / "merged" / "model.json").exists()
    refused = hpo(folder, "export", "s", "--out", "out")
    assert refused.code == 2
    assert "exists" in refused.err


def test_list_and_logs_tell_what_there_is(searched: tuple[Path, Result]) -> None:
    folder, _ = searched
    listed = hpo(folder, "list", "--json").json()
    assert listed[0]["study"] == "s"
    assert listed[0]["trials"] == 7
    log = hpo(folder, "logs", "s", "0", "--json").json()
    assert [line["step"] for line in log if line["kind"] == "step"] == list(range(1, 10))
    assert hpo(folder, "logs", "s", "99").code == 2


def test_a_run_is_seen_in_trackers_notes_samples_and_pictures(
    searched: tuple[Path, Result],
) -> None:
    folder, result = searched
    study = folder / "runs" / "s"
    assert result.err.count("3 rows were left out") == 1
    assert "tensorboard --logdir" in result.err
    names = sorted(path.name.rsplit("-", 1)[1] for path in (study / "tensorboard").iterdir())
    assert names == [str(number) for number in range(7)]
    with closing(sqlite3.connect(study / "trackio" / "s.db")) as db:
        runs = db.execute("SELECT COUNT(DISTINCT run_name) FROM metrics").fetchone()
    assert runs == (7,)
    assert "2 + 2 =" in hpo(folder, "logs", "s", "0", "--samples").out
    drawn = hpo(folder, "plot", "study.yaml", "--out", "pictures")
    assert drawn.code == 0, drawn.err
    pictures = [Path(line).name for line in drawn.out.splitlines()]
    assert pictures == ["validations.png", "parameters.png", *(f"trial-{n}.png" for n in range(7))]


def test_a_run_loads_no_tracker_that_it_is_not_asked_for(tmp_path: Path) -> None:
    write_study(tmp_path, fixed={"max_steps": 1})
    environment = {"PYTHONPROFILEIMPORTTIME": "1"}
    result = hpo(tmp_path, "run", "study.yaml", "--trials", "1", env=environment)
    assert result.code == 0, result.err
    loaded = {line.rpartition("|")[2].strip() for line in result.err.splitlines()}
    assert "ray.tune" in loaded
    assert not loaded & {"wandb", "mlflow", "comet_ml", "torch"}


def test_a_second_run_of_the_name_is_refused_with_the_way_on(
    searched: tuple[Path, Result],
) -> None:
    folder, _ = searched
    result = hpo(folder, "run", "study.yaml", "--trials", "2")
    assert result.code == 2
    assert "hpo resume s" in result.err


def test_resume_from_another_folder_without_the_file_extends(
    searched: tuple[Path, Result], tmp_path: Path
) -> None:
    folder, _ = searched
    url = f"sqlite:///{folder / 'hpo.db'}"
    before = hpo(folder, "status", "s", "--json").json()["trials"]
    result = hpo(tmp_path, "resume", "s", "--trials", "9", "--storage", url)
    assert result.code == 0, result.err
    after = hpo(folder, "status", "s", "--json").json()["trials"]
    assert after[:7] == before
    assert len(after) == 9


def test_a_model_that_cannot_be_loaded_is_said_once_and_frees_the_name(tmp_path: Path) -> None:
    write_study(tmp_path, fixed={"base": "missing"})
    result = hpo(tmp_path, "run", "study.yaml", "--trials", "3")
    assert result.code == 2
    assert "the model 'missing' cannot be loaded" in result.err
    assert "Traceback" not in result.err
    assert hpo(tmp_path, "list", "--json").json() == []


def test_a_full_disk_ends_the_run_with_1_and_the_study_goes_on_later(tmp_path: Path) -> None:
    write_study(tmp_path, fixed={"full_at": 3}, max_concurrent=1)
    result = hpo(tmp_path, "run", "study.yaml", "--trials", "1")
    assert result.code == 1
    assert "No space left on device" in result.err
    assert "hpo resume" in result.err
    trial = hpo(tmp_path, "status", "s", "--json").json()["trials"][0]
    assert (trial["state"], len(trial["validations"])) == ("WAITING", 2)


def test_a_study_without_one_complete_trial_ends_with_1(tmp_path: Path) -> None:
    write_study(tmp_path, fixed={"fail_above": -2.0})
    result = hpo(tmp_path, "run", "study.yaml", "--trials", "2")
    assert result.code == 1, result.err
    status = hpo(tmp_path, "status", "s", "--json").json()
    assert [t["state"] for t in status["trials"]] == ["FAIL", "FAIL"]
    assert [t["message"] for t in status["trials"]] == ["it broke", "it broke"]


def test_looking_makes_no_database(tmp_path: Path) -> None:
    assert hpo(tmp_path, "list", "--json").json() == []
    assert hpo(tmp_path, "delete", "s", "--yes", "--missing-ok").code == 0
    status = hpo(tmp_path, "status", "s")
    assert status.code == 2
    assert "there is no database" in status.err
    assert list(tmp_path.iterdir()) == []


def test_delete_removes_rows_and_files(tmp_path: Path) -> None:
    write_study(tmp_path, fixed={"max_steps": 1})
    assert hpo(tmp_path, "run", "study.yaml", "--trials", "1").code == 0
    assert hpo(tmp_path, "delete", "s").code == 1  # asked, and nobody answered
    assert hpo(tmp_path, "delete", "s", "--yes").code == 0
    assert hpo(tmp_path, "list", "--json").json() == []
    assert not (tmp_path / "runs" / "s").exists()
    assert hpo(tmp_path, "delete", "s", "--yes", "--missing-ok").code == 0


def test_a_host_that_is_killed_is_replaced_and_all_its_trials_go_on_from_their_checkpoints(
    tmp_path: Path,
) -> None:
    fixed = {"kill_once": str(tmp_path / "killed"), "eval_steps": 2}
    write_study(tmp_path, fixed=fixed, pruner={"type": "none"}, resources={"gpu": 0.33})
    result = hpo(tmp_path, "run", "study.yaml", "--trials", "3", "--json")
    assert result.code == 0, result.err
    trials = json.loads(result.out)["trials"]
    assert [t["state"] for t in trials] == ["COMPLETE"] * 3
    assert all([v["step"] for v in t["validations"]] == [2, 4, 6, 8, 9] for t in trials)
    lines = journal(tmp_path)
    first, second = dict.fromkeys(line["pid"] for line in lines)
    before = {line["trial"]: line["step"] for line in lines if line["pid"] == first}
    joined = {
        line["trial"]: line["step"]
        for line in lines
        if line["pid"] == second and line["what"] == "add"
    }
    assert len(before) > 1, "several were on it"
    for number, step in before.items():
        assert joined[number] == step - step % 2 > 0, "its newest checkpoint"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:////dev/null/hpo.db", "cannot make the folder"),
        ("postgresql://me@127.0.0.1:1/none", "cannot be used"),
        ("mysql://me@h/d", "not supported"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_message(
    tmp_path: Path, url: str, message: str
) -> None:
    write_study(tmp_path)
    result = hpo(tmp_path, "run", "study.yaml", "--trials", "1", "--storage", url)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
