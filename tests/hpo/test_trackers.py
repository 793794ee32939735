"""Every tracker offline, through its own SDK: a trial that ends, and one that is gone on with."""

from __future__ import annotations

import json
import sqlite3
import struct
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hpo import trial_log
from hpo.trackers import TRACKERS
from hpo.trackers.outlet import Outlets
from hpo.trackers.tracker import Ending
from trainers.protocol import Report

pytestmark = pytest.mark.slow

CONFIG = {"learning_rate": 2e-4, "lora_r": 8, "target_modules": ["q", "v"], "quantization": None}
KEY = "0123456789abcdef0123456789abcdef01234567"
OFFLINE = {
    "WANDB_MODE": "offline",
    "COMET_START_ONLINE": "false",
    "WANDB_API_KEY": KEY,
    "COMET_API_KEY": KEY,
    "HTTPS_PROXY": "http://127.0.0.1:9",  # whoever phones home fails
    "HTTP_PROXY": "http://127.0.0.1:9",
}
ELSEWHERE = ("WANDB_DIR", "MLFLOW_TRACKING_URI", "COMET_OFFLINE_DIRECTORY", "TRACKIO_DIR")


def train(study: Path, number: int, first: int, last: int, end: str | None = None) -> None:
    lines = [
        {"step": s, "loss": 1 / s, "learning_rate": 1e-4, "grad_norm": None}
        for s in range(first, last + 1)
    ]
    report = Report(number, last, last, {"eval_loss": 2 / last}, lines, end=end)
    trial_log.append(study / str(number), report, end or "goes on")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All trackers at once, as they are processes of their own."""
    folder = tmp_path_factory.mktemp("trackers") / "st"
    home = folder.parent / "home"
    home.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (OFFLINE | {"HOME": str(home)}).items():
            patch.setenv(name, value)
        for name in ELSEWHERE:
            patch.delenv(name, raising=False)
        patch.setattr("hpo.trackers.outlet.FLUSH_S", 60.0)
        first = Outlets(list(TRACKERS), folder, "st", "eval_loss", "{study}-{number}")
        train(folder, 0, 1, 4, "finished")
        train(folder, 1, 1, 3)
        first.tell(0, CONFIG, folder / "0", Ending("COMPLETE", "finished", None, 0.5))
        first.tell(1, CONFIG, folder / "1")
        said = first.close(60.0)
        second = Outlets(list(TRACKERS), folder, "st", "eval_loss", "{study}-{number}")
        train(folder, 1, 4, 6)
        second.tell(1, CONFIG, folder / "1", Ending("FAIL", "failed", "it broke", 0.4))
        said += second.close(60.0)
    assert not [text for text in said if text.startswith("warning")]
    return folder


def test_tensorboard_has_every_step_once_and_the_hyperparameters(study: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = sorted(path.name for path in (study / "tensorboard").iterdir())
    assert folders == ["st-0", "st-1"]
    for number, last in ((0, 4), (1, 6)):
        events = EventAccumulator(str(study / "tensorboard" / f"st-{number}"))
        events.Reload()
        loss = events.Scalars("train/loss")
        assert [event.step for event in loss] == list(range(1, last + 1))
        assert [event.value for event in loss] == pytest.approx([1 / s for s in range(1, last + 1)])
        assert events.Scalars("eval/loss")[-1].step == last
        assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
        assert "train/grad_norm" not in events.Tags()["scalars"]


def test_wandb_has_one_run_a_trial_that_goes_on_under_its_id(study: Path) -> None:
    steps: dict[str, list[int]] = {}
    for path in sorted((study / "wandb").glob("offline-run-*/*.wandb")):
        for record in wandb_records(path):
            if record.WhichOneof("record_type") == "run":
                run = record.run
                assert run.run_group == "st"
                known = steps.setdefault(f"{run.display_name}/{run.run_id}", [])
            elif record.WhichOneof("record_type") == "history":
                items = {(i.key or "/".join(i.nested_key)): i for i in record.history.item}
                if "train/loss" in items:
                    known.append(int(items["_step"].value_json))
    assert [name.split("/")[0] for name in steps] == ["st-0", "st-1"]
    assert list(steps.values()) == [list(range(1, 5)), list(range(1, 7))]


def test_mlflow_has_an_experiment_with_a_run_a_trial(study: Path) -> None:
    with closing(sqlite3.connect(study / "mlflow" / "mlflow.db")) as db:
        names = db.execute("SELECT name FROM experiments WHERE name != 'Default'").fetchall()
        assert names == [("st",)]
        runs = db.execute("SELECT run_uuid, name, status FROM runs ORDER BY name").fetchall()
        assert [run[1:] for run in runs] == [("st-0", "FINISHED"), ("st-1", "FAILED")]
        for (run, *_), last in zip(runs, (4, 6), strict=True):
            query = "SELECT step, value FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY step"
            found = db.execute(query, (run, "train/loss")).fetchall()
            assert found == [(step, 1 / step) for step in range(1, last + 1)]
            params = dict(
                db.execute("SELECT key, value FROM params WHERE run_uuid = ?", (run,)).fetchall()
            )
            assert params["lora_r"] == "8"
            assert params["target_modules"] == "['q', 'v']"
        tags = dict(
            db.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (runs[1][0],)).fetchall()
        )
        assert (tags["hpo.reason"], tags["hpo.message"]) == ("failed", "it broke")


def test_comet_has_archives_under_one_key_a_trial(study: Path) -> None:
    steps: dict[str, list[int]] = {}
    for path in sorted((study / "comet").glob("*.zip"), key=lambda path: path.stat().st_mtime):
        with zipfile.ZipFile(path) as archive:
            messages = archive.read("messages.json").decode().splitlines()
        known = steps.setdefault(path.name.split("-")[0], [])
        for line in messages:
            payload = json.loads(line)["payload"]
            metric = payload.get("metric") or {}
            if metric.get("metricName") == "train/loss":
                known.append(int(payload["metric"]["step"]))
    assert sorted(steps.values()) == [list(range(1, 5)), list(range(1, 7))]


def test_trackio_has_a_project_with_a_run_a_trial(study: Path) -> None:
    with closing(sqlite3.connect(study / "trackio" / "st.db")) as db:
        rows = db.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    for name, last in (("st-0", 4), ("st-1", 6)):
        own = [(step, json.loads(metrics)) for run, step, metrics in rows if run == name]
        steps = [step for step, metrics in own if "train/loss" in metrics]
        assert steps == list(range(1, last + 1))
        assert own[-1][1]["state"] == ("COMPLETE" if name == "st-0" else "FAIL")


def test_nothing_is_written_outside_the_study_and_no_key_anywhere(study: Path) -> None:
    beside = {path.name for path in study.parent.iterdir()}
    assert beside == {"st", "home"}
    written = [path for path in (study.parent / "home").rglob("*") if path.is_file()]
    assert [path for path in written if "matplotlib" not in path.parts] == []  # fonts, for Comet
    for path in study.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def wandb_records(path: Path) -> Iterator[object]:
    """Read W&B's file: LevelDB's log format behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        if kind == 0:
            break
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""
