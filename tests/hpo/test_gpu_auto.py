"""`resources: {gpu: auto}`: what the file may say, what is measured with, what the user is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from hpo.cluster.measure import beside_copies, described, samples, share_of, sharing_problem
from hpo.cluster.slots import Node, num_slots
from hpo.json_schema import file_schema
from hpo.preview import preview
from hpo.spec import ResourcesSpec, StudySpec
from hpo.spec_file import read_spec_file
from tests.one_worker import make_spec
from trainers.protocol import Capacity


def test_auto_is_a_share_and_nothing_else_in_words() -> None:
    assert ResourcesSpec.model_validate({"gpu": "auto"}).gpu == "auto"
    for wrong in ("all", "0.5", True, None, 0, -1, 1.5, float("nan")):
        with pytest.raises(ValidationError):
            ResourcesSpec.model_validate({"gpu": wrong})


def test_a_stored_study_keeps_auto(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, resources={"gpu": "auto"})
    assert StudySpec.model_validate(spec.model_dump(mode="json")) == spec


def test_the_schema_and_the_preview_know_auto(tmp_path: Path) -> None:
    field = file_schema()["$defs"]["ResourcesSpec"]["properties"]["gpu"]
    assert {"const": "auto", "type": "string"} in field["anyOf"]
    found = preview(make_spec(tmp_path, resources={"gpu": "auto"}), 3, load=False)
    assert "measured when the run begins" in str(found["trials a device"])


@pytest.mark.parametrize("count", range(1, 9))
def test_so_many_shares_are_never_more_than_a_device_and_no_fewer_fit(count: int) -> None:
    assert round(share_of(count) * 10_000) * count <= 10_000, "as Ray counts"
    assert num_slots([Node(cpus=4, gpus=1)], share_of(count)) == count
    assert num_slots([Node(cpus=4, gpus=0)], share_of(count)) == count


def test_it_is_measured_with_enqueued_configs_and_both_ends_of_every_range(tmp_path: Path) -> None:
    space = {
        "size": {"type": "float", "low": 1.0, "high": 8.0},
        "y": {"type": "int", "low": 1, "high": 4},
    }
    spec = make_spec(
        tmp_path,
        space=space,
        enqueue=[{"size": 2.5, "y": 3}],
        constraints=["size * y <= 16"],
        resources={"gpu": "auto"},
    )
    found = samples(spec)
    assert found == samples(spec), "seeded"
    assert found[0] == {"max_steps": 9, "size": 2.5, "y": 3}
    sizes = [config["size"] for config in found]
    assert {min(sizes), max(sizes)} == {1.0, 8.0}
    assert all(config["size"] * config["y"] <= 16 for config in found)
    assert 8 < len(found) == len({str(config) for config in found})


def test_trials_that_cannot_share_are_one_a_device_and_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        "study: s\ntrainer: tests.fake_trainer:FakeTrainer\nresources: {gpu: auto}\n"
        "space: {alone: [true, false]}\n"
    )
    spec = read_spec_file(path).spec
    assert "wants its base for itself" in str(sharing_problem(spec, samples(spec)))
    free = make_spec(tmp_path, resources={"gpu": "auto"})
    assert sharing_problem(free, samples(free)) is None


def test_copies_of_the_base_model_take_the_place_of_trials() -> None:
    one_host = Capacity(12, base_gib=3.0, trial_gib=2.0, total_gib=27.0)
    assert [beside_copies(one_host, more).num_trials for more in (0, 1, 3, 9)] == [12, 10, 7, 1]
    assert beside_copies(Capacity(1), 3) == Capacity(1), "nothing is known of its memory"


def test_the_user_reads_what_was_measured() -> None:
    measured = Capacity(5, base_gib=12.9, trial_gib=1.91, total_gib=24.0)
    assert described(measured, 5, has_gpus=True) == (
        "gpu: auto: 5 trials share a GPU (one takes 1.91 GiB beside a base model of 12.9 GiB; 24 GiB "
        "in all)"
    )
    assert "40 would fit" in described(Capacity(40, 1.0, 0.1, 24.0), 8, has_gpus=True)
    unknown = described(Capacity(1), 1, has_gpus=False)
    assert unknown.startswith("gpu: auto: one trial on a machine (what a trial takes could not")
