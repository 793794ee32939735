"""Targets, modules, noise, attention, devices: what options of the method do, and are refused for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from tests.trainers.contract import Options
from tests.trainers.test_lora_methods import FULL, KINDS, A, base_digests
from tests.trainers.test_lora_trainer import Run, losses
from trainers.lora import LoraTrainer
from trainers.lora.options import LoraOptions


def chosen(fixed: Options, **options: object) -> list[str]:
    run = Run(fixed)
    whole = LoraOptions.model_validate({**fixed, **options})
    names = list(run.trainer._engine._base.targets(whole))
    run.add(0, options)
    adapted = {
        name.partition(".lora_")[0].removeprefix("base_model.model.")
        for name in run.trainer._engine._trials[0].parameters
    }
    assert adapted == set(names)
    return sorted(names)


def test_targets_may_be_a_list_a_pattern_or_all(fixed: Options) -> None:
    first = r"model\.layers\.0\..*(q|v)_proj"
    assert chosen(fixed, target_modules=first) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.v_proj",
    ]
    assert len(chosen(fixed, target_modules=r".*\.(q_proj|k_proj){1,2}")) == 4  # its comma stays
    assert len(chosen(fixed, target_modules=r"model\.layers\.1\..*")) == 7  # norms are no target
    assert len(chosen(fixed, target_modules="q_proj, v_proj")) == 4
    assert len(chosen(fixed, target_modules="all-linear")) == 14


def test_a_pattern_that_matches_no_whole_name_is_refused(fixed: Options) -> None:
    run = Run(fixed)
    for pattern in ("q_pro(j)", ".*lm_head", r".*norm"):
        with pytest.raises(ValueError, match=r"matches none of this model's 14 linear layers"):
            run.add(0, {"target_modules": pattern})
    with pytest.raises(ValidationError, match="read as a regular expression and is none"):
        run.add(0, {"target_modules": "(q_proj"})


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ("embed_tokens", "input and output embeddings are one tensor"),
        ("lm_head", "input and output embeddings are one tensor"),
        ("no_such", "'no_such' is no module of this model. Known: act_fn, down_proj, embed"),
        ("mlp", "target_modules give 'model.layers.0.mlp"),
    ],
)
def test_modules_that_cannot_be_trained_whole_are_refused(
    fixed: Options, modules: str, said: str
) -> None:
    run = Run(fixed)
    with pytest.raises(ValueError, match=said):
        run.add(0, {**A, "modules_to_save": modules})
    run.add(0, A)


def test_untied_embeddings_are_trained_whole(
    fixed: Options, tmp_path: Path, model_folder: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_folder, tie_word_embeddings=False)
    model.lm_head.weight.data = model.lm_head.weight.data.flip(0).clone()
    model.save_pretrained(tmp_path / "untied")
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path / "untied")
    untied = {**fixed, "model_name_or_path": str(tmp_path / "untied")}
    options = {**A, "modules_to_save": "embed_tokens,lm_head", "neftune_noise_alpha": 5.0}
    alone = Run(untied)
    alone.add(0, options)
    alone.advance(6)
    run = Run(untied)
    before = base_digests(run)
    run.add(0, options)
    run.advance(3)
    run.trainer.save(0, tmp_path / "saved")
    run.advance(3)
    assert run.told(0) == alone.told(0)
    run.trainer.remove(0)
    assert base_digests(run) == before
    resumed = Run(untied)
    resumed.add(0, options, tmp_path / "saved")
    resumed.advance(3)
    assert resumed.told(0) == alone.told(0)[1:]
    whole = {**untied, **options}
    resumed.trainer.merge(whole, tmp_path / "saved" / "adapter", tmp_path / "merged")
    merged = {**untied, **A, "model_name_or_path": str(tmp_path / "merged")}
    assert LoraTrainer(merged, "cpu").evaluate(merged)["eval_loss"] == pytest.approx(
        resumed.trainer.evaluate(whole, tmp_path / "saved" / "adapter")["eval_loss"], rel=1e-5
    )


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_noise_is_on_training_embeddings_only_and_of_the_trials_own_stream(
    fixed: Options, tmp_path: Path, kind: str
) -> None:
    full: Options = {"finetuning_type": "full"} if kind == "full" else {}
    options = {**(FULL if kind == "full" else A), "neftune_noise_alpha": 5.0}
    quiet = {**options, "neftune_noise_alpha": None, "max_steps": 6}
    runs = {}
    for name, given in {"noisy": options, "quiet": quiet}.items():
        runs[name] = Run(fixed, **full)
        runs[name].add(0, given)
        assert (
            runs[name].trainer.evaluate({**runs[name].fixed, **given})["eval_loss"]
            == runs["noisy"].trainer.evaluate({**runs["noisy"].fixed, **options})["eval_loss"]
        )
        runs[name].advance(6)
    assert losses(runs["noisy"].reports[0]) != losses(runs["quiet"].reports[0])
    again = Run(fixed, **full)
    again.add(0, options)
    again.advance(3)
    again.trainer.save(0, tmp_path / "saved")
    resumed = Run(fixed, **full)
    resumed.add(0, options, tmp_path / "saved")
    if kind == "lora":
        resumed.add(1, quiet)
    resumed.advance(6)
    assert again.told(0) + resumed.told(0) == runs["noisy"].told(0)
    if kind == "lora":
        assert resumed.told(1) == runs["quiet"].told(0)


def test_noise_is_transformers_formula(fixed: Options) -> None:
    from trainers.lora.model.neftune import Noise, noisy_embeddings

    model = Run(fixed).trainer._engine._base.model
    ids = torch.arange(60).reshape(2, 30)
    embeddings = model.get_input_embeddings()
    plain = embeddings(ids)
    with noisy_embeddings(model, [Noise(0, (30, 30), 5.0, 3)]):
        noise = embeddings(ids) - plain
        assert torch.equal(noise, embeddings(ids) - plain)
    with noisy_embeddings(model, [Noise(0, (30, 30), 5.0, 4)]):
        assert not torch.equal(noise, embeddings(ids) - plain)
    assert torch.equal(embeddings(ids), plain)
    limit = 5.0 / (30 * 64) ** 0.5
    assert 0.98 * limit < noise.abs().max() <= limit * 1.001
    assert noise.abs().mean() == pytest.approx(limit / 2, rel=0.05)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_attention_and_checkpointing_change_no_loss(fixed: Options, kind: str) -> None:
    full: Options = {"finetuning_type": "full"} if kind == "full" else {}
    found = {}
    for name, given in {
        "sdpa": {"attn_implementation": "sdpa"},
        "eager": {"attn_implementation": "eager"},
        "checkpointed": {"attn_implementation": "sdpa", "gradient_checkpointing": True},
    }.items():
        run = Run(fixed, **full, **given)
        assert run.trainer._engine._base.model.config._attn_implementation == given.get(
            "attn_implementation"
        )
        run.add(0, FULL if kind == "full" else A)
        run.advance(6)
        found[name] = losses(run.reports[0])
    assert found["eager"] == pytest.approx(found["sdpa"], abs=1e-5)
    assert found["checkpointed"] == found["sdpa"]


def test_a_device_map_is_passed_on(fixed: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    load, seen = AutoModelForCausalLM.from_pretrained, []

    def remember(*args: object, **given: object) -> object:
        seen.append(given["device_map"])
        return load(*args, **given)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", remember)
    told = []
    for device_map in ({"model": "cpu", "lm_head": "cpu"}, "auto", None):
        run = Run(fixed, device_map=device_map)
        run.add(0, A)
        run.advance(2)
        told.append(run.told(0))
    assert seen == [{"model": "cpu", "lm_head": "cpu"}, {"": "cpu"}, {"": "cpu"}]
    assert told[0] == told[1] == told[2]
    with pytest.raises(ValueError, match="'model' is placed on 0, and this trainer is on cpu"):
        Run(fixed, device_map={"model": 0, "lm_head": "cpu"})
    with pytest.raises(ValidationError, match="placed on 'disk', where it cannot be trained"):
        Run(fixed, device_map={"": "disk"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"init_lora_weights": "eva"}, "'eva' is not supported: it needs passes over the data"),
        ({"init_lora_weights": "corda_fast"}, "needs passes over the data"),
        ({"init_lora_weights": "loftq"}, "quantizes the base model anew"),
        ({"init_lora_weights": False}, "meant for tests of PEFT"),
        ({"init_lora_weights": "pissa_niter_0"}, "init_lora_weights"),
        ({"init_lora_weights": "orthogonal", "lora_r": 3}, "even lora_r, got 3. Give lora_r: 4"),
        (
            {"init_lora_weights": "pissa", "quantization_bit": 4},
            "pissa changes .* quantization_bit",
        ),
        (
            {"finetuning_type": "full", "quantization_bit": 8},
            "cannot be done with quantization_bit",
        ),
        ({"use_dora": True, "quantization_bit": 8}, "spoiling them. Give quantization_bit: 4"),
        ({"finetuning_type": "full", "lora_r": 4, "use_dora": True}, "so lora_r, use_dora would"),
        ({"finetuning_type": "full", "loraplus_lr_ratio": 4}, "is a rate of adapters"),
        ({"finetuning_type": "freeze"}, "'lora' or 'full'"),
    ],
)
def test_what_cannot_be_is_refused_at_once(options: Options, said: str) -> None:
    base = {"model_name_or_path": "m", "train_file": "t.jsonl", "val_size": 1}
    with pytest.raises(ValidationError, match=said):
        LoraOptions.model_validate({**base, **options})


def test_more_directions_than_a_layer_has_are_refused(fixed: Options) -> None:
    run = Run(fixed)
    before = base_digests(run)
    with pytest.raises(ValueError, match=r"takes lora_r: 40 .*has 32. Give lora_r: 32 or less"):
        run.add(0, {**KINDS["pissa"], "lora_r": 40})
    assert base_digests(run) == before
    run.add(0, A)


def test_the_rate_falls_when_validations_do_not_get_better(fixed: Options, tmp_path: Path) -> None:
    options = {
        **A,
        "eval_steps": 1,
        "max_steps": 8,
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0, "threshold": 10.0, "threshold_mode": "abs"},
    }
    run = Run(fixed)
    run.add(0, options)
    run.advance(8)
    rates = [line["learning_rate"] for report in run.reports[0] for line in report.step_lines]
    # The first validation sets the mark, and each one after it is no gain of 10 nats.
    assert rates == pytest.approx(
        [3e-3 * 0.1 ** max(0, step - 2) for step in range(1, 9)], abs=1e-8
    )
    begun = Run(fixed)
    begun.add(0, options)
    begun.advance(4)
    begun.trainer.save(0, tmp_path / "saved")
    resumed = Run(fixed)
    resumed.add(0, options, tmp_path / "saved")
    resumed.advance(4)
    assert begun.told(0) + resumed.told(0) == run.told(0)


def test_a_trial_saved_before_there_were_other_methods_goes_on(
    fixed: Options, tmp_path: Path
) -> None:
    alone, begun, resumed = Run(fixed), Run(fixed), Run(fixed)
    alone.add(0, A)
    alone.advance(6)
    begun.add(0, A)
    begun.advance(3)
    begun.trainer.save(0, tmp_path / "saved")
    path = tmp_path / "saved" / "state" / "state.json"
    state = json.loads(path.read_text())
    del state["optimizer"], state["learning_rate"]
    for name in ("finetuning_type", "init_lora_weights", "modules_to_save", "optim_args"):
        del state["options"][name]
    path.write_text(json.dumps({**state, "format": 1}))
    resumed.add(0, A, tmp_path / "saved")
    resumed.advance(3)
    assert begun.told(0) + resumed.told(0) == alone.told(0)
    path.write_text(json.dumps({**state, "format": 99}))
    with pytest.raises(ValueError, match=r"saved in format 99, this version reads 1 and 2"):
        resumed.add(1, A, tmp_path / "saved")
