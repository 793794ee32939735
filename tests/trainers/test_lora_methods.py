"""Adapters of every start and kind, and full fine-tuning: what is trained, saved and put back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from tests.trainers.contract import Options, TrainerContract
from tests.trainers.test_lora_trainer import Run, losses
from trainers.lora import LoraTrainer
from trainers.lora.options import LoraOptions
from trainers.protocol import Report, Trainer

A: Options = {"learning_rate": 3e-3, "max_steps": 6, "eval_steps": 2, "lora_dropout": 0.1}
FULL: Options = {"finetuning_type": "full", "learning_rate": 1e-3, "max_steps": 6, "eval_steps": 2}
STARTS = ["gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora"]
KINDS: dict[str, Options] = {
    "gaussian with lora plus": {**A, "init_lora_weights": "gaussian", "loraplus_lr_ratio": 8},
    "orthogonal": {**A, "init_lora_weights": "orthogonal"},
    "pissa": {**A, "init_lora_weights": "pissa"},
    "pissa drawn, with rslora": {
        **A,
        "init_lora_weights": "pissa_niter_4",
        "use_rslora": True,
        "lora_r": 8,
    },
    "pissa with dora": {**A, "init_lora_weights": "pissa", "use_dora": True},
    "olora": {**A, "init_lora_weights": "olora"},
    "dora": {**A, "use_dora": True},
    "modules_to_save": {**A, "modules_to_save": "norm,input_layernorm"},
    "full": FULL,
}
CHANGING = [kind for kind in KINDS if kind == "full" or kind.startswith(("pissa", "olora"))]
ALONE = [*CHANGING, "dora", "modules_to_save"]
TOGETHER = [kind for kind in KINDS if kind not in ALONE]


def run_of(fixed: Options, kind: str) -> Run:
    return Run(fixed, **({"finetuning_type": "full"} if kind == "full" else {}))


def base_digests(run: Run) -> dict[str, str]:
    """A hash of every number of the base model, by its name without PEFT's wrapping."""
    model = run.trainer._engine._base.model
    inside = re.compile(r"\.(base_layer|original_module)(?=\.)")
    return {
        inside.sub("", name): hashlib.sha256(weight.detach().numpy().tobytes()).hexdigest()
        for name, weight in [*model.named_parameters(), *model.named_buffers()]
        if "lora_" not in name and "modules_to_save" not in name
    }


def validation_logits(run: Run, model: torch.nn.Module) -> torch.Tensor:
    dataset = run.trainer._engine._dataset
    batch = dataset.validation_batch(range(len(dataset.validation)))
    model.eval()
    with torch.no_grad():
        ids, mask = batch.input_ids, batch.attention_mask
        logits: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
    return logits[mask.bool()]


@pytest.fixture(scope="module")
def alone(fixed: Options) -> dict[str, list[tuple[object, ...]]]:
    told = {}
    for kind, options in KINDS.items():
        run = run_of(fixed, kind)
        run.add(0, options)
        run.advance(6)
        told[kind] = run.told(0)
    return told


