"""Files that users write: studies, configs, other tools' bases and lists of datasets."""

from __future__ import annotations

import json
import random
from pathlib import Path

import optuna
from ruamel.yaml import YAML

from hpo.config_file import read_config_file
from hpo.errors import HpoError
from hpo.spec import StudySpec
from hpo.spec_file import read_spec_file
from tests.fuzz.mutation import Mutator, as_yaml
from tests.fuzz.surface import Attempt, Seeds
from trainers.lora.options import LoraOptions

optuna.logging.set_verbosity(optuna.logging.WARNING)

STUDIES = {
    "small.yaml": """\
study: small
trainer: tests.fake_trainer:FakeTrainer
fixed: {max_steps: 9}
space:
  x: {type: float, low: -1.0, high: 1.0}
  y: {type: int, low: 1, high: 4, when: "x > 0"}
  kind: [a, b]
constraints: ["x < 0.9"]
enqueue: [{x: 0.5, y: 2, kind: a}]
""",
    "whole.yaml": """\
study: whole
metric: score
direction: maximize
storage: sqlite:///x.db
output_dir: runs
trainer: tests.fake_trainer:FakeTrainer
fixed: &f {max_steps: 9, eval_steps: 3}
space:
  ex_: {value: "2 * y"}
  x: {type: float, low: 1.0e-3, high: 1.0, log: true, grid: 4}
  y: {type: int, low: 1, high: 9, step: 2}
  kind: {type: categorical, choices: {one: [1, 2], two: {a: 1}}}
sampler: {type: cmaes, seed: 3}
pruner: {type: hyperband, min_resource: 1, reduction_factor: 3}
resources: {gpu: 0.25}
budget: {trials: 40, hours: 1.5}
max_concurrent: 2
keep_checkpoints: 2
report_to: [tensorboard]
run_name: "{study}-{number}-{x}"
lease_s: 30
stall_timeout: 100
max_failures: 1
disk_quota_gib: 2.5
""",
    "grid.yaml": """\
study: grid
trainer: tests.fake_trainer:FakeTrainer
space:
  x: {type: float, low: 0, high: 1, step: 0.25}
  y: {type: int, low: 1, high: 4, log: true}
constraints:
  - "y * x <= 3 and not (y == 2)"
sampler: {type: grid}
pruner: {type: patient, wrapped_pruner: {type: median}, patience: 1}
""",
    "lora.yaml": """\
study: lora
trainer: lora
fixed:
  model_name_or_path: some/model
  train_file: data.jsonl
  val_size: 0.1
  max_steps: 20
  eval_steps: 0.25
space:
  learning_rate: {type: float, low: 1.0e-4, high: 2.0e-3, log: true}
  lora_r: {type: categorical, choices: [8, 16]}
  lora_alpha: {value: "2 * lora_r"}
""",
}

CONFIGS = {
    "ours.yaml": """\
trainer: lora
output_dir: out
metric: eval_loss
direction: minimize
model_name_or_path: some/model
train_file: [data.jsonl, more.jsonl]
validation_file: {one: a.jsonl, two: [b.jsonl, c.jsonl]}
chat_template: chatml
learning_rate: 1.0e-4
lora_r: 16
target_modules: [q_proj, v_proj]
max_steps: 20
eval_steps: 0.25
eval_metrics: [exact_match]
early_stopping_patience: 2
report_to: none
run_name: "{lora_r}"
""",
    "llama_factory.yaml": """\
### model
model_name_or_path: some/model
trust_remote_code: false
### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
### dataset
dataset: first,second
dataset_dir: data
template: llama3
cutoff_len: 128
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
### output
output_dir: saves/lora
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
""",
    "axolotl.yaml": """\
base_model: some/model
load_in_4bit: true
datasets:
  - path: data.jsonl
    type: alpaca
  - path: json
    data_files: [more.jsonl]
    ds_type: json
    type:
      field_instruction: q
      field_output: a
  - path: chat.jsonl
    type: chat_template
    field_messages: conversations
    message_property_mappings: {role: from, content: value}
    roles: {assistant: [gpt], user: [human]}
val_set_size: 0.05
adapter: qlora
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
sequence_len: 256
sample_packing: false
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_torch
lr_scheduler: cosine
learning_rate: 0.0002
train_on_inputs: false
bf16: auto
warmup_steps: 10
evals_per_epoch: 4
wandb_project:
special_tokens:
""",
}

