"""A user's file: what is understood, and how everything wrong with it is said at once."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from hpo.config_file import read_config_file
from hpo.edits import check_edit
from hpo.errors import SpecError, StudyError
from hpo.json_schema import file_schema
from hpo.spec_file import read_spec_file
from hpo.storage.database import shown

GOOD = """\
study: fake
trainer: tests.fake_trainer:FakeTrainer
fixed:
  max_steps: 9
space:
  x: {type: float, low: -1.0, high: 1.0}
"""


def read(folder: Path, text: str) -> object:
    path = folder / "study.yaml"
    path.write_text(text)
    return read_spec_file(path)


def errors(folder: Path, text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        read(folder, text)
    return str(caught.value).splitlines()


def test_paths_start_at_the_file_that_names_them(tmp_path: Path) -> None:
    text = GOOD.replace("max_steps: 9", "journal: ./j.jsonl") + "output_dir: out\n"
    found = read(tmp_path, text)
    assert found.spec.fixed["journal"] == str(tmp_path / "j.jsonl")
    assert found.spec.output_dir == str(tmp_path / "out")
    assert found.storage == f"sqlite:///{tmp_path / 'hpo.db'}"


def test_a_stored_spec_holds_no_storage_and_survives_json(tmp_path: Path) -> None:
    text = GOOD + "storage: postgresql://me:secret@host/db\n"
    found = read(tmp_path, text)
    stored = json.dumps(found.spec.model_dump(mode="json"))
    assert "secret" not in stored
    assert type(found.spec).model_validate(json.loads(stored)) == found.spec
    assert found.storage == "postgresql+psycopg://me:secret@host/db"


def test_a_password_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_PASSWORD", "s3cret")
    found = read(tmp_path, GOOD + "storage: postgresql://me:${DB_PASSWORD}@host/db\n")
    assert found.storage == "postgresql+psycopg://me:s3cret@host/db"


@pytest.mark.parametrize("password", ["p@ss/w:rd", "a@b", "x y"])
def test_a_password_may_hold_any_character_and_is_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    monkeypatch.setenv("DB_PASSWORD", password)
    found = read(tmp_path, GOOD + "storage: postgresql://me:${DB_PASSWORD}@host/db\n")
    assert make_url(found.storage).password == password
    assert make_url(found.storage).host == "host"
    assert password not in shown(found.storage)
    assert "secret" not in shown("postgresql+psycopg://h/d?user=u&password=secret")


def test_an_unset_variable_is_said(tmp_path: Path) -> None:
    found = errors(tmp_path, GOOD + "storage: postgresql://me:${NO_SUCH_THING}@host/db\n")
    assert "not set in the environment" in found[0]


def test_everything_wrong_is_said_at_once_with_line_and_column(tmp_path: Path) -> None:
    text = """\
study: bad name!
trainer: tests.fake_trainer:FakeTrainer
directon: minimize
fixed:
  max_stepz: 9
  x: 99
space:
  y: {type: int, low: 5, high: 1}
  kinds: {type: categorical, choices: [a]}
