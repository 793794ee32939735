"""Documents to test with."""

from __future__ import annotations

from typing import Any

FIXED: dict[str, object] = {"max_steps": 60, "max_length": 256, "model": "tiny"}


def lora() -> dict[str, Any]:
    """Return a document that uses every kind of parameter."""
    return {
        "space": {
            "learning_rate": {"type": "float", "low": "2e-5", "high": 2e-3, "log": True, "grid": 3},
            "lora_r": [8, 16, 32],
            "lora_alpha": {"value": "2 * lora_r"},
            "use_rslora": {
                "type": "categorical",
                "choices": [True, False],
                "when": "lora_r >= 32",
            },
            "batch": {"type": "int", "low": 2, "high": 8, "step": 2},
            "targets": {
                "type": "categorical",
                "choices": {"all": "all-linear", "attention": ["q_proj", "v_proj"]},
            },
            "lora_dropout": {
                "type": "float",
                "low": 0,
                "high": 0.3,
                "step": 0.1,
                "when": "targets == 'attention'",
            },
        },
        "constraints": ["batch * lora_r <= 128", "lora_dropout < 0.3 or batch > 2"],
        "enqueue": [{"learning_rate": 2e-4, "lora_r": 16, "batch": 4, "targets": "all"}],
    }
