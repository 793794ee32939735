"""One pass: the rows of several trials through the model once, forward and back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.lora.model.base_model import BaseModel
from trainers.lora.model.modes import train
from trainers.lora.model.neftune import Noise, noisy_embeddings
from trainers.lora.pack.ability import last_hidden
from trainers.lora.pack.attention import attending_within
from trainers.lora.pack.lean.layers import LeanLayers
from trainers.lora.pack.loss import Head, Sums, Targets, find_targets
from trainers.lora.pack.rows import Rows, join_rows
from trainers.lora.pack.stacks import Part, Stacks


@dataclass(frozen=True)
class TrainPart:
    """What one trial puts into a training pass.

    Attributes:
        trial: Its key.
        rows: Of one of its batches.
        weight: What the loss of one target counts: 1 / the targets of the whole step, scaled.
        dropout_seed: Of what its adapter drops in this pass.
        noise_alpha: Strength of the noise on its embeddings; None or 0 for none.
        noise_seed: Of this noise.
        is_first: Whether the step begins with this batch; else its gradients are added to.
    """

    trial: int
    rows: Rows
    weight: float
    dropout_seed: int
    noise_alpha: float | None
    noise_seed: int
    is_first: bool


@dataclass(frozen=True)
class EvalPart:
    """What one trial puts into a pass of a validation.

    Attributes:
        trial: Its key.
        rows: Of one batch of examples.
    """

    trial: int
    rows: Rows


class PackedPass:
    """Takes several trials through one base model, each with its own adapter."""

    def __init__(self, base: BaseModel, stacks: Stacks, head: Head) -> None:
        self._base = base
        self._stacks = stacks
        self._head = head
        self._lean = LeanLayers(base.model)

    def backward(self, parts: Sequence[TrainPart]) -> list[float]:
        """Leave each trial's gradients in its weights; return the losses summed over targets."""
        parts_of = {part.trial: part for part in parts}
        order = self._stacks.in_order(list(parts_of))
        placed = [parts_of[trial] for trial in order]
        routes = [Part(part.trial, part.rows.width, part.dropout_seed) for part in placed]
        train(self._base.model)
        with (
            noisy_embeddings(self._base.model, _noises(placed)),
            self._hidden(routes, [part.rows for part in placed]) as (hidden_TD, targets),
        ):
            weights = [
                torch.full((count,), part.weight, device=hidden_TD.device)
                for part, count in zip(placed, targets.counts, strict=True)
            ]
            total, losses_N = self._head.loss(hidden_TD, targets, torch.cat(weights))
            total.backward()
        sums = [of_trial.sum() for of_trial in losses_N.split(list(targets.counts))]
        found = dict(zip(order, torch.stack(sums).tolist(), strict=True))
        self._stacks.take_gradients({part.trial: not part.is_first for part in placed})
        return [found[part.trial] for part in parts]

    @torch.no_grad()  # not inference_mode: what layers cache here must be usable in training
    def measure(self, parts: Sequence[EvalPart]) -> list[Sums]:
        """Return what each part's targets add up to; the model evaluates already."""
        numbers = {part.trial: number for number, part in enumerate(parts)}
        order = [numbers[trial] for trial in self._stacks.in_order(list(numbers))]
        placed = [parts[number] for number in order]
        routes = [Part(part.trial, part.rows.width) for part in placed]
        with self._hidden(routes, [part.rows for part in placed]) as (hidden_TD, targets):
            found = dict(zip(order, self._head.sums(hidden_TD, targets), strict=True))
        return [found[number] for number in range(len(parts))]

    @contextlib.contextmanager
    def _hidden(
        self, routes: Sequence[Part], all_rows: Sequence[Rows]
    ) -> Iterator[tuple[Tensor, Targets]]:
        """Yield the last hidden states and where the targets are; lasts while going back."""
        rows = join_rows(all_rows).to(self._base.device)
        with (
            self._stacks.routed(routes),
            self._lean.in_place(),
            attending_within(self._base.model, rows) as arguments,
        ):
            hidden_TD = last_hidden(self._base.model, rows, arguments)
            targets = rows.targets.to(hidden_TD.device)
            yield hidden_TD, find_targets(targets, tuple(rows.width for rows in all_rows))


def _noises(parts: Sequence[TrainPart]) -> list[Noise]:
    noises, start = [], 0
    for part in parts:
        if part.noise_alpha:
            noises.append(Noise(start, part.rows.lengths, part.noise_alpha, part.noise_seed))
        start += part.rows.width
    return noises
