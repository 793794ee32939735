"""Checkpoints: whole or not there, whatever happens while they are written."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from hpo.checkpoints import HISTORY, MANIFEST, CheckpointStore
from hpo.errors import CheckpointError
from trainers.protocol import Report

HISTORY_OF_TWO = [Report(3, 1, 4, {"eval_loss": 0.5}), Report(3, 2, 8, {"eval_loss": 0.4})]


def save(folder: Path) -> None:
    for name in ("adapter", "state"):
        (folder / name).mkdir()
        (folder / name / "weights.bin").write_bytes(b"x" * 1000)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path)
    store.write(3, 4, HISTORY_OF_TWO[:1], True, save)
    store.write(3, 8, HISTORY_OF_TWO, True, save)
    return store


def test_what_is_written_is_read(store: CheckpointStore) -> None:
    newest = store.newest(3)
    assert (newest.step, newest.history, newest.is_validation) == (8, tuple(HISTORY_OF_TWO), True)
    assert (newest.adapter / "weights.bin").read_bytes() == b"x" * 1000


@pytest.mark.parametrize("name", [MANIFEST, HISTORY, "state/weights.bin", "adapter/weights.bin"])
@pytest.mark.parametrize("damage", ["torn", "empty", "missing", "flipped"])
def test_a_damaged_one_falls_back_to_the_one_before(
    store: CheckpointStore, name: str, damage: str
) -> None:
    path = store.trial_folder(3) / "8" / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "torn" else b"")
    assert store.newest(3).step == 4
    with pytest.raises(CheckpointError, match="missing or torn"):
        store.at_step(3, 8)


def test_a_writer_that_dies_leaves_nothing_that_counts(store: CheckpointStore) -> None:
    class Killed(BaseException):
        pass

    def die(folder: Path) -> None:
        save(folder)
        raise Killed

    with pytest.raises(Killed):
        store.write(3, 12, HISTORY_OF_TWO, True, die)
    assert store.newest(3).step == 8
    assert store.steps(3) == [4, 8]
    store.sweep(3, older_than_s=60)
    assert len(list(store.trial_folder(3).iterdir())) == 3, "it may still be written"
    store.sweep(3, older_than_s=0)
    assert sorted(path.name for path in store.trial_folder(3).iterdir()) == ["4", "8"]


def test_a_full_disk_is_one_message_and_leaves_nothing(store: CheckpointStore) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match=r"No space left on device.*hpo resume"):
        store.write(3, 12, HISTORY_OF_TWO, True, full)
    assert store.steps(3) == [4, 8]
    assert [path.name for path in store.trial_folder(3).glob(".*")] == []


def test_a_torn_one_is_replaced_by_writing_it_again(store: CheckpointStore) -> None:
    (store.trial_folder(3) / "8" / MANIFEST).write_text("{")
    store.write(3, 8, HISTORY_OF_TWO, True, save)
    assert store.newest(3).step == 8


def test_deleting_keeps_what_is_named_and_the_log(store: CheckpointStore) -> None:
    (store.trial_folder(3) / "metrics.jsonl").write_text("{}\n")
    store.delete(3, keep={4})
    store.finish_deleting()
    assert sorted(path.name for path in store.trial_folder(3).iterdir()) == ["4", "metrics.jsonl"]


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "none")
    assert store.newest(0) is None
    assert store.steps(0) == []
    assert store.trials() == []
    store.delete(0)


def test_reports_survive_bit_for_bit(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    value = 0.1 + 0.2
    store.write(0, 1, [Report(0, 1, 1, {"eval_loss": value}, end="finished")], True, save)
    assert store.newest(0).history[0].metrics["eval_loss"] == value
    assert store.newest(0).history[0].end == "finished"


def test_a_manifest_of_another_format_is_not_read(store: CheckpointStore) -> None:
    path = store.trial_folder(3) / "8" / MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format": 0}))
    assert store.newest(3).step == 4
    path.write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(CheckpointError, match="Update hpo"):
        store.newest(3)
