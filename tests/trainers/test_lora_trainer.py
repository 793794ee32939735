"""LoraTrainer: what it promises to a search, on a tiny model in float32 on the CPU."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from trainers.lora import LoraOptions, LoraTrainer
from trainers.lora.model.base_model import load_tokenizer
from trainers.lora.pack.packed_pass import PackedPass, TrainPart
from trainers.protocol import Report

Options = dict[str, object]

TIMES = ("seconds", "tokens_per_second", "eval_runtime", "process_memory_gib", "pack")

A: Options = {"learning_rate": 3e-3, "max_steps": 6, "eval_steps": 2, "lora_dropout": 0.1}
B: Options = {**A, "seed": 7, "lora_r": 8, "per_device_train_batch_size": 3}
TRIALS = {0: A, 1: B, 10: {**A, "seed": 9, "target_modules": "q_proj", "use_rslora": True}}


def timeless(line: Mapping[str, object]) -> Options:
    return {name: value for name, value in line.items() if name not in TIMES}


def told(report: Report) -> tuple[object, ...]:
    """Everything that a report says, but how long things took."""
    lines = [timeless(line) for line in report.step_lines]
    return (report.validation, report.step, timeless(report.metrics), lines, report.end)


class Run:
    """Drives a trainer and keeps every trial's reports."""

    def __init__(self, fixed: Options, **options: object) -> None:
        self.fixed = {**fixed, **options}
        self.trainer = LoraTrainer(self.fixed, "cpu")
        self.reports: dict[int, list[Report]] = {}

    def add(self, trial: int, options: Options, resume_from: Path | None = None) -> None:
        self.trainer.add(trial, {**self.fixed, **options}, resume_from)
        self.reports.setdefault(trial, [])

    def advance(self, num_steps: int) -> None:
        for _ in range(num_steps):
            for report in self.trainer.advance():
                self.reports[report.trial].append(report)

    def told(self, trial: int) -> list[tuple[object, ...]]:
        return [told(report) for report in self.reports[trial]]


def runs_alone(fixed: Options, trials: Mapping[int, Options], num_rounds: int) -> dict[int, Run]:
    """Let each trial have a trainer for itself."""
    runs = {trial: Run(fixed) for trial in trials}
    for trial, run in runs.items():
        run.add(trial, trials[trial])
        run.advance(num_rounds)
    return runs


@pytest.fixture(scope="module")
def alone(fixed: Options) -> dict[int, list[tuple[object, ...]]]:
    """What each of TRIALS reports when it has the trainer for itself."""
    return {trial: run.told(trial) for trial, run in runs_alone(fixed, TRIALS, 6).items()}


def test_a_trial_trains_and_reports(fixed: Options) -> None:
    run = Run(fixed)
    run.add(3, {**A, "max_steps": 30, "eval_steps": 10})
    run.advance(35)
    reports = run.reports[3]
    assert [(r.validation, r.step, r.end) for r in reports] == [
        (1, 10, None),
        (2, 20, None),
        (3, 30, "finished"),
    ]
    by_step = losses(reports)
    assert len(by_step) == 30
    assert by_step[-1] < by_step[0] - 0.3
    last = reports[-1].metrics
    assert last["eval_loss"] < reports[0].metrics["eval_loss"]
    assert last["perplexity"] == math.exp(last["eval_loss"])
    assert 0 < last["eval_token_accuracy"] < 1
    assert last["epoch"] == 6
    assert {"step", "epoch", "learning_rate", "grad_norm", *TIMES[:2]} <= set(
        reports[0].step_lines[0]
    )


def test_a_plan_is_what_then_happens(fixed: Options) -> None:
    run = Run(fixed)
    options = {**A, "max_steps": 3, "eval_steps": 0.5, "lora_r": 4}
    plan = run.trainer.plan({**run.fixed, **options})
    run.add(0, options)
    run.advance(5)
    report = run.reports[0][-1]
    assert (plan.num_steps, plan.num_validations) == (report.step, report.validation) == (3, 2)
    assert (plan.num_train_samples, plan.num_eval_samples) == (20, 4)
    weights = run.trainer._engine._trials[0].parameters.values()
    assert plan.num_trainable_parameters == sum(weight.numel() for weight in weights)