@pytest.fixture(scope="module")
def untrained_loss(fixed: Options) -> float:
    return Run(fixed).trainer.evaluate({**fixed, **A})["eval_loss"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_from_the_base_models_own_loss(
    fixed: Options, alone: dict[str, list[tuple[object, ...]]], untrained_loss: float, kind: str
) -> None:
    run = run_of(fixed, kind)
    before = run.trainer.evaluate({**run.fixed, **KINDS[kind]})["eval_loss"]
    assert before == pytest.approx(untrained_loss, rel=1e-5)
    metrics = alone[kind][-1][2]
    assert isinstance(metrics, dict)
    assert metrics["eval_loss"] < before - 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_counts_what_is_trained(fixed: Options, kind: str) -> None:
    run = run_of(fixed, kind)
    plan = run.trainer.plan({**run.fixed, **KINDS[kind]})
    run.add(0, KINDS[kind])
    trial = run.trainer._engine._trials[0]
    run.trainer._engine._weights.activate(0)
    trained = sum(weight.numel() for weight in trial.parameters.values())
    model = run.trainer._engine._base.model
    by_torch = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert plan.num_trainable_parameters == trained == by_torch


@pytest.mark.parametrize(
    ("kind", "saved_at"), [*((kind, 3) for kind in KINDS), ("pissa", 2), ("full", 2)]
)
def test_every_kind_goes_on_from_its_saved_state_bit_by_bit(
    fixed: Options,
    alone: dict[str, list[tuple[object, ...]]],
    tmp_path: Path,
    kind: str,
    saved_at: int,
) -> None:
    run = run_of(fixed, kind)
    run.add(0, KINDS[kind])
    run.advance(saved_at)
    run.trainer.save(0, tmp_path / "saved")
    resumed = run_of(fixed, kind)
    resumed.add(3, KINDS[kind], tmp_path / "saved")
    resumed.advance(6)
    assert run.told(0) + resumed.told(3) == alone[kind]


@pytest.mark.parametrize("kind", TOGETHER)
def test_kinds_that_share_a_base_train_as_if_alone(
    fixed: Options, alone: dict[str, list[tuple[object, ...]]], kind: str
) -> None:
    (other,) = (other for other in TOGETHER if other != kind)
    run = Run(fixed)
    run.add(1, KINDS[other])
    run.add(5, A)
    run.advance(1)
    run.add(0, KINDS[kind])
    run.add(2, {**KINDS[kind], "seed": 9})
    run.advance(2)
    run.add(3, {**KINDS[other], "lora_r": 40})
    run.trainer.remove(2)
    run.advance(4)
    assert run.told(0) == alone[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_model_is_bit_equal_when_a_trial_has_left(fixed: Options, kind: str) -> None:
    run = run_of(fixed, kind)
    before = base_digests(run)
    run.add(0, KINDS[kind])
    run.advance(3)
    changed = {name for name, digest in base_digests(run).items() if digest != before[name]}
    assert bool(changed) == (kind in CHANGING)
    run.trainer.remove(0)
    assert base_digests(run) == before
    assert not any(weight.requires_grad for weight in run.trainer._engine._base.model.parameters())
    assert all(weight.grad is None for weight in run.trainer._engine._base.model.parameters())
    run.add(1, KINDS[kind])
    run.add(2, KINDS[kind]) if kind in TOGETHER else None
    run.advance(1)
    for trial in (1, 2) if kind in TOGETHER else (1,):
        run.trainer.remove(trial)
    assert base_digests(run) == before


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "full"])
def test_a_saved_adapter_loads_with_plain_peft_onto_the_original_base(
    fixed: Options, tmp_path: Path, model_folder: Path, kind: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = Run(fixed)
    untrained = validation_logits(run, run.trainer._engine._base.model)
    run.add(0, KINDS[kind])
    run.advance(4)
    run.trainer.save(0, tmp_path / "saved")
    run.trainer._engine._weights.activate(0)
    expected = validation_logits(run, run.trainer._engine._base.model)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(tmp_path / "saved" / "adapter"))
    torch.testing.assert_close(validation_logits(run, model), expected, rtol=1e-4, atol=1e-5)
    assert (expected - untrained).abs().max() > 1e-3