DATASET_INFO: dict[str, object] = {
    "first": {
        "file_name": "data.jsonl",
        "columns": {"prompt": "instruction", "response": "output"},
    },
    "second": {
        "file_name": "chat.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations"},
        "tags": {
            "role_tag": "from",
            "content_tag": "value",
            "user_tag": "human",
            "assistant_tag": "gpt",
        },
        "num_samples": 10,
    },
    "third": {"hf_hub_url": "some/data", "subset": "x", "split": "train", "formatting": "openai"},
    "fourth": {"script_url": "code.py"},
}

STUDY_KEYS = (
    *StudySpec.model_fields,
    "storage",
    "base",
    "type",
    "low",
    "high",
    "log",
    "step",
    "grid",
)
SPACE_KEYS = ("choices", "value", "when", "seed", "gpu", "trials", "hours", "x", "y", "kind", "ex")
OPTION_KEYS = (*LoraOptions.model_fields, *LoraOptions.aliases, *LoraOptions.ignored)


def _values(texts: dict[str, str]) -> list[object]:
    return [YAML(typ="safe").load(text) for text in texts.values()]


def _seeds(texts: dict[str, str], names: tuple[str, ...]) -> Seeds:
    return Seeds({name: text.encode() for name, text in texts.items()}, _values(texts), names)


def store_and_read_again(spec: StudySpec) -> None:
    """Check that what a file was accepted for can be stored, read again, and drawn from."""
    stored = json.dumps(spec.model_dump(mode="json"), allow_nan=False).encode()
    assert StudySpec.model_validate(json.loads(stored)) == spec, "a resume has another spec"
    space = spec.search_space
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    values = space.suggest(study.ask())
    json.dumps({**spec.fixed, **values}, allow_nan=False)


class _YamlFiles:
    """Files that are drawn as YAML; a subclass says what they are tried as."""

    seeds: Seeds

    def attempt(self, folder: Path, rng: random.Random) -> Attempt:
        name, content = self.seeds.draw(rng, as_yaml)
        return self.of(folder, name, content)

    def of(self, folder: Path, name: str, content: bytes) -> Attempt:
        raise NotImplementedError


class StudyFiles(_YamlFiles):
    """`hpo run FILE`, `hpo validate FILE`: the whole of a study's file."""

    name = "study"
    weight = 8

    def __init__(self) -> None:
        self.seeds = _seeds(STUDIES, (*STUDY_KEYS, *SPACE_KEYS))

    def of(self, folder: Path, name: str, content: bytes) -> Attempt:
        path = folder / "study.yaml"
        path.write_bytes(content)
        return Attempt(lambda: store_and_read_again(read_spec_file(path).spec), content, name)


class ConfigFiles(_YamlFiles):
    """`hpo train FILE`: options of ours, of LLaMA-Factory and of Axolotl."""

    name = "config"
    weight = 30

    def __init__(self) -> None:
        self.seeds = _seeds(CONFIGS, OPTION_KEYS)

    def of(self, folder: Path, name: str, content: bytes) -> Attempt:
        path = folder / "config.yaml"
        path.write_bytes(content)
        _write_info(folder, json.dumps(DATASET_INFO).encode())
        return Attempt(lambda: read_config_file(path), content, name)


class BaseFiles(_YamlFiles):
    """`base: FILE` of a study: another tool's training file."""

    name = "base"
    weight = 3

    def __init__(self) -> None:
        self.seeds = _seeds(CONFIGS, OPTION_KEYS)

    def of(self, folder: Path, name: str, content: bytes) -> Attempt:
        (folder / "base.yaml").write_bytes(content)
        _write_info(folder, json.dumps(DATASET_INFO).encode())
        path = folder / "study.yaml"
        path.write_text(
            "study: s\nbase: base.yaml\nfixed: {max_steps: 4, eval_steps: 0.5}\n"
            "space: {learning_rate: {type: float, low: 0.001, high: 0.01}}\n"
        )
        return Attempt(lambda: store_and_read_again(read_spec_file(path).spec), content, name)