def test_packed_equals_alone(fixed: Options, alone: dict[int, list[tuple[object, ...]]]) -> None:
    run = Run(fixed)
    for trial, options in TRIALS.items():
        run.add(trial, options)
    run.advance(6)
    assert {trial: run.told(trial) for trial in TRIALS} == alone


def test_joining_and_leaving_changes_no_neighbour(
    fixed: Options, alone: dict[int, list[tuple[object, ...]]]
) -> None:
    run = Run(fixed)
    run.add(0, TRIALS[0])
    run.advance(3)
    run.add(1, TRIALS[1])
    run.advance(1)
    run.trainer.remove(0)
    run.advance(2)
    run.add(10, TRIALS[10])
    run.advance(6)
    assert run.told(0) == alone[0][:2]
    assert run.told(1) == alone[1]
    assert run.told(10) == alone[10]


def test_an_emptied_trainer_takes_trials_again(
    fixed: Options, alone: dict[int, list[tuple[object, ...]]]
) -> None:
    run = Run(fixed)
    for trial in (1, 0, 1):
        run.reports.clear()
        run.add(trial, TRIALS[trial])
        run.advance(6)
        run.trainer.remove(trial)
        assert run.trainer.advance() == []
        assert run.told(trial) == alone[trial]


def test_a_diverging_trial_ends_alone(
    fixed: Options, alone: dict[int, list[tuple[object, ...]]]
) -> None:
    run = Run(fixed)
    run.add(0, TRIALS[0])
    run.add(5, {**A, "learning_rate": 1e30})
    run.advance(6)
    (report,) = run.reports[5]
    assert (report.end, report.validation, report.metrics) == ("diverged", 0, {})
    assert "training loss nan after 1 steps" in str(report.message)
    assert run.told(0) == alone[0]


def test_the_loss_limit_is_the_users_to_set(fixed: Options) -> None:
    run = Run(fixed)
    run.add(0, {**A, "max_loss": 1.0})
    run.advance(2)
    (report,) = run.reports[0]
    assert report.end == "diverged"
    assert "training loss" in str(report.message)
    assert "limit 1," in str(report.message)