def test_full_weights_load_with_plain_transformers(fixed: Options, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = run_of(fixed, "full")
    run.add(0, FULL)
    run.advance(4)
    run.trainer.save(0, tmp_path / "saved")
    expected = validation_logits(run, run.trainer._engine._base.model)
    folder = tmp_path / "saved" / "adapter"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(validation_logits(run, model), expected)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert AutoTokenizer.from_pretrained(folder).chat_template is not None


@pytest.mark.parametrize(
    "kind", ["pissa drawn, with rslora", "pissa with dora", "dora", "modules_to_save", "full"]
)
def test_merged_weights_and_a_visit_give_the_reported_loss(
    fixed: Options, tmp_path: Path, kind: str
) -> None:
    run = run_of(fixed, kind)
    run.add(0, KINDS[kind])
    run.advance(4)
    reported = run.reports[0][-1].metrics["eval_loss"]
    run.trainer.save(0, tmp_path / "saved")
    whole = {**run.fixed, **KINDS[kind]}
    adapter = tmp_path / "saved" / "adapter"
    assert run.trainer.evaluate(whole, adapter)["eval_loss"] == reported
    LoraTrainer.merge(whole, adapter, tmp_path / "merged")
    merged = {**fixed, **A, "model_name_or_path": str(tmp_path / "merged")}
    loss = LoraTrainer(merged, "cpu").evaluate(merged)["eval_loss"]
    assert loss == pytest.approx(reported, rel=1e-5)


@pytest.mark.parametrize("kind", ["pissa", "full", "dora"])
def test_a_visit_changes_nothing_for_the_trial_that_is_present(
    fixed: Options, alone: dict[str, list[tuple[object, ...]]], tmp_path: Path, kind: str
) -> None:
    run = run_of(fixed, kind)
    whole = {**run.fixed, **KINDS[kind]}
    before = run.trainer.evaluate(whole)
    run.add(0, KINDS[kind])
    run.advance(2)
    run.trainer.save(0, tmp_path / "saved")
    run.advance(1)
    while_present = run.trainer.evaluate(whole)
    assert while_present["eval_loss"] == before["eval_loss"]
    run.trainer.evaluate(whole, tmp_path / "saved" / "adapter")
    if kind != "full":
        run.trainer.evaluate({**whole, **A, "use_dora": False, "init_lora_weights": True})
    run.advance(3)
    assert run.told(0) == alone[kind]


def test_a_visitor_that_changes_the_base_disturbs_no_trial(
    fixed: Options, alone: dict[str, list[tuple[object, ...]]]
) -> None:
    run = Run(fixed)
    for kind, visitors in {"dora": ["pissa", "modules_to_save"], "orthogonal": ["dora"]}.items():
        run = Run(fixed)
        run.add(0, KINDS[kind])
        run.advance(1)
        for visitor in visitors:
            run.trainer.evaluate({**fixed, **KINDS[visitor]})
        run.advance(5)
        assert run.told(0) == alone[kind]


@pytest.mark.parametrize("kind", ["dora", "modules_to_save", "pissa"])
def test_a_visitor_sees_nothing_of_a_trial_that_needs_the_base_for_itself(
    fixed: Options, kind: str
) -> None:
    options = {**fixed, **A, "target_modules": "q_proj"}
    expected = Run(fixed).trainer.evaluate(options)["eval_loss"]
    run = Run(fixed)
    run.add(0, KINDS[kind])
    run.advance(3)
    assert run.trainer.evaluate(options)["eval_loss"] == expected


@pytest.mark.parametrize("kind", ALONE)
def test_a_trial_that_needs_the_base_for_itself_is_refused_beside_others(
    fixed: Options, alone: dict[str, list[tuple[object, ...]]], kind: str
) -> None:
    run = run_of(fixed, kind)
    run.add(0, KINDS[kind])
    reason = LoraOptions.model_validate({**run.fixed, **KINDS[kind]}).sharing_problem()
    neighbours = [KINDS[kind]] if kind == "full" else [KINDS[kind], A]
    for options in neighbours:
        with pytest.raises(ValueError, match=r"must be alone.*'resources: \{gpu: 1\}'") as refused:
            run.add(1, options)
        assert str(refused.value).startswith(str(reason))
    run.advance(6)
    assert run.told(0) == alone[kind]
    if kind != "full":
        run.trainer.remove(0)
        run.add(1, A)
        with pytest.raises(ValueError, match=re.escape(str(reason))):
            run.add(0, KINDS[kind])


@pytest.mark.parametrize("kind", ["pissa", "dora", "full"])
def test_a_saved_trial_that_cannot_be_read_leaves_nothing_behind(
    fixed: Options, alone: dict[str, list[tuple[object, ...]]], tmp_path: Path, kind: str
) -> None:
    run = run_of(fixed, kind)
    before = base_digests(run)
    run.add(0, KINDS[kind])
    run.advance(2)
    run.trainer.save(0, tmp_path / "saved")
    run.trainer.remove(0)
    (weights,) = (tmp_path / "saved" / "adapter").glob("*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut off"):
        run.add(0, KINDS[kind], tmp_path / "saved")
    weights.write_bytes(whole)
    (tmp_path / "saved/state/optimizer.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="cut off"):
        run.add(0, KINDS[kind], tmp_path / "saved")
    if kind != "full":
        with pytest.raises(ValueError, match="adapter of other options"):
            run.trainer.evaluate(
                {**fixed, **KINDS[kind], "lora_r": 4}, tmp_path / "saved" / "adapter"
            )
    assert base_digests(run) == before
    run.reports.clear()
    run.add(0, KINDS[kind])
    run.advance(6)
    assert run.told(0) == alone[kind]


def test_every_start_is_another_and_of_the_trials_own_seed(fixed: Options) -> None:
    run = Run(fixed)

    def start(**options: object) -> dict[str, torch.Tensor]:
        run.trainer.add(0, {**run.fixed, **A, **options})
        found = run.trainer._engine._trials[0].parameters
        copies = {name: weight.detach().clone() for name, weight in found.items()}
        run.trainer.remove(0)
        return copies

    def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(weight, other[name]) for name, weight in one.items())

    seen: list[dict[str, torch.Tensor]] = []
    for kind in [True, *STARTS]:
        torch.manual_seed(len(seen))  # what others draw changes nothing
        first = start(init_lora_weights=kind)
        torch.manual_seed(100)
        assert same(first, start(init_lora_weights=kind))
        if kind not in ("pissa", "olora"):  # these are not drawn, but computed
            assert not same(first, start(init_lora_weights=kind, seed=7))
        assert not any(same(first, other) for other in seen)
        seen.append(first)


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_a_start_is_pefts(fixed: Options, model_folder: Path, kind: str) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    run = Run(fixed)
    run.add(0, KINDS[kind])
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=kind)
    expected = get_peft_model(base, config)
    adapted = dict(expected.named_parameters())
    for name, weight in run.trainer._engine._trials[0].parameters.items():
        reference = adapted[name.replace(".weight", ".default.weight")]
        torch.testing.assert_close(weight, reference, rtol=1e-4, atol=1e-6)
    ours = dict(run.trainer._engine._base.model.named_parameters())
    for name, reference in base.named_parameters():
        if "base_layer" in name:
            torch.testing.assert_close(ours[name], reference, rtol=1e-4, atol=1e-6)


