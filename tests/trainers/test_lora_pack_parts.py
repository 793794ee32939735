"""The parts of the packed pass: its loss, attention and dropout, against plain computations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.lora.data.encoding import IGNORE_INDEX, Example
from trainers.lora.data.packing import join
from trainers.lora.pack import adapted_layer, loss
from trainers.lora.pack.ability import last_hidden
from trainers.lora.pack.attention import RowAttention, attending_within
from trainers.lora.pack.grid import Grid
from trainers.lora.pack.loss import Head, find_targets
from trainers.lora.pack.narrow_attention import attend_narrow, suits
from trainers.lora.pack.route import Place, Run
from trainers.lora.pack.rows import Rows, join_rows, lay_out

VOCABULARY, SIZE = 50, 24
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"softcap": 2.0},
    "scale": {"scale": 0.25},
    "all": {"bias": True, "softcap": 1.5, "scale": 3.0},
}


def make_head(bias: bool = False, **options: Any) -> tuple[Head, nn.Linear]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(SIZE, VOCABULARY, bias=bias)
    return Head(layer.requires_grad_(False), **options), layer


def make_targets(counts: Sequence[int], widths: Sequence[int]) -> Tensor:
    """Return targets with so many of them at random tokens of each trial."""
    generator = torch.Generator().manual_seed(1)
    parts = []
    for count, width in zip(counts, widths, strict=True):
        part = torch.full((width,), IGNORE_INDEX)
        places = torch.randperm(width, generator=generator)[:count]
        part[places] = torch.randint(VOCABULARY, (count,), generator=generator)
        parts.append(part)
    return torch.cat(parts)


WIDTHS = (64, 96, 64, 32)
COUNTS = (33, 64, 0, 5)


def hidden_states() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(sum(WIDTHS), SIZE, generator=generator).requires_grad_()


def weights_of(counts: Sequence[int]) -> Tensor:
    return torch.cat([torch.full((count,), 0.5 + number) for number, count in enumerate(counts)])


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("elements", [2**25, 32 * VOCABULARY])
def test_the_loss_is_cross_entropys_with_autograd(
    name: str, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loss.CHUNK_ELEMENTS, "cpu", elements)
    options = dict(HEADS[name])
    head, layer = make_head(**options)
    target_ids = make_targets(COUNTS, WIDTHS)
    targets = find_targets(target_ids, WIDTHS)
    assert targets.counts == COUNTS
    hidden = hidden_states()
    total, losses = head.loss(hidden, targets, weights_of(COUNTS))
    (total * 3).backward()

    plain = hidden_states()
    logits = layer(plain) * options.get("scale", 1.0)
    if "softcap" in options:
        logits = torch.tanh(logits / options["softcap"]) * options["softcap"]
    expected = functional.cross_entropy(
        logits, target_ids, reduction="none", ignore_index=IGNORE_INDEX
    )[target_ids != IGNORE_INDEX]
    (3 * (expected * weights_of(COUNTS)).sum()).backward()
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    assert total.item() == pytest.approx((expected * weights_of(COUNTS)).sum().item(), rel=1e-5)
    assert hidden.grad is not None
    assert plain.grad is not None
    torch.testing.assert_close(hidden.grad, plain.grad, rtol=1e-4, atol=1e-6)
    assert hidden.grad[target_ids == IGNORE_INDEX].eq(0).all()
    of_first, *_, of_last = head.sums(hidden.detach(), targets)
    assert of_first.loss == pytest.approx(expected[:33].sum().item(), rel=1e-5)
    hits = logits.argmax(-1)[target_ids != IGNORE_INDEX] == target_ids[target_ids != IGNORE_INDEX]
    assert (of_first.num_correct, of_last.num_correct) == (hits[:33].sum(), hits[-5:].sum())


@pytest.mark.parametrize("rows", [32, 64, 96])
def test_chunks_change_no_bit(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    head, _ = make_head(softcap=2.0)
    targets = find_targets(make_targets(COUNTS, WIDTHS), WIDTHS)
    found = []
    for elements in (2**25, rows * VOCABULARY + 7):
        monkeypatch.setitem(loss.CHUNK_ELEMENTS, "cpu", elements)
        hidden = hidden_states()
        total, losses = head.loss(hidden, targets, weights_of(COUNTS))
        total.backward()
        assert hidden.grad is not None
        found.append((losses, hidden.grad, head.sums(hidden.detach(), targets)))
        chunks = head.chunks(hidden.detach(), targets)
        assert max(len(chunk) for chunk, _ in chunks) == min(rows, 160) or elements == 2**25
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]


def test_only_targets_are_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    head, _ = make_head()
    projected: list[int] = []
    healthy = Head.logits

    def counted(self: Head, hidden: Tensor) -> Tensor:
        projected.append(len(hidden))
        return healthy(self, hidden)

    monkeypatch.setattr(Head, "logits", counted)
    counts = (3, 1, 0, 32)
    targets = find_targets(make_targets(counts, WIDTHS), WIDTHS)
    head.loss(hidden_states(), targets, weights_of(counts))
    assert projected == [32 + 32 + 0 + 32]


def test_a_pass_without_any_target_has_no_loss_and_no_gradient() -> None:
    head, _ = make_head()
    targets = find_targets(torch.full((64,), IGNORE_INDEX), (32, 32))
    hidden = torch.randn(64, SIZE, requires_grad=True)
    total, losses = head.loss(hidden, targets, torch.ones(0))
    total.backward()
    assert hidden.grad is not None
    assert (total.item(), len(losses), hidden.grad.abs().sum().item()) == (0, 0, 0)
    assert [(sums.loss, sums.num_correct) for sums in head.sums(hidden.detach(), targets)] == [
        (0, 0),
        (0, 0),
    ]


def states(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(torch.bfloat16).requires_grad_()


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(("rows", "heads", "key_heads"), [(3, 4, 4), (2, 6, 2), (1, 4, 1)])
@pytest.mark.parametrize("joined", [False, True])
def test_narrow_attention_is_that_of_float32(
    window: int | None, rows: int, heads: int, key_heads: int, joined: bool
) -> None:
    width, size = 64, 16
    shapes = ((rows, heads, width, size), *((rows, key_heads, width, size),) * 2)
    query, key, value = (states(*shape, seed=seed) for seed, shape in enumerate(shapes))
    examples = [example(30, 25) if joined else example(60) for _ in range(rows)]
    within = RowAttention(lay_out(examples), "sdpa")
    assert suits(query, {"dropout": 0.0, "softcap": None})
    output = attend_narrow(query, key, value, within.added_mask(0, window, query), 0.3)
    place = torch.arange(width)
    seen = (place[:, None] >= place) & (place[:, None] - place < (window or width))
    if joined:
        number = torch.tensor([0] * 30 + [1] * 25 + [2] * 9)
        seen &= number[:, None] == number
    plain = [of.detach().float().requires_grad_() for of in (query, key, value)]
    expected = functional.scaled_dot_product_attention(
        *plain, attn_mask=seen, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(9))
    output.backward(gradient.to(output.dtype))
    expected.backward(gradient)
    pairs = [(output, expected)] + [
        (of.grad, other.grad) for of, other in zip((query, key, value), plain, strict=True)
    ]
    for one, other in pairs:
        assert one is not None
        assert other is not None
        assert ((one.float() - other).norm() / other.norm()).item() < 0.01


@pytest.mark.parametrize("asked", ["softcap", "s_aux", "dropout", "position_bias"])
def test_narrow_attention_declines_what_it_does_not_know(asked: str) -> None:
    query = states(1, 2, 32, 8, seed=0)
    assert not suits(query, {asked: 0.5})
    assert not suits(query.float(), {})
    assert not suits(states(1, 2, 544, 8, seed=0), {})


def example(*lengths: int, seed: int = 0) -> Example:
    generator = torch.Generator().manual_seed(seed + sum(lengths))
    parts = []
    for length in lengths:
        ids = torch.randint(3, 300, (length,), generator=generator, dtype=torch.int32)
        labels = ids.clone()
        labels[: length // 3] = IGNORE_INDEX
        parts.append(Example(ids, labels, False, 0, "x:1", length // 3))
    return parts[0] if len(parts) == 1 else join(parts)


@pytest.fixture(scope="module", params=["sdpa", "eager", "bfloat16"])
def model(request: pytest.FixtureRequest, model_folder: Any) -> Any:
    from transformers import AutoModelForCausalLM

    is_half = request.param == "bfloat16"
    return AutoModelForCausalLM.from_pretrained(
        model_folder,
        dtype=torch.bfloat16 if is_half else torch.float32,
        attn_implementation="sdpa" if is_half else request.param,
    ).requires_grad_(False)


def losses_of(model: Any, rows: Rows) -> Tensor:
    head = Head(model.get_output_embeddings())
    with attending_within(model, rows) as arguments:
        hidden = last_hidden(model, rows, arguments)
        targets = find_targets(rows.targets, (rows.width,))
        return head.loss(hidden, targets, torch.ones(rows.num_targets))[1]


def test_examples_joined_in_a_row_have_their_own_losses_and_see_nothing_of_each_other(
    model: Any,
) -> None:
    alone = [example(length, seed=length) for length in (20, 35, 8)]
    rows = [join(alone), example(40, 11, seed=5)]
    together = losses_of(model, join_rows([lay_out(rows[1:]), lay_out(rows[:1])]))
    tail = together[-sum(of.num_targets for of in alone) :]
    expected = torch.cat([losses_of(model, lay_out([of])) for of in alone])
    tolerance = 0.03 if model.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(tail, expected, rtol=tolerance, atol=0)
    changed = [join([example(20, seed=77), *alone[1:]]), rows[1]]
    beside = losses_of(model, join_rows([lay_out(changed[1:]), lay_out(changed[:1])]))
    first = alone[0].num_targets
    assert torch.equal(beside[-len(tail) + first :], tail[first:])
    assert not torch.equal(beside[-len(tail) : -len(tail) + first], tail[:first])


CPU = torch.device("cpu")


def place(trial: int, slot: int, start: int, dropout: float, seed: int) -> Place:
    return Place(trial, 16, slot, start, 320, 1.0, dropout, seed)


def test_dropout_has_each_trials_share_and_stream() -> None:
    places = tuple(
        place(number, number, 320 * number, dropout, seed)
        for number, (dropout, seed) in enumerate([(0.1, 5), (0.0, 6), (0.5, 7), (0.1, 5)])
    )
    states = torch.ones(4, 320, 64)
    masks = adapted_layer._draw(Run(places, CPU), states, "a.layer")
    shares = [(mask == 0).float().mean().item() for mask in masks]
    assert shares == pytest.approx([0.1, 0.0, 0.5, 0.1], abs=0.01)
    assert torch.equal(masks[0], masks[3])
    assert masks[2].unique().tolist() == [0.0, 2.0]
    moved = Run((place(9, 4, 0, 0.5, 7),), CPU)
    assert torch.equal(adapted_layer._draw(moved, states[:1], "a.layer")[0], masks[2])
    assert not torch.equal(adapted_layer._draw(moved, states[:1], "b.layer")[0], masks[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 1.5, 2**0.5])
def test_a_scale_gives_the_same_bits_whoever_the_neighbours_are(
    scale: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (
        torch.randn(2, 96, 96, generator=generator).to(dtype).repeat(2, 1, 1) for _ in range(2)
    )
    places = [replace(place(n, n, 96 * n, 0.0, 0), scale=scale, num_tokens=96) for n in range(4)]
    alike = Run(tuple(places[:2]), CPU).scaled(one[:2], other[:2])
    mixed = Run((*places[:2], *(replace(of, scale=3.0) for of in places[2:])), CPU)
    assert torch.equal(mixed.scaled(one, other)[:2], alike)
    assert torch.equal(alike, torch.bmm(one[:2], other[:2]) * scale)


def test_only_the_sum_of_a_trials_rows_is_padded() -> None:
    rows = lay_out([example(20), example(35), example(8)])
    assert (rows.num_tokens, rows.width) == (63, 64)
    assert rows.starts == (0, 35, 55)
    joined = join_rows([rows, lay_out([example(33)])])
    assert (joined.width, joined.starts) == (128, (0, 35, 55, 64))
    assert joined.lengths == (35, 20, 8, 33)


def test_rows_are_attended_side_by_side_by_width_whosever_they_are() -> None:
    rows = join_rows([lay_out([example(60), example(20)]), lay_out([example(33), example(8)])])
    grid = Grid.of(rows.starts, rows.lengths, rows.width)
    assert grid.order == (0, 2, 1, 3)
    assert grid.runs == ((2, 64), (2, 32))
    assert not grid.is_plain
    whole = lay_out([example(64), example(32)])
    assert Grid.of(whole.starts, whole.lengths, whole.width).is_plain


def test_tokens_come_back_from_attention_where_they_were_and_padding_has_no_gradient() -> None:
    rows = join_rows([lay_out([example(60), example(20)]), lay_out([example(33), example(8)])])
    grid = Grid.of(rows.starts, rows.lengths, rows.width)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(rows.width, 2, 4, generator=generator).requires_grad_()
    back = grid.gather(grid.spread(tokens))
    is_real = torch.zeros(rows.width, dtype=torch.bool)
    for start, length in zip(rows.starts, rows.lengths, strict=True):
        is_real[start : start + length] = True
    assert torch.equal(back[is_real], tokens[is_real])
    gradient = torch.randn(back.shape, generator=generator)
    back.backward(gradient)
    assert tokens.grad is not None
    assert torch.equal(tokens.grad[is_real], gradient[is_real])
    assert tokens.grad[~is_real].eq(0).all()