def test_an_error_in_one_trial_is_its_report(
    fixed: Options,
    alone: dict[int, list[tuple[object, ...]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    healthy = PackedPass.backward

    def broken(self: PackedPass, parts: Sequence[TrainPart]) -> list[float]:
        if any(part.trial == 5 for part in parts):
            raise RuntimeError("out of\norder")
        return healthy(self, parts)

    monkeypatch.setattr(PackedPass, "backward", broken)
    run = Run(fixed)
    run.add(5, A)
    run.add(0, TRIALS[0])
    run.advance(6)
    (report,) = run.reports[5]
    assert report.end == "failed"
    first, rest = str(report.message).split("\n", 1)
    assert first == "RuntimeError: out of order"
    assert "Traceback" in rest
    assert run.told(0) == alone[0]


def test_patience_ends_a_trial(fixed: Options) -> None:
    run = Run(fixed)
    patience = {"early_stopping_patience": 2, "early_stopping_threshold": 100.0}
    run.add(0, {**A, **patience, "max_steps": 10, "eval_steps": 1})
    run.advance(10)
    assert [report.end for report in run.reports[0]] == [None, None, "stopped_early"]


@pytest.mark.parametrize("saved_at", [2, 3])
def test_a_resumed_trial_goes_on_as_if_nothing_had_happened(
    fixed: Options,
    alone: dict[int, list[tuple[object, ...]]],
    tmp_path: Path,
    saved_at: int,
) -> None:
    run = Run(fixed)
    run.add(1, TRIALS[1])
    run.advance(saved_at)
    run.trainer.save(1, tmp_path / "saved")
    resumed = Run(fixed)
    resumed.add(8, A)
    resumed.add(4, TRIALS[1], resume_from=tmp_path / "saved")
    resumed.advance(6)
    assert run.told(1) + resumed.told(4) == alone[1]
    assert not [p for p in tmp_path.rglob("*") if p.suffix in {".pt", ".bin", ".pkl", ".pth"}]


def test_a_trial_saved_again_after_resuming_is_the_same_files(
    fixed: Options, tmp_path: Path
) -> None:
    run = Run(fixed)
    run.add(1, TRIALS[1])
    run.advance(2)
    run.trainer.save(1, tmp_path / "first")
    again = Run(fixed)
    again.add(1, TRIALS[1], tmp_path / "first")
    again.trainer.save(1, tmp_path / "second")
    files = sorted(p.relative_to(tmp_path / "first") for p in (tmp_path / "first").rglob("*.*"))
    assert len(files) == 4
    for file in files:
        first, second = (tmp_path / name / file for name in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


def test_a_trial_resumed_after_its_end_says_so_once(fixed: Options, tmp_path: Path) -> None:
    run = Run(fixed)
    run.add(0, A)
    run.advance(6)
    run.trainer.save(0, tmp_path / "saved")
    resumed = Run(fixed)
    resumed.add(0, A, tmp_path / "saved")
    resumed.advance(3)
    (report,) = resumed.reports[0]
    last = run.reports[0][-1]
    assert (report.end, report.metrics, report.validation) == ("finished", last.metrics, 3)


def test_a_saved_trial_of_other_options_or_data_is_refused(
    fixed: Options, tmp_path: Path, train_file: Path
) -> None:
    run = Run(fixed)
    run.add(0, A)
    run.advance(1)
    saved = tmp_path / "saved"
    run.trainer.save(0, saved)
    with pytest.raises(ValueError, match="not empty"):
        run.trainer.save(0, saved)
    with pytest.raises(ValueError, match=r"learning_rate: 0\.003 there, 0\.1 here"):
        run.add(1, {**A, "learning_rate": 0.1}, saved)
    with pytest.raises(ValueError, match="holds no whole saved trial"):
        run.add(1, A, tmp_path / "nowhere")
    (saved / "state/optimizer.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="cut off"):
        run.add(1, A, saved)
    run.add(1, A)  # the refused one has left nothing behind
    other = tmp_path / "other.jsonl"
    other.write_text(train_file.read_text().replace("two", "2"))
    with pytest.raises(ValueError, match="other data"):
        Run({**fixed, "train_file": str(other)}).add(0, A, saved)


def test_the_saved_adapter_loads_with_peft_and_has_the_same_loss(
    fixed: Options, tmp_path: Path, model_folder: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = Run(fixed)
    run.add(1, B)
    run.add(10, A)
    run.advance(2)
    run.trainer.save(1, tmp_path / "saved")
    adapter = tmp_path / "saved" / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(model_folder)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    loss, num_targets = 0.0, 0
    with torch.no_grad():
        for example in run.trainer._engine._dataset.validation:
            ids, labels = example.input_ids[None].long(), example.labels[None].long()
            loss += model(ids, labels=labels).loss.item() * example.num_targets
            num_targets += example.num_targets
    expected = run.reports[1][-1].metrics["eval_loss"]
    assert loss / num_targets == pytest.approx(expected, rel=1e-6)


def losses(reports: Sequence[Report]) -> list[float]:
    return [float(str(line["loss"])) for report in reports for line in report.step_lines]


@pytest.mark.parametrize("scheduler", ["linear", "cosine"])
def test_accumulating_equals_the_larger_batch(fixed: Options, scheduler: str) -> None:
    run = Run(fixed)
    common = {**A, "lora_dropout": 0.0, "lr_scheduler_type": scheduler, "warmup_steps": 2}
    run.add(0, {**common, "per_device_train_batch_size": 4})
    run.add(1, {**common, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2})
    run.advance(12)
    assert len(losses(run.reports[0])) == 6
    assert losses(run.reports[0]) == pytest.approx(losses(run.reports[1]), rel=1e-4)


def test_gradient_checkpointing_changes_no_loss(
    fixed: Options, alone: dict[int, list[tuple[object, ...]]]
) -> None:
    run = Run(fixed, gradient_checkpointing=True)
    run.add(1, TRIALS[1])
    run.advance(6)
    assert run.told(1) == alone[1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "auto"])
def test_half_precision_trains_float32_adapters(fixed: Options, dtype: str, tmp_path: Path) -> None:
    run = Run(fixed, dtype=dtype)
    run.add(0, {**A, "max_steps": 10, "eval_steps": 5})
    run.advance(5)
    run.trainer.save(0, tmp_path / "saved")
    run.advance(5)
    resumed = Run(fixed, dtype=dtype)
    resumed.add(0, {**A, "max_steps": 10, "eval_steps": 5}, tmp_path / "saved")
    resumed.advance(5)
    assert losses(resumed.reports[0]) == losses(run.reports[0][1:])
    assert losses(run.reports[0])[-1] < losses(run.reports[0])[0]


def test_4bit_trains_and_a_validation_does_not_change_gradients(fixed: Options) -> None:
    def gradients(run: Run) -> list[torch.Tensor]:
        engine = run.trainer._engine
        trial = engine._trials[0]
        engine._passes.backward([trial])
        found = [parameter.grad.clone() for parameter in trial.parameters.values()]
        trial.optimizer.zero_grad()
        return found

    run = Run(fixed, quantization_bit=4, dtype="bfloat16")
    run.add(0, {**A, "max_steps": 10, "eval_steps": 5})
    run.advance(4)
    before = gradients(run)
    engine = run.trainer._engine
    engine._course._measure(engine._trials[0])
    after = gradients(run)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    run.advance(6)
    assert losses(run.reports[0])[-1] < losses(run.reports[0])[0]


def test_models_that_cannot_select_logits_have_the_same_losses(fixed: Options) -> None:
    def train(selects_logits: bool) -> list[float]:
        run = Run(fixed)
        object.__setattr__(run.trainer._engine._base, "selects_logits", selects_logits)
        run.add(0, TRIALS[0])
        run.advance(2)
        return losses(run.reports[0])

    assert train(True) == pytest.approx(train(False), rel=1e-6)


def test_trials_share_what_the_trainer_was_made_with(fixed: Options) -> None:
    run = Run(fixed)
    with pytest.raises(ValueError, match="max_length: 32 differs from 64"):
        run.add(0, {**A, "max_length": 32})
    with pytest.raises(ValueError, match=r"'x_proj' is no linear layer.*Known: down_proj, gate"):
        run.add(0, {**A, "target_modules": "q_proj,x_proj"})
    run.add(0, A)
    with pytest.raises(ValueError, match="trial 0 is on this trainer already"):
        run.add(0, A)
    with pytest.raises(KeyError, match=r"trial 1 is not on this trainer\. Present: 0"):
        run.trainer.remove(1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model_name_or_path": "./no/such/model"}, "does not exist. Give a folder that holds"),
        ({"model_name_or_path": "/no/such/model.gguf"}, "GGUF file /no/such/model.gguf does not"),
        ({"max_length": 512}, "Give max_length: 256 or less"),
        ({"attn_implementation": "warp"}, "could not be loaded"),
    ],
)
def test_a_model_that_cannot_be_had_is_the_users_to_mend(
    fixed: Options, options: Options, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        LoraTrainer({**fixed, **options}, "cpu")


def test_folders_and_devices_that_hold_nothing_are_refused(fixed: Options, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no model"):
        LoraTrainer({**fixed, "model_name_or_path": str(tmp_path)}, "cpu")
    with pytest.raises(ValueError, match="Known: cpu, cuda, auto"):
        LoraTrainer(fixed, "tpu")


def test_a_gguf_file_is_loaded_as_one(tmp_path: Path) -> None:
    from trainers.lora.model.base_model import _load
    from trainers.lora.options import LoraOptions

    path = tmp_path / "tiny.Q4_1.gguf"
    path.touch()
    options = LoraOptions(model_name_or_path=str(path), train_file="t.jsonl", val_size=1)
    seen: list[tuple[object, ...]] = []
    _load(lambda name, **arguments: seen.append((name, arguments["gguf_file"])), options)
    assert seen == [(str(tmp_path), "tiny.Q4_1.gguf")]


def test_a_revision_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, object]] = []

    def from_pretrained(name: str, **arguments: object) -> None:
        asked.append((name, arguments["revision"]))

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", from_pretrained)
    options = {"model_name_or_path": "org/model", "model_revision": "v2", "train_file": "a.jsonl"}
    load_tokenizer(LoraOptions.model_validate(options))
    assert asked == [("org/model", "v2")]
