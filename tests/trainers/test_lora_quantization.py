"""Quantized base models: right gradients, small weights, and trials that resume."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.trainers.contract import Options
from tests.trainers.test_lora_trainer import Run, losses
from trainers.lora.passes import StepLoss

A: Options = {"learning_rate": 3e-3, "max_steps": 6, "eval_steps": 2}
KINDS: dict[str, Options] = {
    "nf4": {"quantization_bit": 4},
    "fp4": {"quantization_bit": 4, "quantization_type": "fp4"},
    "nf4 without double": {"quantization_bit": 4, "double_quantization": False},
    "int8": {"quantization_bit": 8},
}


@pytest.fixture(scope="module")
def wide_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose linear layers hold 95 % of its weights, as in models people train."""
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("wide-llama")
    config = AutoConfig.from_pretrained(model_folder)
    config.hidden_size, config.intermediate_size, config.head_dim = 256, 768, 64
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    return folder


def num_bytes(module: nn.Module) -> int:
    """Everything that stays in memory for a module: weights, buffers and quantization states."""
    import bitsandbytes

    seen: dict[int, torch.Tensor] = {}

    def count(*tensors: object) -> None:
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                seen[tensor.data_ptr()] = tensor

    for one in module.modules():
        count(*one.parameters(recurse=False), *one.buffers(recurse=False))
        if isinstance(one, bitsandbytes.nn.Linear4bit):
            state = one.weight.quant_state
            count(state.absmax, state.code, state.offset)
            if state.nested:
                count(state.state2.absmax, state.state2.code)
        if isinstance(one, bitsandbytes.nn.Linear8bitLt):
            count(one.weight.CB, one.weight.SCB, one.state.CB, one.state.SCB)
    return sum(tensor.numel() * tensor.element_size() for tensor in seen.values())


def linear_layers(model: nn.Module) -> Iterator[nn.Module]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith("lm_head"):
            yield module


@pytest.mark.parametrize(
    ("kind", "linear_limit", "whole_limit"),
    [
        ("nf4", 0.135, 0.16),
        ("fp4", 0.135, 0.16),
        ("nf4 without double", 0.145, 0.17),
        ("int8", 0.26, 0.28),
    ],
)
def test_quantized_weights_take_under_40_percent_of_float32(
    fixed: Options, wide_folder: Path, kind: str, linear_limit: float, whole_limit: float
) -> None:
    wide = {**fixed, "model_name_or_path": str(wide_folder)}
    full = Run(wide).trainer._engine._base.model
    quantized = Run(wide, dtype="bfloat16", **KINDS[kind]).trainer._engine._base.model
    whole = num_bytes(quantized) / num_bytes(full)
    linear = sum(map(num_bytes, linear_layers(quantized))) / sum(
        map(num_bytes, linear_layers(full))
    )
    print(kind, f"linear layers {linear:.3f}, whole model {whole:.3f}")
    assert linear < linear_limit < 0.4
    assert whole < whole_limit < 0.4


def gradients(run: Run) -> torch.Tensor:
    engine = run.trainer._engine
    trial = engine._trials[0]
    (outcome,) = engine._passes.backward([trial])
    assert isinstance(outcome, StepLoss), outcome
    found = [weight.grad.flatten().clone() for weight in trial.parameters.values()]
    trial.optimizer.zero_grad()
    return torch.cat(found)


def dequantized(run: Run) -> dict[str, torch.Tensor]:
    """The linear layers' weights as floating-point numbers, by their names without adapters."""
    import bitsandbytes

    found = {}
    for name, module in run.trainer._engine._base.model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(
                module.weight.data, module.weight.quant_state
            )
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
            weight = module.state.CB.float() * module.state.SCB[:, None] / 127
        else:
            continue
        found[name.removesuffix(".base_layer")] = weight.float()
    return found


