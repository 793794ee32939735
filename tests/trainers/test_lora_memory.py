"""What is reckoned of a device's memory, and what follows when it runs out. Memory is pretended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainers.test_lora_trainer import Run, runs_alone
from trainers.lora import engine, memory
from trainers.lora.memory import GIB, DeviceMemory, Load, Room, is_out_of_memory
from trainers.lora.model.adapters import AdapterPool
from trainers.lora.pack.within_memory import WithinMemory
from trainers.protocol import Report

Options = dict[str, object]

A: Options = {"learning_rate": 3e-3, "max_steps": 6, "eval_steps": 2, "lora_dropout": 0.1}
TRIALS: dict[int, Options] = {
    0: {**A, "gradient_accumulation_steps": 2},
    1: {**A, "seed": 7, "lora_r": 4, "max_steps": 8},
    2: {**A, "seed": 9, "per_device_train_batch_size": 3, "max_steps": 8},
}
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Pretended:
    """A device of 24 GiB on which each pass takes 1 GiB beside what is there."""

    def __init__(self, device: object = None) -> None:
        self.has = 10 * GIB
        self.peaks_at: int | None = 11 * GIB
        self.holds: int | None = 24 * GIB

    def total(self) -> int | None:
        return self.holds

    def in_use(self) -> int:
        return self.has

    def forget_peak(self) -> None: ...

    def let_go(self) -> None: ...

    def peak(self) -> int | None:
        return self.peaks_at


def measured(num_tokens: int = 1024) -> Room:
    room = Room(Pretended())
    for _ in range(2):
        with room.of_passes([Load(0, num_tokens)], [num_tokens]):
            pass
    return room


class TestRoom:
    def test_trials_fit_as_long_as_one_pass_of_all_of_them_does(self) -> None:
        room = measured()  # 1 MiB a token; 95 % of 24 GiB less 10 GiB are 12.8 GiB
        assert room.holds([Load(0, 1024)] * 12)
        assert not room.holds([Load(0, 1024)] * 13)
        assert not room.holds([Load(0, 13 * 1024)])

    def test_where_passes_are_limited_only_their_tokens_count(self) -> None:
        room = Room(Pretended(), most_tokens=2048)
        for _ in range(2):
            with room.of_passes([Load(0, 1024)], [1024]):
                pass
        assert room.holds([Load(0, 1024)] * 1000)
        assert not room.holds([Load(0, 1024), Load(0, 13 * 1024)]), "a trial's batch is one pass"

    def test_weights_count_with_gradient_and_optimizer(self) -> None:
        room = Room(Pretended())
        assert room.holds([Load(GIB * 53 // 100, 0)])  # 24 bytes each: 12.8 GiB
        assert not room.holds([Load(GIB * 54 // 100, 0)])

    def test_the_very_first_pass_shows_what_all_share_as_it_sets_up_libraries(self) -> None:
        room = Room(Pretended())
        load = Load(
            GIB // 8, 1
        )  # half a GiB of weights; as much of gradients comes, and was stacked
        with room.of_passes([load], [1]):
            room._memory.has = 14 * GIB
        assert not room.is_measured
        assert room.base_gib == 12.5

    def test_a_pass_that_raises_is_not_learned_from(self) -> None:
        room = measured()
        with pytest.raises(KeyError), room.of_passes([Load(0, 1)], [1]):
            raise KeyError
        assert room.holds([Load(0, 1024)] * 12)

    def test_the_largest_validation_has_to_fit_too(self) -> None:
        room = measured()
        room._memory.peaks_at = 22 * GIB  # 12 GiB
        with room.of_validation():
            pass
        assert room.holds([Load(0, 1)])
        assert not room.holds([Load(GIB // 16, 1)])

    def test_what_ran_out_is_too_much_also_when_more_is_known(self) -> None:
        room = Room(Pretended())
        small, large = Load(1, 1024), Load(1, 2048)
        room.ran_out([small, large])
        assert not room.holds([small, large])
        assert not room.holds([small, large, small])
        for _ in range(2):
            with room.of_passes([small], [1024]):
                pass
        assert not room.holds([small, large])
        assert room.holds([small, small]), "less than that may fit"
        room.is_empty_again()
        assert room.holds([small, large])

    def test_where_nothing_can_be_measured_all_fit_until_memory_runs_out(self) -> None:
        device = Pretended()
        device.holds = device.peaks_at = None
        room = Room(device)
        for _ in range(3):
            with room.of_passes([Load(5, 10)], [10]):
                pass
        assert room.holds([Load(10**12, 10**12)] * 3)
        room.ran_out([Load(5, 10)] * 3)
        assert not room.holds([Load(5, 10)] * 3)
        assert room.holds([Load(5, 10)] * 2)


@dataclass
class Width:
    """In place of a part's rows."""

    width: int

    @property
    def rows(self) -> Any:
        return self


