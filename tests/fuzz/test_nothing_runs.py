"""No file and no row runs code: by name, beside what the fuzzer draws."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from hpo.cma_sampler import ALLOWED
from hpo.config_file import read_config_file
from hpo.document import read_document
from hpo.errors import SpecError, StudyError
from hpo.samplers import build_sampler
from hpo.spec import PrunerSpec, SamplerSpec
from hpo.spec_file import read_spec_file
from hpo.studies import open_study
from hpo.study import Study
from hpo.verdicts import build_judge
from tests.fuzz.data import ROWS, TEMPLATE_PAYLOADS
from tests.one_worker import Worker, make_spec, sqlite, start
from tests.tiny_model import CHAT_TEMPLATE, save_model, save_tokenizer
from trainers.lora.data.chat_template import choose_template
from trainers.lora.data.encoding import Encoder
from trainers.lora.data.samples import Conversation, Message
from trainers.lora.data.sources import train_sources
from trainers.lora.model.base_model import load_base_model, load_tokenizer
from trainers.lora.options import LoraOptions


class Bomb:
    """Its pickle makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "CANARY"


def test_the_bomb_goes_off_where_a_pickle_is_loaded(canary: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(canary)))
    assert canary.exists(), "else the tests below prove nothing"


@pytest.mark.parametrize(
    "text",
    [
        "study: !!python/object/apply:os.system ['touch {canary}']",
        "study: !!python/object/new:os.system ['touch {canary}']",
        "!!python/object/apply:os.system ['touch {canary}']",
        "study: !!python/name:os.system",
        "? !!python/object/apply:os.system ['touch {canary}']\n: 1",
    ],
)
def test_tags_of_yaml_run_nothing(text: str, canary: Path, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text.replace("{canary}", str(canary)))
    with pytest.raises(SpecError):
        read_document(path)
    assert not canary.exists()


def test_only_classes_of_samplers_and_pruners_are_called(canary: Path) -> None:
    sampler = SamplerSpec.model_validate({"type": "os:system", "command": f"touch {canary}"})
    with pytest.raises(SpecError, match=r"no optuna\.samplers.BaseSampler"):
        build_sampler(sampler, 0, 0, grouped=False)
    pruner = PrunerSpec.model_validate({"type": "os:system", "command": f"touch {canary}"})
    with pytest.raises(SpecError, match=r"no optuna\.pruners.BasePruner"):
        build_judge(pruner)
    assert not canary.exists()


def test_a_pickle_among_a_studys_rows_is_not_loaded(canary: Path, tmp_path: Path) -> None:
    spec = make_spec(
        tmp_path,
        sampler={"type": "cmaes", "seed": 0, "n_startup_trials": 1},
        pruner={"type": "none"},
        fixed={"max_steps": 1},
        space={n: {"type": "float", "low": 0.0, "high": 1.0} for n in ("x", "size")},
    )
    url = sqlite(tmp_path)
    Worker(Study(start(spec, url), 12)).work()
    bomb = json.dumps(pickle.dumps(Bomb(canary)).hex())
    with closing(sqlite3.connect(tmp_path / "hpo.db")) as database, database:
        changed = database.execute(
            "UPDATE trial_system_attributes SET value_json = ? WHERE key LIKE 'cma:%optimizer:0'",
            (bomb,),
        )
        assert changed.rowcount >= 1, "CMA-ES stores its state"
        rest = "key LIKE 'cma:%optimizer:%' AND key NOT LIKE '%:0'"
        database.execute(f"DELETE FROM trial_system_attributes WHERE {rest}")
    worker = Worker(Study(open_study("s", url), 14))
    with pytest.raises(StudyError, match=r"it would run posix\.system"):
        worker.work()
    assert not canary.exists()


@pytest.mark.parametrize("options", [{}, {"with_margin": True}, {"use_separable_cma": True}])
def test_the_state_of_cma_es_that_optuna_stores_is_read(options: dict[str, object]) -> None:
    def values(own: bool) -> list[dict[str, object]]:
        study = optuna.create_study()
        for number in range(14):
            spec = SamplerSpec.model_validate({"type": "cmaes", "seed": 1, **options})
            sampler = build_sampler(spec, number, 0, grouped=False)
            kind = optuna.samplers.CmaEsSampler
            if not own:
                sampler._restore_optimizer = kind._restore_optimizer.__get__(sampler)  # type: ignore[attr-defined]
            study.sampler = sampler
            trial = study.ask()
            x, y = trial.suggest_float("x", 0, 1), trial.suggest_int("y", 0, 9)
            study.tell(trial, x + y)
        return [trial.params for trial in study.trials]

    assert values(own=True) == values(own=False)
    assert len(ALLOWED) == 7