sampler: {type: tpee}
pruner: {type: asha, reduction_factr: 3}
resources: {gpu: -1}
budget: {trials: 0}
"""
    found = errors(tmp_path, text)
    places = {
        match.group(1): line for line in found if (match := re.match(r".*?yaml:(\d+:\d+)", line))
    }
    assert "1:8" in places
    assert "Did you mean 'direction'" in places["3:1"]
    assert "Did you mean 'max_steps'" in places["5:3"]
    assert "99" in places["6:6"]
    assert any(line.startswith(f"{tmp_path / 'study.yaml'}:8:") for line in found)
    assert "Did you mean 'kind'" in places["9:3"]
    assert any("unknown sampler 'tpee'" in line and "'tpe'" in line for line in found)
    assert any("Did you mean 'reduction_factor'" in line for line in found)
    assert any("gpu" in line and "-1" in line for line in found)
    assert any("trials" in line and "0" in line for line in found)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("space:\n  base: [a, b]\n", "must be the same for all trials"),
        ("space:\n  max_steps: {type: int, low: 1, high: 9}\n", "may not be searched together"),
        ("space:\n  ex: {type: float, low: 0, high: 1}\n", "use the name 'x'"),
        ("space:\n  x: {type: float, low: 0, high: 99}\n", "less than or equal to 10"),
        ("space: {}\n", "nothing to search"),
        (
            "space:\n  y: {type: int, low: 1, high: 2}\nsampler: {type: tpe, n_startups: 3}\n",
            "n_startup_trials",
        ),
        ("space:\n  x: {type: float, low: 0, high: 1}\nsampler: {type: grid}\n", "grid:"),
        ("space:\n  y: [1, 2]\nconstraints: ['y > 5']\n", "constraint"),
        ("space:\n  y: [1, 2]\nconstraints: ['1 > 0']\n", "constraint"),
        ("space:\n  y: [1, 2]\nstorage: mysql://h/d\n", "not supported"),
        ("space:\n  y: [1, 2]\nstorage: 'sqlite:///:memory:'\n", "dies with the process"),
        ("space:\n  y: [1, 2]\noutput_dir: s3://me:secret@bucket\n", "into the environment"),
        ("space:\n  y: [1, 2]\noutput_dir: nope://bucket/a\n", "nothing here knows 'nope'"),
        (
            "space:\n  y: [1, 2]\npruner: {type: optuna.pruners.HyperbandPruner}\n",
            "writes into the study",
        ),
        ("space:\n  y: [1, 2]\ntrainer: lor\n", "Did you mean 'lora'"),
        ("space:\n  y: [1, 2]\ntrainer: no.such:Thing\n", "cannot import"),
        ("space:\n  y: [1, 2]\nspace:\n  y: [3]\n", "not valid YAML"),
        ("space:\n  y: !!python/object/apply:os.system ['echo']\n", "tag"),
        ("space: [1\n", "not valid YAML"),
    ],
)
def test_a_mistake_is_named_with_what_to_do(tmp_path: Path, change: str, expected: str) -> None:
    head = "study: fake\ntrainer: tests.fake_trainer:FakeTrainer\n"
    if "trainer:" in change:
        head = "study: fake\n"
    found = "\n".join(errors(tmp_path, head + change))
    assert expected in found


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("metric: eval_los\n", "Did you mean 'eval_loss'"),
        ("metric: eval_los\n", "Reported: eval_loss, score."),
        ("metric: exact_match\n", "Add it by 'extra_metrics: [exact_match]'"),
        ("report_to: swanlab\n", "Known: tensorboard, wandb, mlflow, comet_ml, trackio, all, none"),
        ("report_to: [wandb, tensorbord]\n", "Did you mean 'tensorboard'"),
        ("run_name: '{study}'\n", "would name all trials alike"),
        ("run_name: '{number}-{xx}'\n", "unknown field {xx}. Did you mean 'x'"),
        ("run_name: '{number.real}'\n", "unknown field {number.real}"),
        ("run_name: '{number'\n", "is no format of a name"),
        ("run_name: '{number}-{base:.2f}'\n", "is no format of a name"),
    ],
)
def test_a_mistake_about_what_is_seen_of_a_run_is_named(
    tmp_path: Path, change: str, expected: str
) -> None:
    text = GOOD.replace("max_steps: 9", "max_steps: 9\n  base: b")
    (found,) = errors(tmp_path, text + change)
    assert expected in found
    assert f":{len(text.splitlines()) + 1}:" in found


def test_what_cannot_be_pruned_or_compared_is_said_before_anything_runs(tmp_path: Path) -> None:
    text = GOOD.replace("max_steps: 9", "max_steps: 9\n  do_eval: false")
    found = "\n".join(errors(tmp_path, text + "pruner: {type: median}\n"))
    assert "median cannot prune these trials: do_eval: false leaves nothing to compare" in found
    assert "'eval_loss' is not reported with these options." in found
    assert "Reported: epoch, train_loss" in found
    assert read(tmp_path, text + "pruner: {type: none}\nmetric: train_loss\n")


def test_a_metric_that_only_some_configs_report_is_refused(tmp_path: Path) -> None:
    text = GOOD + "  do_eval: [true, false]\npruner: {type: none}\n"
    assert "'eval_loss' is not reported" in errors(tmp_path, text)[0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("wandb", ["wandb"]),
        ("[wandb, tensorboard]", ["tensorboard", "wandb"]),
        ("none", []),
        ("null", []),
        ("all", ["all"]),
    ],
)
def test_trackers_are_named_as_transformers_does(
    tmp_path: Path, given: str, expected: list[str]
) -> None:
    assert read(tmp_path, GOOD + f"report_to: {given}\n").spec.report_to == expected


def test_what_follows_from_the_metric_is_added_and_never_overrides(tmp_path: Path) -> None:
    text = GOOD + "metric: score\ndirection: maximize\n"
    fixed = read(tmp_path, text).spec.fixed
    assert (fixed["metric_for_best_model"], fixed["greater_is_better"]) == ("score", True)
    own = text.replace("max_steps: 9", "max_steps: 9\n  greater_is_better: false")
    assert read(tmp_path, own).spec.fixed["greater_is_better"] is False
    searched = text.replace("space:\n", "space:\n  greater_is_better: [true, false]\n")
    assert "greater_is_better" not in read(tmp_path, searched).spec.fixed


def test_a_study_of_old_goes_on_with_its_file(tmp_path: Path) -> None:
    text = GOOD + "metric: score\ndirection: maximize\n"
    edited = read(tmp_path, text + "report_to: tensorboard\n").spec
    stored = edited.model_dump(mode="json")
    for name in ("report_to", "run_name"):
        del stored[name]
    for name in ("metric_for_best_model", "greater_is_better"):
        del stored["fixed"][name]
    old = type(edited).model_validate(stored)
    assert old.report_to == []
    check_edit(old, edited)
    with pytest.raises(StudyError, match="max_steps"):
        check_edit(old, edited.model_copy(update={"fixed": {**edited.fixed, "max_steps": 8}}))


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "\x00", "a: &a [*a]\n", "- x", "? [1]\n: 2\n", "a: 1\na: 2"]
)
def test_what_is_no_study_is_one_message(tmp_path: Path, text: str) -> None:
    assert errors(tmp_path, text)


def test_anchors_that_grow_without_bound_are_refused(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)
    )
    assert "values" in errors(tmp_path, bomb)[0]


def test_a_missing_file_and_a_folder_are_one_message(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file"):
        read_spec_file(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match="is a folder"):
        read_spec_file(tmp_path)


def test_hyperband_learns_the_number_of_validations_from_the_options(tmp_path: Path) -> None:
    found = read(tmp_path, GOOD + "pruner: {type: hyperband}\n")
    assert found.spec.pruner.options["max_resource"] == 9


LLAMA_FACTORY = """\
### model
model_name_or_path: ./model
trust_remote_code: true
### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
### dataset
dataset: functions
dataset_dir: ./data
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
### output
output_dir: saves/llama3-8b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
### eval
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
report_to: none
"""


def test_a_llama_factory_file_is_the_base_of_a_study(tmp_path: Path) -> None:
    (tmp_path / "lf" / "data").mkdir(parents=True)
    (tmp_path / "lf" / "sft.yaml").write_text(LLAMA_FACTORY)
    info = {"functions": {"file_name": "functions.json"}}
    (tmp_path / "lf" / "data" / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "lf" / "data" / "functions.json").write_text("[]")
    text = (
        "study: s\nbase: lf/sft.yaml\nspace:\n  learning_rate: {type: float, low: 1e-5, high: 1}\n"
    )
    fixed = read(tmp_path, text + "fixed: {max_steps: 60, eval_steps: 0.2}\n").spec.fixed
    assert fixed["model_name_or_path"] == str(tmp_path / "lf" / "model")
    assert fixed["train_file"] == str(tmp_path / "lf" / "data" / "functions.json")
    assert (fixed["lora_r"], fixed["max_length"], fixed["warmup_steps"]) == (8, 2048, 0.1)
    assert fixed["eval_steps"] == 0.2, "the study's own value wins over the base's"
    assert "learning_rate" not in fixed, "what is searched is not fixed"
    assert "output_dir" not in fixed
    base = tmp_path / "lf" / "sft.yaml"
    base.write_text(LLAMA_FACTORY.replace("report_to: none", "report_to: wandb"))
    text += "fixed: {max_steps: 60, eval_steps: 0.2}\n"
    assert read(tmp_path, text).spec.report_to == ["wandb"]
    assert read(tmp_path, text + "report_to: mlflow\n").spec.report_to == ["mlflow"]
    base.write_text(LLAMA_FACTORY.replace("report_to: none", "report_to: swanlab"))
    assert "sft.yaml: report_to: unknown tracker 'swanlab'" in errors(tmp_path, text)[0]


def test_a_llama_factory_file_is_one_config_for_train(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text('{"functions": {"file_name": "f.json"}}')
    (tmp_path / "data" / "f.json").write_text("[]")
    (tmp_path / "sft.yaml").write_text(LLAMA_FACTORY)
    found = read_config_file(tmp_path / "sft.yaml")
    assert found.trainer == "lora"
    assert found.output_dir == tmp_path / "saves/llama3-8b/lora/sft"
    assert found.config["lora_r"] == 8


def test_its_data_is_looked_up_beside_the_file_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text('{"functions": {"file_name": "f.json"}}')
    (tmp_path / "sft.yaml").write_text(LLAMA_FACTORY.replace("dataset_dir: ./data\n", ""))
    (tmp_path / "elsewhere").mkdir()
    found = set()
    for place, name in ((tmp_path / "elsewhere", "../sft.yaml"), (tmp_path, "sft.yaml")):
        monkeypatch.chdir(place)
        found.add(read_config_file(Path(name)).config["train_file"])
    assert found == {str(tmp_path / "data" / "f.json")}


def test_data_found_from_where_one_stands_is_named_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text('{"functions": {"file_name": "f.json"}}')
    (tmp_path / "examples").mkdir()
    text = LLAMA_FACTORY.replace("dataset_dir: ./data\n", "")
    (tmp_path / "examples" / "sft.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    found = read_config_file(Path("examples/sft.yaml"))
    assert found.config["train_file"] == str(tmp_path / "data" / "f.json")


def test_the_schema_knows_every_option_and_the_ready_made_spaces_fit_it() -> None:
    import jsonschema
    from ruamel.yaml import YAML

    schema = file_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    spaces = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))
    assert spaces
    for path in spaces:
        jsonschema.validate(YAML(typ="safe").load(path.read_text()), schema)
    assert "learning_rate" in schema["properties"]["space"]["properties"]
    assert "train_file" not in schema["properties"]["space"]["properties"]


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text(alphabet="abx:{}[]-#&*!|>'\"?,. \n0123456789~%@`", max_size=200))
def test_no_text_makes_anything_but_a_message(tmp_path: Path, text: str) -> None:
    for whole in (text, GOOD + text):
        with contextlib.suppress(SpecError):
            read(tmp_path, whole)


def test_the_example_of_the_readme_is_a_valid_file(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    example = readme.split("```yaml\n", 1)[1].split("```", 1)[0]
    (tmp_path / "my_sft.yaml").write_text("lora_dropout: 0.1\nlogging_steps: 10\n")
    spec = read(tmp_path, example).spec
    assert spec.fixed["model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert spec.fixed["train_file"] == str(tmp_path / "data" / "train.jsonl")
    assert spec.fixed["lora_dropout"] == 0.1
    assert spec.search_space.resolve(spec.search_space.enqueued[0])["lora_alpha"] == 32


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"finetuning_type": "full"}, "trains the base model's own weights"),
        ({"init_lora_weights": "pissa"}, "changes the base model's weights"),
    ],
)
def test_trials_that_need_their_base_for_themselves_need_a_whole_gpu(
    tmp_path: Path, options: dict[str, str], said: str
) -> None:
    fixed = {"model_name_or_path": "m", "train_file": "t.jsonl", "val_size": 0.1, **options}
    text = (
        f"study: s\nfixed: {json.dumps(fixed)}\n"
        "space: {learning_rate: {type: float, low: 1.0e-5, high: 1.0e-3}}\n"
    )
    (found,) = errors(tmp_path, text + "resources: {gpu: 0.5}\n")
    assert said in found
    assert "resources: {gpu: 1}" in found
    path = tmp_path / "good.yaml"
    path.write_text(text)
    assert read_spec_file(path).spec.resources.gpu == 1