def test_dora_is_trained_saved_and_not_a_lora(fixed: Options, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = Run(fixed)
    run.add(0, KINDS["dora"])
    begun = {
        name: weight.detach().clone()
        for name, weight in run.trainer._engine._trials[0].parameters.items()
    }
    run.advance(6)
    plain = Run(fixed)
    plain.add(0, A)
    plain.advance(6)
    assert losses(run.reports[0]) != losses(plain.reports[0])
    run.trainer.save(0, tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "adapter" / "adapter_model.safetensors")
    magnitudes = [name for name in saved if name.endswith(".lora_magnitude_vector")]
    assert len(magnitudes) == len(saved) // 3 > 0
    assert all(not torch.equal(saved[name], begun[name]) for name in magnitudes)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("full", "bfloat16"),
        ("full", "float16"),
        ("pissa", "bfloat16"),
        ("dora", "bfloat16"),
        ("modules_to_save", "bfloat16"),
    ],
)
def test_half_precision_trains_float32_weights(
    fixed: Options, tmp_path: Path, kind: str, dtype: str
) -> None:
    options = {**KINDS[kind], "max_steps": 8, "eval_steps": 4}
    full: Options = {"finetuning_type": "full"} if kind == "full" else {}
    run = Run(fixed, dtype=dtype, **full)
    run.add(0, options)
    weights = run.trainer._engine._trials[0].parameters.values()
    assert {weight.dtype for weight in weights} == {torch.float32}
    run.advance(4)
    run.trainer.save(0, tmp_path / "saved")
    run.advance(4)
    resumed = Run(fixed, dtype=dtype, **full)
    resumed.add(0, options, tmp_path / "saved")
    resumed.advance(4)
    assert losses(resumed.reports[0]) == losses(run.reports[0][1:])
    assert losses(run.reports[0])[-1] < losses(run.reports[0])[0]


class AloneContract(TrainerContract):
    """The contract of a trainer whose trials cannot share their base model."""

    special: ClassVar[Options] = {}

    @pytest.fixture
    def trainer(self, fixed: Options) -> Trainer:
        shared = {"finetuning_type": self.special.get("finetuning_type", "lora")}
        return LoraTrainer({**fixed, **shared}, "cpu")

    @pytest.fixture
    def options(self, fixed: Options) -> list[Options]:
        short = {**fixed, "max_steps": 4, "eval_steps": 2, "learning_rate": 3e-3, **self.special}
        return [short, {**short, "seed": 7, "per_device_train_batch_size": 3}]

    def test_neighbours_change_nothing(self, trainer: Trainer, options: list[Options]) -> None:
        trainer.add(0, options[0])
        with pytest.raises(ValueError, match="must be alone"):
            trainer.add(1, options[1])
        beside = self.losses(self.train(trainer, 0))
        trainer.remove(0)
        trainer.add(1, options[1])
        trainer.advance()
        trainer.remove(1)
        trainer.add(0, options[0])
        assert self.losses(self.train(trainer, 0)) == beside

    def losses(self, reports: Sequence[Report]) -> list[float]:
        return super().losses(list(reports))


class TestFullFineTuning(AloneContract):
    special: ClassVar[Options] = {"finetuning_type": "full"}


class TestPissa(AloneContract):
    special: ClassVar[Options] = {"init_lora_weights": "pissa"}


def test_nothing_of_an_adapter_is_left_in_the_layers_that_stay(fixed: Options) -> None:
    run = Run(fixed)
    run.add(7, {**fixed, "lora_dropout": 0.1, "seed": 7})
    layers = run.trainer._engine._weights._layers(7).values()
    assert layers
    run.advance(1)
    run.trainer.remove(7)
    for layer in layers:
        tables = [value for value in vars(layer).values() if hasattr(value, "keys")]
        modules = [module for module in layer.children() if hasattr(module, "keys")]
        assert not [table for table in tables + modules if "trial7" in table.keys()]  # noqa: SIM118