# Models


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    save_model(folder, save_tokenizer(folder, CHAT_TEMPLATE))
    return folder


def options_of(folder: Path, **more: object) -> LoraOptions:
    given: dict[str, object] = {
        "model_name_or_path": str(folder),
        "train_file": "x.jsonl",
        "dtype": "float32",
    }
    given |= {"eval_strategy": "no", "max_length": 64}
    return LoraOptions.model_validate({**given, **more})


def test_weights_that_are_a_pickle_are_not_loaded(model: Path, canary: Path) -> None:
    load_base_model(options_of(model), "cpu")
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(canary)))
    with pytest.raises(ValueError, match=r"\.bin files are pickles.*trust_remote_code: true"):
        load_base_model(options_of(model), "cpu")
    assert not canary.exists()


@pytest.mark.parametrize("known", [False, True])
def test_code_that_comes_with_a_model_is_not_run(model: Path, canary: Path, known: bool) -> None:
    code = f"import os\nos.system('touch {canary}')\n"
    code += "from transformers import LlamaConfig as C, LlamaForCausalLM as M\n"
    (model / "own.py").write_text(code)
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}
    config |= {} if known else {"model_type": "unheard_of", "architectures": ["M"]}
    (model / "config.json").write_text(json.dumps(config))
    if known:  # transformers has the model itself, and takes its own
        load_base_model(options_of(model), "cpu")
    else:
        with pytest.raises(ValueError, match="set 'trust_remote_code: true'"):
            load_base_model(options_of(model), "cpu")
    assert not canary.exists()


def test_code_that_comes_with_a_tokenizer_is_not_run(model: Path, canary: Path) -> None:
    (model / "own.py").write_text(f"import os\nos.system('touch {canary}')\nclass T: pass\n")
    path = model / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {"auto_map": {"AutoTokenizer": ["own.T", "own.T"]}, "tokenizer_class": "T"}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_tokenizer(options_of(model))
    assert not canary.exists()


def test_the_code_of_a_dataset_is_not_run(tmp_path: Path, canary: Path) -> None:
    folder = tmp_path / "mydata"
    folder.mkdir()
    (folder / "mydata.py").write_text(f"import os\nos.system('touch {canary}')\n")
    options = options_of(
        tmp_path, train_file=None, datasets=[{"path": str(folder), "split": "train"}]
    )
    with pytest.raises(ValueError, match="could not be loaded"):
        [*train_sources(options)[0].read(None)]  # type: ignore[arg-type]
    assert not canary.exists()


# Templates


@pytest.mark.parametrize("payload", TEMPLATE_PAYLOADS, ids=lambda p: p.decode()[:40])
def test_a_templates_way_out_of_its_sandbox_ends_in_a_message(
    payload: bytes, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.jinja").write_bytes(payload + CHAT_TEMPLATE.encode())
    options = options_of(model, chat_template=str(tmp_path / "own.jinja"))
    turns = ROWS["messages"][0]["messages"]  # type: ignore[index]
    sample = Conversation("rows:1", tuple(Message(t["role"], t["content"]) for t in turns))
    tokenizer = load_tokenizer(options)
    text = ""
    with contextlib.suppress(ValueError):
        text = tokenizer.decode(Encoder.of(options, tokenizer).encode(sample).input_ids)
    assert "class '" not in text
    assert "function" not in text
    assert not (tmp_path / "CANARY").exists()


# Files that are none


@pytest.mark.parametrize("kind", ["study", "config", "base", "dataset_info", "template"])
def test_a_pipe_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    names = {"dataset_info": "data/dataset_info.json", "template": "own.jinja"}
    os.mkfifo(tmp_path / names.get(kind, "pipe.yaml"))
    study = "study: s\ntrainer: lora\nspace: {lora_r: [1, 2]}\n"
    (tmp_path / "study.yaml").write_text(study + "base: pipe.yaml\n")
    (tmp_path / "config.yaml").write_text("model_name_or_path: a/b\ndataset: first\nmax_steps: 3\n")
    if kind == "template":
        with pytest.raises(ValueError, match="is no file"):
            choose_template(str(tmp_path / "own.jinja"), None)
        return
    read = read_config_file if kind in ("config", "dataset_info") else read_spec_file
    own = {"base": "study.yaml", "dataset_info": "config.yaml"}
    with pytest.raises(SpecError, match="is no file"):
        read(tmp_path / own.get(kind, "pipe.yaml"))


def test_a_file_without_an_end_is_not_read() -> None:
    with pytest.raises(SpecError, match="is no file"):
        read_document(Path("/dev/zero"))