class DatasetInfos:
    """LLaMA-Factory's ``dataset_info.json`` beside a good training file."""

    name = "dataset_info"
    weight = 10

    def __init__(self) -> None:
        keys = ("columns", "tags", "formatting", "ranking", "file_name", "hf_hub_url", "prompt")
        text = json.dumps(DATASET_INFO, indent=1).encode()
        self.seeds = Seeds({"info.json": text}, [DATASET_INFO], keys)

    def attempt(self, folder: Path, rng: random.Random) -> Attempt:
        name, content = self.seeds.draw(rng, lambda value: _json(value))
        return self.of(folder, name, content, rng)

    def of(
        self, folder: Path, name: str, content: bytes, rng: random.Random | None = None
    ) -> Attempt:
        _write_info(folder, content)
        named = (rng or random.Random(0)).choice(
            ["first", "second", "third", "fourth", "first,second", "second,third"]
        )
        path = folder / "config.yaml"
        path.write_text(
            f"model_name_or_path: some/model\ndataset: {named}\nval_size: 0.1\nmax_steps: 3\n"
        )
        return Attempt(lambda: read_config_file(path), content, f"{name} {named}", (HpoError,))


class Expressions:
    """Expressions by themselves, in a study's file where they stand."""

    name = "expression"
    weight = 7

    def attempt(self, folder: Path, rng: random.Random) -> Attempt:
        text = grow(rng, 0) if rng.random() < 0.7 else str(Mutator(rng).value())
        return self.of(folder, "expression", text.encode("utf-8", "surrogatepass"), rng)

    def of(
        self, folder: Path, name: str, content: bytes, rng: random.Random | None = None
    ) -> Attempt:
        text = content.decode("utf-8", "surrogatepass")
        y: dict[str, object] = {"type": "int", "low": 1, "high": 4}
        document: dict[str, object] = {
            "study": "s",
            "trainer": "tests.fake_trainer:FakeTrainer",
            "fixed": {"max_steps": 3, "base": "b", "memory": 10.0},
            "space": {"x": {"type": "float", "low": -2.0, "high": 2.0}, "y": y, "kind": ["a", "b"]},
        }
        place = (rng or random.Random(0)).randrange(3)
        if place == 0:
            document["constraints"] = [text]
        elif place == 1:
            y["when"] = text
        else:
            document["space"]["size"] = {"value": text}  # type: ignore[index]
        path = folder / "study.yaml"
        path.write_bytes(as_yaml(document))
        return Attempt(lambda: store_and_read_again(read_spec_file(path).spec), content, name)


_LEAVES = (
    "x",
    "y",
    "kind",
    "max_steps",
    "base",
    "1",
    "0",
    "2.5",
    "1e9",
    "10**9",
    "'a'",
    "''",
    "True",
)
_LEAVES += (
    "null",
    "None",
    "()",
    "[]",
    "[1, 'a']",
    "nothing",
    "x",
    "y",
    "9" * 30,
    "-0.0",
    "'a' 'b'",
)
_OPERATORS = (
    "+",
    "-",
    "*",
    "/",
    "//",
    "%",
    "**",
    "==",
    "!=",
    "<",
    ">=",
    "and",
    "or",
    "in",
    "not in",
)
_OPERATORS += ("is", "@", "<<", "|", ",", ".")
_CALLS = (
    "min",
    "max",
    "abs",
    "round",
    "int",
    "float",
    "sqrt",
    "log2",
    "floor",
    "ceil",
    "pow",
    "len",
)


def grow(rng: random.Random, depth: int) -> str:
    """Return an expression by the language's grammar, and a little beyond it."""
    if depth > 6 or rng.random() < 0.25:
        return rng.choice(_LEAVES)
    kind = rng.randrange(8)
    if kind < 4:
        return f"{grow(rng, depth + 1)} {rng.choice(_OPERATORS)} {grow(rng, depth + 1)}"
    if kind == 4:
        inner = ", ".join(grow(rng, depth + 1) for _ in range(rng.randrange(4)))
        return f"{rng.choice(_CALLS)}({inner})"
    if kind == 5:
        return f"({grow(rng, depth + 1)})"
    if kind == 6:
        return f"{rng.choice(('-', 'not ', '+', '~'))}{grow(rng, depth + 1)}"
    parts = (grow(rng, depth + 1) for _ in range(3))
    return "{} if {} else {}".format(*parts)


def _json(value: object) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _write_info(folder: Path, content: bytes) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "dataset_info.json").write_bytes(content)