def compare(quantized: Run, fixed: Options, options: Options) -> tuple[float, float]:
    """Return the cosines, before and after a validation, to the dequantised float32 model."""
    reference = Run(fixed)
    reference.add(0, options)
    with torch.no_grad():
        modules = {
            name.removesuffix(".base_layer"): module
            for name, module in reference.trainer._engine._base.model.named_modules()
        }
        for name, weight in dequantized(quantized).items():
            modules[name].weight.copy_(weight)
    trained = quantized.trainer._engine._trials[0].parameters
    for name, weight in reference.trainer._engine._trials[0].parameters.items():
        weight.data.copy_(trained[name].data)
    reference.trainer._engine._trials[0].progress.step = quantized.trainer.step(0)
    expected = gradients(reference)
    before = gradients(quantized)
    engine = quantized.trainer._engine
    engine._course._measure(engine._trials[0])
    after = gradients(quantized)
    cosine = nn.functional.cosine_similarity
    return cosine(before, expected, dim=0).item(), cosine(after, expected, dim=0).item()


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, "bfloat16") for kind in KINDS), ("nf4", "float32")]
)
def test_gradients_are_those_of_the_dequantised_model_before_and_after_a_validation(
    fixed: Options, wide_folder: Path, kind: str, dtype: str
) -> None:
    wide = {**fixed, "model_name_or_path": str(wide_folder)}
    run = Run(wide, dtype=dtype, **KINDS[kind])
    run.add(0, A)
    run.advance(3)  # one validation is among them
    before, after = compare(run, wide, A)
    assert before == after > 0.999


@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="bitsandbytes repacks on such CPUs only"
)
def test_without_the_workaround_a_validation_spoils_the_gradients(
    fixed: Options, wide_folder: Path
) -> None:
    """Fails when bitsandbytes has mended it: then the workaround in base_model can go."""
    wide = {**fixed, "model_name_or_path": str(wide_folder)}
    run = Run(wide, dtype="bfloat16", **KINDS["nf4"])
    run.add(0, A)
    run.advance(1)
    for module in run.trainer._engine._base.model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True
    before, after = compare(run, wide, A)
    assert before > 0.999
    assert after < 0.9


@pytest.mark.parametrize(
    ("kind", "more"),
    [("nf4", "lora"), ("nf4", "dora"), ("nf4", "orthogonal"), ("int8", "modules_to_save")],
)
def test_a_quantized_trial_goes_on_from_its_saved_state_beside_others(
    fixed: Options, tmp_path: Path, kind: str, more: str
) -> None:
    options: Options = {
        **A,
        "lora_dropout": 0.1,
        "use_dora": more == "dora",
        "init_lora_weights": "orthogonal" if more == "orthogonal" else True,
        "modules_to_save": "norm" if more == "modules_to_save" else (),
    }
    alone, begun, resumed = (Run(fixed, dtype="bfloat16", **KINDS[kind]) for _ in range(3))
    alone.add(0, options)
    alone.advance(6)
    begun.add(0, options)
    begun.advance(3)
    begun.trainer.save(0, tmp_path / "saved")
    if more in ("lora", "orthogonal"):
        resumed.add(1, A)
        resumed.advance(1)
    resumed.add(0, options, tmp_path / "saved")
    resumed.advance(3)
    assert begun.told(0) + resumed.told(0) == alone.told(0)
    assert losses(alone.reports[0])[-1] < losses(alone.reports[0])[0]


def test_eight_bits_on_a_cpu_are_noted_as_slow(fixed: Options) -> None:
    run = Run(fixed, **KINDS["int8"])
    plan = run.trainer.plan({**run.fixed, **A})
    assert any("quantization_bit: 8 is several times slower than 4" in note for note in plan.notes)


def test_quantized_weights_are_merged_into_whole_ones(fixed: Options, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for kind in ("fp4", "int8"):
        run = Run(fixed, **KINDS[kind])
        run.add(0, A)
        run.advance(2)
        run.trainer.save(0, tmp_path / kind)
        whole = {**run.fixed, **A}
        run.trainer.merge(whole, tmp_path / kind / "adapter", tmp_path / f"{kind}-merged")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / f"{kind}-merged")
        assert {weight.dtype for weight in merged.parameters()} == {torch.float32}
