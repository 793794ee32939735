"""bitsandbytes is loaded without PyTorch's compiler, which comes when a function needs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainers.lora import late_compiling


def test_making_a_trainer_loads_no_compiler(loaded_by_a_trainer: frozenset[str]) -> None:
    assert "bitsandbytes" in loaded_by_a_trainer
    assert "torch._inductor.compile_fx" not in loaded_by_a_trainer


def test_torch_compiles_as_before_when_bitsandbytes_is_loaded() -> None:
    before = torch.compile
    late_compiling.import_bitsandbytes()
    assert torch.compile is before


def test_a_function_is_compiled_once_at_its_first_call_with_its_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []

    def compiled(function: Callable[[int], int], **options: object) -> Callable[[int], int]:
        asked.append(options)
        return lambda value: function(value) * 10

    monkeypatch.setattr(torch, "compile", compiled)
    later = late_compiling._compile_later(lambda value: value + 1, dynamic=True)
    decorated = late_compiling._compile_later(fullgraph=True)(lambda value: value + 2)
    assert asked == []
    assert [later(1), later(2), decorated(1)] == [20, 30, 30]
    assert asked == [{"dynamic": True}, {"fullgraph": True}]


def test_a_broken_bitsandbytes_is_left_to_peft(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bitsandbytes.py").write_text("raise RuntimeError('no driver')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    before = torch.compile
    late_compiling.import_bitsandbytes()
    assert torch.compile is before
