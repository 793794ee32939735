"""LLaMA-Factory's usual training files, with nothing changed but paths: trained, and searched from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from hpo.spec_file import read_spec_file
from hpo.studies import create_study
from hpo.study import Study
from tests.integration.command import hpo
from tests.one_worker import Worker
from tests.tiny_model import CHAT_TEMPLATE, save_model, save_tokenizer

FILES = Path(__file__).parents[1] / "llama_factory"
SHAPES = ["lora_sft", "qlora_sft", "full_sft"]
CUTOFF_LEN = 2048


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the files and their data, beside a tiny model."""
    root = tmp_path_factory.mktemp("factory")
    shutil.copytree(FILES, root / "files")
    vocab_size = save_tokenizer(root / "model", CHAT_TEMPLATE)
    save_model(root / "model", vocab_size, max_position_embeddings=CUTOFF_LEN)
    return root / "files"


def steps_in(log: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in lines if line["kind"] == "step"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "num_steps", "metric"),
    [("lora_sft", 9, "train_loss"), ("qlora_sft", 9, "eval_loss"), ("full_sft", 10, "eval_loss")],
)
def test_the_file_trains_as_it_is(folder: Path, shape: str, num_steps: int, metric: str) -> None:
    result = hpo(folder, "train", f"{shape}.yaml", "--json", env={"HPO_CACHE": str(folder)})
    assert result.code == 0, result.err
    found = result.json()
    assert metric in found["metrics"]
    weights = {path.name for path in Path(found["adapter"]).iterdir()}
    whole = shape == "full_sft"
    assert ("model.safetensors" if whole else "adapter_model.safetensors") in weights
    output = folder / YAML(typ="safe").load((folder / f"{shape}.yaml").read_text())["output_dir"]
    (log,) = output.rglob("metrics.jsonl")
    assert len(steps_in(log)) == num_steps


@pytest.mark.parametrize("shape", SHAPES)
def test_the_file_is_the_base_of_a_study(folder: Path, shape: str, tmp_path: Path) -> None:
    study = {
        "study": shape.replace("_", "-"),
        "base": str(folder / f"{shape}.yaml"),
        "output_dir": str(tmp_path / "runs"),
        "fixed": {"max_steps": 3, "eval_steps": 1, "dtype": "float32"},
        "space": {"learning_rate": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True}},
        "pruner": {"type": "asha"},
    }
    if shape == "lora_sft":  # the only one without validation data of its own
        study["fixed"]["val_size"] = 0.2
    path = tmp_path / "study.yaml"
    with path.open("w") as file:
        YAML().dump(study, file)
    checked = read_spec_file(path)
    assert checked.spec.fixed["finetuning_type"] == shape.split("_")[0].replace("qlora", "lora")
    record = create_study(checked.spec, checked.storage)
    Worker(Study(record, num_trials=3)).work()
    trials = record.trials()
    assert {trial.state for trial in trials} <= {"COMPLETE", "PRUNED"}
    assert any(trial.state == "COMPLETE" for trial in trials)
    assert len({trial.params["learning_rate"] for trial in trials}) == 3
    assert (tmp_path / "runs" / study["study"] / "best" / "adapter").is_dir()


def test_a_study_on_a_file_without_validation_data_says_what_to_add(
    folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        f"study: s\nbase: {folder / 'lora_sft.yaml'}\n"
        "space: {learning_rate: {type: float, low: 1.0e-5, high: 1.0e-3}}\n"
    )
    result = hpo(tmp_path, "run", "study.yaml", "--trials", "2")
    assert result.code == 2
    assert "eval_loss" in result.err
    assert "val_size" in result.err
    assert "Traceback" not in result.err
