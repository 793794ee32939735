"""Packs several training examples into one row, without letting them see each other.

Which ones share a row depends on their lengths and ``data_seed``. A row's positions begin again
with each example; from that transformers' masks keep them apart.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainers.lora.data.encoding import IGNORE_INDEX, Example
from trainers.lora.model.modes import evaluating

_LEAK_TOLERANCE = 0.05
"""How much of a real leak's effect may be rounding."""


def pack(examples: Sequence[Example], max_length: int, seed: int) -> list[Example]:
    """Return rows that hold all examples, each of up to ``max_length`` tokens.

    Best-fit decreasing: from the longest on, each example goes where it leaves the least room.
    Inside a row, and from row to row by their first one, examples keep their order.
    """
    return [
        join([examples[index] for index in row])
        for row in best_fit([len(example.input_ids) for example in examples], max_length, seed)
    ]


def best_fit(lengths: Sequence[int], capacity: int, seed: int) -> list[list[int]]:
    """Return which items share a bin; ``seed`` decides among items of the same length."""
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda item: -lengths[item])
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, bin), sorted
    for item in order:
        length = lengths[item]
        place = bisect_left(rooms, (length, -1))
        if place == len(rooms):
            room, number = capacity, len(bins)
            bins.append([])
        else:
            room, number = rooms.pop(place)
        bins[number].append(item)
        if room > length:
            insort(rooms, (room - length, number))
    return sorted(sorted(row) for row in bins)


def join(examples: Sequence[Example]) -> Example:
    """Return one row of several examples. No example's first token follows from the one before."""
    labels = [example.labels.clone() for example in examples]
    for label in labels:
        label[0] = IGNORE_INDEX
    return Example(
        input_ids=torch.cat([example.input_ids for example in examples]),
        labels=torch.cat(labels),
        truncated=any(example.truncated for example in examples),
        num_skipped_answers=sum(example.num_skipped_answers for example in examples),
        where="+".join(example.where for example in examples),
        prompt_length=examples[0].prompt_length,
        lengths=tuple(length for example in examples for length in pieces(example)),
    )


def pieces(example: Example) -> tuple[int, ...]:
    """Return the tokens of each example in a row, also of a row of one."""
    return example.lengths or (len(example.input_ids),)


def positions(lengths: Sequence[int], width: int) -> Tensor:
    """Return each token's position in its own example, shape (width,); padding is one more."""
    parts = [*lengths, width - sum(lengths)]
    return torch.cat([torch.arange(length) for length in parts])


def check_keeps_apart(model: Any, device: torch.device) -> None:
    """Try on the model whether one example of a row changes what another one gives.

    Raises:
        ValueError: It does, or the model takes no positions.
    """
    size = model.config.get_text_config().vocab_size
    tokens = torch.arange(1, 17, device=device).remainder(size)[None]
    other = tokens.clone()
    other[:, :8] = (tokens[:, :8] + 17).remainder(size)
    apart = positions([8, 8], 16).to(device)[None]
    try:
        with torch.no_grad(), evaluating(model):
            given = {"position_ids": apart, "attention_mask": None, "use_cache": False}
            one, changed = (model(input_ids=row, **given).logits[:, 8:] for row in (tokens, other))
            plain = model(input_ids=tokens, use_cache=False).logits[:, 8:]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"packing: this model ({type(model).__name__}) does not take the positions of several "
            f"examples in a row ({error}). Leave packing out."
        ) from error
    leak = (one - changed).float().abs().max().item()
    seen = (one - plain).float().abs().max().item()
    if not leak <= _LEAK_TOLERANCE * seen:
        raise ValueError(
            f"packing: in this model ({type(model).__name__}, attention "
            f"{model.config._attn_implementation}) examples of one row see each other. Leave "
            f"packing out, or give another attn_implementation, as in 'attn_implementation: sdpa'."
        )
