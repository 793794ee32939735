"""transformers' losses are loaded without SciPy, and find it again where they look for it later."""

from __future__ import annotations

import sys

import pytest
import transformers.utils

from trainers.lora import no_detection


def test_making_a_trainer_loads_no_scipy(loaded_by_a_trainer: frozenset[str]) -> None:
    assert "transformers.loss.loss_utils" in loaded_by_a_trainer
    assert "scipy" not in loaded_by_a_trainer


@pytest.mark.parametrize("is_there", [True, False])
def test_afterwards_transformers_sees_scipy_as_before(
    is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = transformers.utils.is_scipy_available
    if not is_there:
        monkeypatch.setitem(sys.modules, "transformers.loss.loss_utils", None)
    no_detection.import_losses()
    assert transformers.utils.is_scipy_available is before
