"""The contract of a store, the same wherever it lies; and what every place must survive."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hpo import faults
from hpo.checkpoints import CheckpointStore
from hpo.errors import CheckpointError
from hpo.store.scratch import cache_folder
from tests.hpo.store_places import PLACES, SAVED, Hand, address_of, content, history, save
from tests.integration.command import ROOT
from trainers.protocol import Report

FEW = settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.generate],  # names at a URL are drawn anew: to shrink leads nowhere
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "cache"))
    yield
    faults.arm("")


@pytest.fixture(params=PLACES)
def address(request: pytest.FixtureRequest, tmp_path: Path, s3: str) -> str:
    return address_of(request.param, tmp_path, s3)


@pytest.fixture
def store(address: str) -> CheckpointStore:
    store = CheckpointStore(address)
    store.write(3, 4, history(3, 1), True, save)
    store.write(3, 8, history(3, 2), True, save)
    return store


class TestContract:
    def test_what_is_written_is_read_by_another_process(
        self, store: CheckpointStore, address: str
    ) -> None:
        newest = CheckpointStore(address).newest(3)
        assert (newest.step, newest.history, newest.is_validation) == (
            8,
            tuple(history(3, 2)),
            True,
        )
        assert content(newest.folder) == SAVED
        assert newest.adapter.is_dir()
        assert store.at_step(3, 4).step == 4

    def test_steps_trials_and_the_listing_agree(self, store: CheckpointStore) -> None:
        store.write(11, 5, [], False, save)
        assert (store.steps(3), store.steps(11), store.steps(4)) == ([4, 8], [5], [])
        assert store.trials() == [3, 11]
        assert store.listing() == {3: [4, 8], 11: [5]}

    def test_one_that_is_there_stays_unless_a_pause_wrote_it(self, store: CheckpointStore) -> None:
        store.write(3, 8, history(3, 1), True, save)
        assert len(store.newest(3).history) == 2
        store.write(3, 9, history(3, 2), False, save)
        assert not store.newest(3).is_validation
        store.write(3, 9, history(3, 3), True, save)
        assert (store.newest(3).is_validation, len(store.newest(3).history)) == (True, 3)

    def test_deleting_keeps_what_is_named_and_the_log(
        self, store: CheckpointStore, address: str
    ) -> None:
        Hand.at(address).write("3/metrics.jsonl", b"{}\n")
        store.delete(3, keep={4})
        store.finish_deleting()
        names = set(Hand.at(address).files())
        assert {name.split("/")[1] for name in names} == {"4", "metrics.jsonl"}
        assert store.newest(3).step == 4

    def test_nothing_is_no_error(self, address: str) -> None:
        store = CheckpointStore(address)
        assert (store.newest(0), store.steps(0), store.trials(), store.listing()) == (
            None,
            [],
            [],
            {},
        )
        store.delete(0)
        store.sweep(0, 0)
        store.clear()

    def test_what_a_writer_left_is_swept_when_it_is_old(
        self, store: CheckpointStore, address: str
    ) -> None:
        before = set(Hand.at(address).files())
        hand = Hand.at(address)
        hand.filesystem.create_dir(f"{hand.root}/3/12/abcdef01/state", recursive=True)
        hand.write("3/12/abcdef01/state/weights.bin", b"x")
        if store.is_local:
            hand.filesystem.move(f"{hand.root}/3/12", f"{hand.root}/3/.12.abcdef01")
        store.sweep(3, older_than_s=60)
        assert set(hand.files()) - before, "it may still be written"
        store.sweep(3, older_than_s=0)
        assert set(hand.files()) == before
        assert store.steps(3) == [4, 8]

    def test_logs_and_history_come_back(self, store: CheckpointStore) -> None:
        own = Report(5, 1, 1, {"a": 0.1 + 0.2}, [{"step": 1, "loss": 1.0}], notes=("n",))
        store.write(5, 1, [own], True, save)
        store.write(5, 2, [own, Report(5, 2, 2, {"a": 1.0})], True, save)
        newest = store.newest(5)
        assert newest.history[0].step_lines == ()
        assert store.reports(5, newest)[0].step_lines == ({"step": 1, "loss": 1.0},)
        assert store.reports(5, newest)[0].metrics == {"a": 0.1 + 0.2}

    def test_clearing_leaves_nothing(self, store: CheckpointStore, address: str) -> None:
        store.clear()
        assert Hand.at(address).files() == {}

    def test_a_quota_refuses_what_would_go_beyond_and_keeps_what_is_there(
        self, store: CheckpointStore, address: str
    ) -> None:
        used = sum(map(len, Hand.at(address).files().values()))
        tight = CheckpointStore(address, disk_quota_gib=(used + 1000) / 2**30)
        with pytest.raises(CheckpointError) as caught:
            tight.write(3, 12, history(3, 3), True, save)
        assert "disk_quota_gib" in str(caught.value)
        assert "keep_checkpoints" in str(caught.value)
        assert "hpo resume" in str(caught.value)
        assert tight.newest(3).step == 8
        CheckpointStore(address).delete(3, keep={8})  # as the driver does
        tight.write(3, 12, history(3, 3), True, save)
        assert tight.newest(3).step == 12


def _damage(data: st.DataObject, hand: Hand, whole: dict[str, bytes]) -> str:
    """Tear, empty, flip, remove or add to one file of the checkpoint at step 8."""
    name = data.draw(st.sampled_from(sorted(n for n in whole if n.startswith("3/8/"))))
    kind = data.draw(st.sampled_from(["cut", "flip", "empty", "missing", "longer"]))
    old = whole[name]
    at = data.draw(st.integers(0, len(old) - 1))
    if kind == "missing":
        hand.delete(name)
        return f"{name} {kind}"
    new = {
        "cut": old[:at],
        "flip": old[:at] + bytes([old[at] ^ data.draw(st.integers(1, 255))]) + old[at + 1 :],
        "empty": b"",
        "longer": old + b"\0",
    }[kind]
    hand.write(name, new)
    return f"{name} {kind}"


@given(data=st.data())
@settings(FEW, max_examples=100)
def test_a_damaged_one_in_a_folder_is_refused_or_bit_equal(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    _damage_one("folder", data, tmp_path_factory, "")


@given(data=st.data())
@settings(FEW, max_examples=10)
def test_a_damaged_one_at_a_url_is_refused_or_bit_equal(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, s3: str
) -> None:
    _damage_one("s3", data, tmp_path_factory, s3)


def _damage_one(
    place: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, s3: str
) -> None:
    address = address_of(place, tmp_path_factory.mktemp("store"), s3)
    CheckpointStore(address).write(3, 4, history(3, 1), True, save)
    CheckpointStore(address).write(3, 8, history(3, 2), True, save)
    hand = Hand.at(address)
    done = _damage(data, hand, hand.files())
    store = CheckpointStore(address)
    newest = store.newest(3)
    assert content(newest.folder) == SAVED
    assert newest.history == tuple(history(3, newest.step // 4))
    if newest.step == 4:
        never_there = place == "s3" and done == "3/8/manifest.json missing"
        assert len(store.warnings()) == (0 if never_there else 1)
        store.write(3, 8, history(3, 2), True, save)
        assert store.newest(3).step == 8, "it is written again"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
_PARTS = ["format", "trial", "step", "is_validation", "files"]


@given(st.binary(max_size=40) | _JSON.map(lambda v: json.dumps(v).encode()))
@settings(FEW, max_examples=150)
def test_a_manifest_of_any_bytes_is_refused_without_a_crash(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    store, path = _one(tmp_path_factory)
    path.write_bytes(content)
    assert store.newest(3) is None


@given(st.sampled_from(_PARTS), _JSON)
@settings(FEW, max_examples=100)
def test_a_manifest_with_any_other_value_is_refused_without_a_crash(
    tmp_path_factory: pytest.TempPathFactory, part: str, value: object
) -> None:
    store, path = _one(tmp_path_factory)
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, part: value}))
    same = type(manifest[part]) is type(value) and manifest[part] == value
    free = part == "is_validation" and isinstance(value, bool)
    if part == "format" and isinstance(value, int) and value > 1:
        with pytest.raises(CheckpointError, match="a newer one wrote it"):
            store.newest(3)
        return
    assert (store.newest(3) is not None) == (same or free)


def _one(factory: pytest.TempPathFactory) -> tuple[CheckpointStore, Path]:
    store = CheckpointStore(factory.mktemp("store"))
    store.write(3, 4, history(3, 1), True, save)
    return store, store.root / "3" / "4" / "manifest.json"


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"format": 1' + b"0" * 10_000 + b"}",
        b" " * (17 << 20),
        b'{"format": 1, "files": {"x": {"bytes": 1e400, "blake2b": "' + b"0" * 32 + b'"}}}',
        b"\xff\xfe",
        b"NaN",
    ],
    ids=["deep lists", "deep maps", "a huge number", "17 MiB", "infinite", "no text", "NaN"],
)
def test_a_monstrous_manifest_is_refused(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    store, path = _one(tmp_path_factory)
    path.write_bytes(raw)
    assert store.newest(3) is None


@pytest.mark.parametrize("place", ["folder", "s3"])
@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "a/../../x", "./history.json", "", "..", "a\\..\\x", "a//b"]
)
def test_a_manifest_that_names_files_elsewhere_is_refused(
    place: str, name: str, tmp_path: Path, s3: str
) -> None:
    address = address_of(place, tmp_path, s3)
    store = CheckpointStore(address)
    store.write(3, 4, history(3, 1), True, save)
    hand = Hand.at(address)
    manifest = json.loads(hand.files()["3/4/manifest.json"])
    manifest["files"][name] = manifest["files"]["history.json"]
    hand.write("3/4/manifest.json", json.dumps(manifest).encode())
    assert store.newest(3) is None
    assert "outside its folder" in store.warnings()[0]
    assert store.warnings() == []


def test_a_link_is_refused_as_a_file_as_a_folder_and_as_the_manifest(tmp_path: Path) -> None:
    for name in ("state/weights.bin", "state", "manifest.json", "history.json"):
        store = CheckpointStore(tmp_path / name.replace("/", "-"))
        store.write(3, 4, history(3, 1), True, save)
        path = store.root / "3" / "4" / name
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        assert store.newest(3) is None, name
        assert len(store.warnings()) == 1
        path.unlink()
        (tmp_path / "elsewhere").rename(path)
        assert store.newest(3) is not None, "it was the link"


def test_a_warning_names_the_folder_and_where_the_trial_goes_on_once(
    store: CheckpointStore, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    Hand.at(address).write("3/8/manifest.json", b"{")
    assert store.newest(3).step == store.newest(3).step == 4
    assert len(caplog.messages) == 1
    assert "3/8 cannot be used: its manifest is torn. Trial 3 goes on from step 4." in caplog.text
    Hand.at(address).write("3/4/manifest.json", b"")
    assert store.newest(3) is None
    assert "its manifest is empty. Trial 3 begins again." in caplog.messages[1]


def test_a_full_disk_in_the_middle_leaves_the_older_ones_and_a_message(
    store: CheckpointStore,
) -> None:
    faults.arm("checkpoint saved=disk_full")
    with pytest.raises(CheckpointError, match=r"No space left on device.*hpo resume"):
        store.write(3, 12, history(3, 3), True, save)
    assert store.newest(3).step == 8
    store.write(3, 12, history(3, 3), True, save)
    assert store.newest(3).step == 12


def test_a_refusal_names_the_largest_other_studies(tmp_path: Path) -> None:
    for name, count in (("small", 1), ("large", 3), ("none", 0)):
        other = CheckpointStore(tmp_path / name)
        (tmp_path / name).mkdir()
        for step in range(1, count + 1):
            other.write(0, step, [], True, save)
    tight = CheckpointStore(tmp_path / "s", disk_quota_gib=2000 / 2**30)
    with pytest.raises(CheckpointError) as caught:
        tight.write(0, 1, [], True, save)
    said = str(caught.value)
    assert said.index("`hpo delete large`") < said.index("`hpo delete small`")
    assert "hpo delete none" not in said
    assert tight.steps(0) == []


def test_a_disk_without_room_for_the_next_one_is_said_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    store.write(3, 4, [], True, save)
    usage = type("usage", (), {"free": 100})
    monkeypatch.setattr("hpo.store.quota.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(
        CheckpointError, match=r"has 100 bytes left, and a checkpoint needs 2\.\d KiB"
    ):
        store.write(3, 8, [], True, lambda folder: pytest.fail("nothing is written"))
    assert store.newest(3).step == 4


def test_counting_does_not_walk_the_folder_at_every_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, disk_quota_gib=1)
    walks = []
    count = store.shelf.used_bytes
    monkeypatch.setattr(store.shelf, "used_bytes", lambda: walks.append(1) or count())
    for step in range(1, 50):
        store.write(0, step, [], True, save)
    assert len(walks) == 1


def test_downloads_are_one_a_trial_and_go_when_it_is_written_or_deleted(
    tmp_path: Path, s3: str
) -> None:
    store = CheckpointStore(address_of("s3", tmp_path, s3))
    for trial in (1, 2):
        store.write(trial, 4, [], True, save)
        store.write(trial, 8, [], True, save)
    for _ in range(3):
        first, second = store.newest(1), store.newest(2)
    assert len(list((cache_folder() / "scratch").glob("*/*"))) == 2
    assert content(first.folder) == content(second.folder) == SAVED
    store.write(1, 12, [], True, save)
    store.delete(2)
    assert list((cache_folder() / "scratch").glob("*/*")) == []


POINTS = [
    "checkpoint saved",
    "checkpoint listed",
    "checkpoint moved",
    "checkpoint renamed",
    "deleting",
    "deleted",
]
WRITER = """
import sys
from hpo.checkpoints import CheckpointStore
from tests.hpo.store_places import history, save
store = CheckpointStore(sys.argv[1])
store.write(3, 8, history(3, 2), True, save)  # a pause's is there
store.delete(3, keep={8})
print("done")
"""


@pytest.mark.parametrize("place", ["folder", "s3"])
@pytest.mark.parametrize("point", POINTS)
def test_a_writer_killed_anywhere_leaves_the_old_or_the_new_one_whole(
    place: str, point: str, tmp_path: Path, s3: str
) -> None:
    address = address_of(place, tmp_path, s3)
    store = CheckpointStore(address)
    store.write(3, 4, history(3, 1), True, save)
    store.write(3, 8, history(3, 1), False, save)
    killed = subprocess.run(
        [sys.executable, "-c", WRITER, address],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HPO_FAULTS": f"{point}=kill"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    found = CheckpointStore(address).newest(3)
    assert found.step == 8, "no step is lost: the old one or the new one is there"
    is_new = point not in ("checkpoint saved", "checkpoint listed")
    if place == "folder" and point == "checkpoint moved":
        is_new = False
    assert found.is_validation == is_new
    assert content(found.folder) == SAVED
    store.write(3, 8, history(3, 2), True, save)
    store.write(3, 12, history(3, 3), True, save)
    store.delete(3, keep={8, 12})
    store.sweep(3, 0)
    assert store.steps(3) == [8, 12]
    assert store.newest(3).step == 12
    left = {name.split("/")[1] for name in Hand.at(address).files()}
    assert left == {"8", "12"}, "nothing is left of the killed one"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("s3://nobucket/runs", "There is no such bucket"),
        (
            "s3://bucket/runs?endpoint_override=http%3A%2F%2F127.0.0.1%3A1&region=us-east-1",
            "network",
        ),
        ("nope://bucket/runs", "nothing here knows 'nope'"),
        ("oss://bucket/runs", "pip install"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_message_before_anything_trains(
    address: str, said: str, s3: str
) -> None:
    address = address + s3 if address == "s3://nobucket/runs" else address
    with pytest.raises(CheckpointError) as caught:
        CheckpointStore(address).check()
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_nothing_of_ours_loads_pickles() -> None:
    banned = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    files = [*(ROOT / "hpo").rglob("*.py"), *(ROOT / "trainers").rglob("*.py")]
    assert len(files) > 100
    narrow = ROOT / "hpo" / "cma_sampler.py"  # reads what Optuna's CMA-ES stores, seven names of it
    for path in files:
        if path == narrow:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("torch.load", "np.load", "numpy.load", "pd.read_pickle"), path
                assert "weights_only" not in {keyword.arg for keyword in node.keywords}, path
            assert not banned & {name.split(".")[0] for name in names}, path