@pytest.mark.parametrize(
    ("widths", "passes"),
    [
        ([512, 512], [[512, 512]]),
        ([272] * 4, [[272] * 2] * 2),  # not three and one
        ([300] * 5, [[300] * 3, [300] * 2]),
        ([32, 4096, 32, 32], [[32], [4096], [32, 32]]),
        ([600] * 3, [[600]] * 3),
    ],
)
def test_passes_on_a_processor_are_of_like_size_and_not_larger_than_is_of_use(
    widths: list[int], passes: list[list[int]]
) -> None:
    made: list[list[int]] = []
    for device in ("cpu", "cuda"):
        made.clear()
        within = WithinMemory(torch.device(device))
        outcomes = within.run(list(map(Width, widths)), lambda parts: note(made, parts))
        assert [done.result for done in outcomes] == widths
        assert made == (passes if device == "cpu" else [widths])


def note(made: list[list[int]], parts: Sequence[Any]) -> list[int]:
    made.append([part.width for part in parts])
    return made[-1]


class TestDevice:
    def test_the_cpus_peak_is_seen(self) -> None:
        device = DeviceMemory(torch.device("cpu"))
        device.forget_peak()
        before = device.in_use()
        size = 300 * 2**20
        torch.ones(size // 4)
        peak = device.peak()
        assert peak is not None
        assert size * 0.9 < peak - before < size * 1.5
        device.forget_peak()
        assert device.peak() < before + size // 2

    def test_there_is_more_than_is_in_use(self) -> None:
        device = DeviceMemory(torch.device("cpu"))
        assert device.in_use() < device.total()

    @pytest.mark.parametrize(
        ("files", "left"),
        [
            ({"memory.max": "1000", "memory.current": "700", "stat": "inactive_file 50"}, [350]),
            ({"memory.max": "max", "memory.current": "700", "stat": "inactive_file 50"}, []),
            (
                {
                    "memory.limit_in_bytes": "900",
                    "memory.usage_in_bytes": "950",
                    "stat": "inactive_file 1\ntotal_inactive_file 20",
                },
                [0],
            ),
            ({"stat": "inactive_file 50"}, []),
        ],
    )
    def test_a_containers_limit_counts(
        self, tmp_path: Path, files: dict[str, str], left: list[int]
    ) -> None:
        for name, text in files.items():
            (tmp_path / ("memory.stat" if name == "stat" else name)).write_text(text + "\n")
        assert list(memory._left_in(tmp_path)) == left

    def test_errors_of_no_memory_are_told_from_others(self) -> None:
        with pytest.raises(RuntimeError) as caught:
            torch.empty(10**15)
        assert is_out_of_memory(caught.value)
        assert is_out_of_memory(FULL)
        assert is_out_of_memory(MemoryError())
        assert not is_out_of_memory(RuntimeError("shapes do not match"))


@pytest.fixture(scope="module")
def alone(fixed: Options) -> dict[int, list[tuple[object, ...]]]:
    return {trial: run.told(trial) for trial, run in runs_alone(fixed, TRIALS, 12).items()}


class Scarce(Run):
    """Has memory for so many trials only, when that is set."""

    def __init__(self, fixed: Options, *, in_training: bool = True) -> None:
        super().__init__(fixed)
        self.engine = self.trainer._engine
        self.limit = 99
        self.in_training = in_training
        self.num_calls = 0
        self.engine._base.model.base_model.register_forward_pre_hook(self._check)
        for trial, options in TRIALS.items():
            self.add(trial, options)

    def _check(self, *args: object) -> None:
        present = len(self.engine._trials) - len(self.engine._admission.displaced)
        if torch.is_grad_enabled() == self.in_training and present > self.limit:
            self.num_calls += 1
            raise FULL

    def round(self) -> list[Report]:
        """Advance once; keep all reports but those of trials that are displaced."""
        reports = self.trainer.advance()
        for report in reports:
            if report.end != "displaced":
                self.reports[report.trial].append(report)
        return reports

    def until_displaced(self) -> Report:
        for _ in range(10):
            for report in self.round():
                if report.end == "displaced":
                    return report
        raise AssertionError("nobody is displaced")

    def finish(self, trials: list[int]) -> None:
        for _ in range(20):
            for report in self.round():
                if report.end is not None:
                    self.trainer.remove(report.trial)
                    trials.remove(report.trial)
            if not trials:
                return
        raise AssertionError(f"{trials} do not end")


def test_out_of_memory_in_a_pack_the_youngest_makes_room_and_nobody_loses_anything(
    fixed: Options, alone: dict[int, list[tuple[object, ...]]], tmp_path: Path
) -> None:
    run = Scarce(fixed)
    for _ in range(3):
        run.round()
    assert run.engine._trials[0].step == 1, "it is in the middle of its second step"
    run.limit = 2
    report = run.until_displaced()
    assert (report.trial, report.step, report.validation) == (2, 3, 1)
    assert "out of memory with 3 trials on the device: CUDA out of memory" in report.message
    assert run.num_calls > 3, "the pass was made smaller first"
    run.trainer.save(2, tmp_path)
    run.trainer.remove(2)
    options = {**run.fixed, **TRIALS[2]}
    assert not run.trainer.fits(options), "it would be out of memory again"
    while not run.reports[0] or run.reports[0][-1].end is None:
        run.round()
        assert not run.trainer.fits(options)
    run.trainer.remove(0)
    assert run.trainer.fits(options)
    run.trainer.add(2, options, tmp_path)
    run.finish([2])
    assert {trial: run.told(trial) for trial in TRIALS} == alone


def test_alone_it_ends_with_the_figures_and_what_to_do(fixed: Options) -> None:
    run = Scarce(fixed)
    for trial in (1, 2):
        run.trainer.remove(trial)
    run.limit = 0
    (report,) = run.trainer.advance()
    assert (report.end, report.step, dict(report.metrics)) == ("out_of_memory", 0, {})
    for said in ("weights", "tokens", "GiB", "per_device_train_batch_size", "2.00 GiB"):
        assert said in report.message
    assert "\n" not in report.message
    assert run.trainer.advance() == [], "it is not stepped again"
    run.trainer.remove(0)
    run.limit = 99
    run.reports[1].clear()
    run.add(1, TRIALS[1])
    run.finish([1])


@pytest.mark.parametrize("place", ["update", "validation"])
def test_out_of_memory_beside_a_pass_it_goes_on_from_its_newest_snapshot(
    fixed: Options, alone: dict[int, list[tuple[object, ...]]], tmp_path: Path, place: str
) -> None:
    run = Scarce(fixed, in_training=False)
    while len(run.reports[1]) < 1:
        run.round()
    run.trainer.save(1, tmp_path / "1")
    run.trainer.save(0, tmp_path / "0")
    if place == "update":
        _break_update(run.engine._trials[1].optimizer)
    else:
        run.limit = 2
    report = run.until_displaced()
    broken = report.trial
    newest = {"update": (1, 2), "validation": (0, 0)}[place]
    assert (broken, report.step) == newest, "what came after a validation cannot be saved"
    run.trainer.remove(broken)
    run.limit = 99
    run.trainer.add(broken, {**run.fixed, **TRIALS[broken]}, tmp_path / str(broken))
    run.finish([0, 1, 2])
    assert {trial: run.told(trial) for trial in TRIALS} == alone


def _break_update(optimizer: torch.optim.Optimizer) -> None:
    step = optimizer.step

    def breaking() -> None:
        step()  # weights are changed by then
        raise FULL

    optimizer.step = breaking


def test_one_that_finds_no_room_to_join_is_not_there_and_changes_nobody(
    fixed: Options,
    alone: dict[int, list[tuple[object, ...]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Scarce(fixed)
    run.trainer.remove(2)
    run.round()
    start = AdapterPool._start

    def fail(*args: object) -> None:
        raise FULL

    monkeypatch.setattr(AdapterPool, "_start", fail)
    with pytest.raises(MemoryError, match="does not fit on the device"):
        run.add(2, TRIALS[2])
    monkeypatch.setattr(AdapterPool, "_start", start)
    assert not run.trainer.fits({**run.fixed, **TRIALS[2]})
    with pytest.raises(KeyError):
        run.trainer.step(2)
    run.finish([0, 1])
    run.add(2, TRIALS[2])
    run.finish([2])
    assert {trial: run.told(trial) for trial in TRIALS} == alone


def test_two_that_made_room_at_once_do_not_meet_again(fixed: Options, tmp_path: Path) -> None:
    run = Scarce(fixed)
    run.trainer.remove(0)
    for trial in (1, 2):
        _break_update(run.engine._trials[trial].optimizer)
    reports = run.trainer.advance()
    assert [(r.trial, r.end) for r in reports] == [(1, "displaced"), (2, "displaced")]
    for trial in (1, 2):
        run.trainer.remove(trial)
    run.add(1, TRIALS[1])
    assert not run.trainer.fits({**run.fixed, **TRIALS[2]})
    run.finish([1])
    assert run.trainer.fits({**run.fixed, **TRIALS[2]})


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Pretended]:
    made = Pretended()
    monkeypatch.setattr("trainers.lora.engine.DeviceMemory", lambda device: made)
    return made


def test_the_capacity_is_what_the_costliest_that_fits_leaves_room_for(
    fixed: Options, device: Pretended
) -> None:
    run = Run({**fixed, "max_length": 16})
    sizes = (1, 2, 4)  # all rows have 16 tokens; a pass of the largest was seen to take 1 GiB
    configs = [{**run.fixed, **A, "per_device_train_batch_size": size} for size in sizes]
    found = run.trainer.capacity(configs)
    assert found.num_trials == 12  # of 12.8 GiB, and the weights are nearly nothing
    assert (found.base_gib, found.total_gib) == (10, 24)
    assert 1 <= found.trial_gib < 1.01


def test_a_config_that_does_not_fit_does_not_count(
    fixed: Options, device: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run({**fixed, "max_length": 16})

    def check(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        if torch.is_grad_enabled() and kwargs["input_ids"].numel() > 4 * 16:
            raise FULL

    run.trainer._engine._base.model.base_model.register_forward_pre_hook(check, with_kwargs=True)
    configs = [{**run.fixed, **A, "per_device_train_batch_size": size} for size in (2, 4, 5)]
    assert run.trainer.capacity(configs).num_trials == 12
    assert run.trainer.capacity(configs[2:]).num_trials == 1


def test_trials_join_until_the_device_is_full(
    fixed: Options, device: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MOST_TOKENS", {})  # as on a GPU
    run = Run({**fixed, "max_length": 16})
    large = {**A, "per_device_train_batch_size": 10, "max_steps": 2}
    run.add(0, large)
    run.advance(2)
    run.trainer.remove(0)
    count = 0
    while count < 20 and run.trainer.fits({**run.fixed, **large}):
        run.add(count, large)
        count += 1
    assert count == 12
