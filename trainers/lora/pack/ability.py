"""Whether a model can take the rows of several trials end to end; found out by trying.

A model that cannot trains its trials one after the other, each with the layout that every model of
transformers knows. Nothing but speed is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainers.lora.data.dataset import TOKEN_MULTIPLE
from trainers.lora.model.base_model import BaseModel
from trainers.lora.pack.attention import attending_within
from trainers.lora.pack.loss import Head
from trainers.lora.pack.rows import Rows

_TOLERANCE = 0.05
"""How much of the spread of logits may be rounding: in bfloat16 it is near 0.01."""

_WIDEST = 8192
"""Tokens that are tried at most; a window beyond is that of no row that people fine-tune on."""


@dataclass(frozen=True)
class Ability:
    """What a model can do.

    Attributes:
        head: Its projection on the vocabulary; None if its trials take turns.
        problem: Why they do, else None.
    """

    head: Head | None
    problem: str | None = None


def find_ability(base: BaseModel) -> Ability:
    """Try on a base model without adapters whether its trials can share a pass."""
    problem = _draws_problem(base.model) or _outliers_problem(base)
    if problem is not None:
        return Ability(None, problem)
    layer = base.model.get_output_embeddings()
    if type(layer) is not nn.Linear or not layer.weight.is_floating_point():
        return Ability(None, f"its output layer is no plain linear layer ({type(layer).__name__})")
    config = base.model.config.get_text_config()
    head = Head(
        layer,
        # Cohere multiplies, Granite divides, Gemma bounds.
        scale=_number(config, "logit_scale") or 1 / (_number(config, "logits_scaling") or 1.0),
        softcap=_number(config, "final_logit_softcapping"),
    )
    problem = _layout_problem(base, head)
    return Ability(None if problem else head, problem)


def last_hidden(model: Any, rows: Rows, arguments: dict[str, object]) -> Tensor:
    """Return the model's last hidden states of rows end to end, shape (tokens, dimensions).

    Args:
        model: Of transformers, for causal language modelling.
        rows: On the model's device.
        arguments: What ``attending_within`` gave for them.
    """
    output = model.base_model(
        input_ids=rows.input_ids[None],
        position_ids=rows.position_ids[None],
        use_cache=False,
        **arguments,
    )
    states: Tensor = output.last_hidden_state
    return states[0]


def _draws_problem(model: nn.Module) -> str | None:
    """Return where the base model itself drops out: all trials would share one random stream."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            return f"the base model has dropout of its own ({name}: {module.p:g})"
        for attribute, value in vars(module).items():
            if "drop" in attribute and isinstance(value, float) and value > 0:
                return f"the base model has dropout of its own ({name}.{attribute}: {value:g})"
    return None


def _outliers_problem(base: BaseModel) -> str | None:
    is_int8 = any(type(module).__name__ == "Linear8bitLt" for module in base.model.modules())
    if is_int8 and base.device.type == "cuda":
        return "quantization_bit: 8 looks for outliers in all rows of a pass together"
    return None


@torch.no_grad()
def _layout_problem(base: BaseModel, head: Head) -> str | None:
    """Compare rows end to end with each row by itself, and with another row beside it."""
    model, device = base.model, base.device
    widths = _widths(model)
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    one, two, other = (
        torch.randint(vocabulary, (width,), generator=generator) for width in (*widths, widths[0])
    )
    was_training = model.training
    model.eval()
    try:
        together, beside_other = (_logits(base, head, [row, two]) for row in (one, other))
        for row, found in zip((one, two), together, strict=True):
            alone = model(input_ids=row[None].to(device), use_cache=False).logits[0].float()
            error = (found - alone).abs().mean().item()
            if not error <= _TOLERANCE * (alone - alone.mean()).abs().mean().item():
                return "it computes something else when rows lie end to end"
        leak = (together[1] - beside_other[1]).abs().mean().item()
        if not leak <= _TOLERANCE * (together[1] - together[1].mean()).abs().mean().item():
            return "rows that lie end to end see each other"
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return f"it does not take rows end to end ({type(error).__name__}: {error})"
    finally:
        model.train(was_training)
    return None


def _logits(base: BaseModel, head: Head, rows: list[Tensor]) -> list[Tensor]:
    """Return each row's logits, shape (tokens, vocabulary), when they lie end to end."""
    joined = Rows(
        input_ids=torch.cat(rows),
        position_ids=torch.cat([torch.arange(len(row)) for row in rows]),
        targets=torch.cat(rows),
        pieces=tuple(((len(row),), len(row)) for row in rows),
        are_joined=False,
        num_tokens=sum(map(len, rows)),
        num_targets=sum(map(len, rows)),
    ).to(base.device)
    with attending_within(base.model, joined) as arguments:
        logits = head.logits(last_hidden(base.model, joined, arguments)).float()
    return list(logits.split([len(row) for row in rows]))


def _widths(model: Any) -> tuple[int, int]:
    """Return the widths of two rows, one wider than the window of the model's attention."""
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or 2**30
    windows = [_number(config, name) for name in ("sliding_window", "attention_chunk_size")]
    wide = max(int(window or 0) for window in windows)
    wide = -(-wide // TOKEN_MULTIPLE) * TOKEN_MULTIPLE + 2 * TOKEN_MULTIPLE
    return min(wide if wide <= _WIDEST else 2 * TOKEN_MULTIPLE, longest), min(
        TOKEN_MULTIPLE, longest
    )


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
