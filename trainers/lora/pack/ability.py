"""Whether a model can take the rows of several trials end to end; found out by trying.

A model that cannot trains its trials one after the other, each with the layout that every model of
transformers knows. Nothing but speed is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from trainers.lora.data.dataset import TOKEN_MULTIPLE, padded
from trainers.lora.model.base_model import BaseModel
from trainers.lora.model.modes import evaluating
from trainers.lora.pack.attention import attending_within
from trainers.lora.pack.loss import Head
from trainers.lora.pack.rows import Rows

_TOLERANCE = 0.05
"""How much of the spread of logits may be rounding: in bfloat16 it is near 0.01."""

_WIDEST = 8192
"""Tokens of a row that are tried at most."""

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class Ability:
    """What a model can do.

    Attributes:
        head: Its projection on the vocabulary; None if its trials take turns.
        problem: Why they do, else None.
    """

    head: Head | None
    problem: str | None = None


def find_ability(base: BaseModel, max_length: int) -> Ability:
    """Try on a base model without adapters whether its trials can share a pass.

    Args:
        base: The model.
        max_length: Of the trials' rows.
    """
    config = base.model.config.get_text_config()
    problem = (
        _draws_problem(base.model)
        or _outliers_problem(base)
        or _experts_problem(config)
        or _lengths_problem(base.model, max_length)
    )
    if problem is not None:
        return Ability(None, problem)
    layer = base.model.get_output_embeddings()
    if type(layer) is not nn.Linear or not layer.weight.is_floating_point():
        return Ability(None, f"its output layer is no plain linear layer ({type(layer).__name__})")
    head = Head(
        layer,
        # Cohere multiplies, Granite divides, Gemma bounds.
        scale=_number(config, "logit_scale") or 1 / (_number(config, "logits_scaling") or 1.0),
        softcap=_number(config, "final_logit_softcapping"),
    )
    problem = _layout_problem(base, head, max_length)
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


def _experts_problem(config: Any) -> str | None:
    if any((_number(config, name) or 0) > 1 for name in _EXPERTS):
        return "its experts multiply the tokens of all rows together, and sums depend on how many"
    return None


def _lengths_problem(model: Any, max_length: int) -> str | None:
    """Return whether one long row changes how the positions of all rows are encoded."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if "longrope" not in (kinds.values() if isinstance(kinds, dict) else (kinds,)):
            continue
        rope = module.config.rope_parameters
        for of_layers in rope.values() if isinstance(kinds, dict) else (rope,):
            limit = of_layers.get("original_max_position_embeddings")
            if limit is not None and max_length > limit:
                return (
                    f"a row of more than {limit} tokens changes the positions of all rows in its "
                    f"pass, and max_length is {max_length}"
                )
    return None


@torch.no_grad()
def _layout_problem(base: BaseModel, head: Head, max_length: int) -> str | None:
    """Compare rows end to end with each row by itself, and with another row beside it."""
    model = base.model
    widths = _widths(model, max_length)
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    one, two, other = (
        torch.randint(vocabulary, (width,), generator=generator) for width in (*widths, widths[0])
    )
    try:
        with evaluating(model):
            return _difference(base, head, one, two, other)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return f"it does not take rows end to end ({type(error).__name__}: {error})"


def _difference(base: BaseModel, head: Head, one: Tensor, two: Tensor, other: Tensor) -> str | None:
    """Return what is wrong when row ``two`` lies behind ``one``, or behind ``other``."""
    model = base.model
    together, beside_other = (_logits(base, head, [row, two]) for row in (one, other))
    keep = {"logits_to_keep": TOKEN_MULTIPLE} if base.selects_logits else {}
    for row, found in zip((one, two), together, strict=True):
        alone = model(input_ids=row[None].to(base.device), use_cache=False, **keep).logits[0]
        alone = alone[-TOKEN_MULTIPLE:].float()
        error = (found - alone).abs().mean().item()
        if not error <= _TOLERANCE * (alone - alone.mean()).abs().mean().item():
            return "it computes something else when rows lie end to end"
    # The same shapes and positions: what is not the same bits has seen the other row.
    if not torch.equal(together[1], beside_other[1]):
        return "rows that lie end to end see each other"
    return None


def _logits(base: BaseModel, head: Head, rows: list[Tensor]) -> list[Tensor]:
    """Return the logits of each row's last tokens when rows lie end to end.

    Of the last ones only: those of a row as wide as a window would be gigabytes.
    """
    joined = Rows(
        input_ids=torch.cat(rows),
        position_ids=torch.cat([torch.arange(len(row)) for row in rows]),
        targets=torch.cat(rows),
        pieces=tuple((len(row),) for row in rows),
        starts=(0, *accumulate(map(len, rows[:-1]))),
        num_tokens=sum(map(len, rows)),
        num_targets=sum(map(len, rows)),
    ).to(base.device)
    with attending_within(base.model, joined) as arguments:
        hidden = last_hidden(base.model, joined, arguments).split([len(row) for row in rows])
    return [head.logits(states[-TOKEN_MULTIPLE:]).float() for states in hidden]


def _widths(model: Any, max_length: int) -> tuple[int, int]:
    """Return the widths of two rows, one wider than the window of the model's attention.

    No wider than the trials' rows are: a model of billions of parameters is to be tried fast.
    """
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or 2**30
    longest = min(longest, padded(max_length))
    windows = [_number(config, name) for name in ("sliding_window", "attention_chunk_size")]
    wide = max(int(window or 0) for window in windows)
    wide = padded(wide) + 2 * TOKEN_MULTIPLE
    return min(wide if wide <= _WIDEST else 2 * TOKEN_MULTIPLE, longest), min(
        TOKEN_MULTIPLE, longest
    )


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
