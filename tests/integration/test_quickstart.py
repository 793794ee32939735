"""The quickstart's own file on the real model, with few steps: killed, resumed, handed over."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from hpo.checkpoints import CheckpointStore
from tests.integration.command import ROOT, begin, hpo, kill_group, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

QUICKSTART = ROOT / "search_spaces" / "quickstart.yaml"
MODEL = ROOT / "build" / "model"
NUM_TRIALS = 3


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the quickstart's file, made short; it lies where the original does."""
    assert MODEL.exists(), "no model: type `make setup`"
    folder = tmp_path_factory.mktemp("quickstart")
    document = YAML(typ="safe").load(QUICKSTART.read_text())
    fixed = document["fixed"]
    for name in ("model_name_or_path", "train_file", "validation_file"):
        fixed[name] = str((QUICKSTART.parent / fixed[name]).resolve())
    fixed |= {"max_steps": 4, "eval_steps": 0.25, "eval_max_samples": 4, "max_length": 256}
    document["space"]["per_device_train_batch_size"] = {"type": "int", "low": 1, "high": 2}
    document["enqueue"][0]["per_device_train_batch_size"] = 2
    document |= {"storage": "sqlite:///hpo.db", "output_dir": "runs"}
    with (folder / "quickstart.yaml").open("w") as file:
        YAML().dump(document, file)
    return folder


def trials_of(folder: Path) -> list[dict[str, object]]:
    return hpo(folder, "status", "quickstart", "--json").json()["trials"]


def test_validate_tells_what_will_run(short: Path) -> None:
    result = hpo(short, "validate", "quickstart.yaml", "--trials", "8", "--json")
    assert result.code == 0, result.err
    found = result.json()
    assert found["steps a trial"] == "4"
    assert found["validations a trial"] == "4"
    assert found["validation samples"] == 4
    assert "hours of training" in found["at most"]


def test_killed_and_resumed_on_the_real_model_nothing_is_lost(short: Path) -> None:
    process = begin(short, "run", "quickstart.yaml", "--trials", str(NUM_TRIALS))
    store = CheckpointStore(short / "runs" / "quickstart")
    log = store.trial_folder(0) / "metrics.jsonl"
    wait_until(log.exists, "the first validation is stored", timeout=240)
    kill_group(process)
    before = trials_of(short)
    unfinished = [t["number"] for t in before if t["state"] == "RUNNING"]
    assert unfinished
    logs = {n: (store.trial_folder(n) / "metrics.jsonl") for n in unfinished}
    lines = {n: path.read_text() for n, path in logs.items() if path.exists()}
    result = hpo(short, "resume", "quickstart")
    assert result.code == 0, result.err
    after = trials_of(short)
    assert [t["number"] for t in after] == list(range(NUM_TRIALS))
    assert {t["state"] for t in after} <= {"COMPLETE", "PRUNED"}
    for trial in before:
        told = trial["validations"]
        assert after[trial["number"]]["validations"][: len(told)] == told
    for number, text in lines.items():
        # Every line has its seconds: a step trained again would have another one in its place.
        assert logs[number].read_text().startswith(text)


def test_the_best_adapter_loads_with_peft_and_trains_again_to_the_same_loss(short: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    best = hpo(short, "best", "quickstart", "--json").json()
    folder = Path(best["folder"])
    base = AutoModelForCausalLM.from_pretrained(MODEL.resolve())
    model = PeftModel.from_pretrained(base, folder / "adapter")
    assert model.peft_config["default"].r == best["config"]["lora_r"]
    again = hpo(short, "train", str(folder / "config.yaml"), "--json", "--output-dir", "again")
    assert again.code == 0, again.err
    assert again.json()["metrics"]["eval_loss"] == pytest.approx(best["value"], rel=1e-6)


def test_export_merges_into_weights_that_transformers_loads(short: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = hpo(short, "export", "quickstart", "--merge", "--out", "whole")
    assert result.code == 0, result.err
    AutoModelForCausalLM.from_pretrained(short / "whole" / "merged")
    AutoTokenizer.from_pretrained(short / "whole" / "merged")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_file": "torn.jsonl"}, "torn.jsonl:2"),
        ({"model_name_or_path": "./no-model"}, "no-model"),
    ],
)
def test_bad_data_or_model_is_one_message_before_anything_runs(
    short: Path, change: dict[str, str], message: str
) -> None:
    row = '{"instruction": "a", "input": "b", "output": "c"}\n'
    (short / "torn.jsonl").write_text(row + row[:20])
    document = YAML(typ="safe").load((short / "quickstart.yaml").read_text())
    document["fixed"] |= change
    document["study"] = "bad"
    with (short / "bad.yaml").open("w") as file:
        YAML().dump(document, file)
    result = hpo(short, "validate", "bad.yaml")
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
