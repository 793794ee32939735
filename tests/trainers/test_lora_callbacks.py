"""Callbacks of one trial: the order of events is the Trainer's, and no other trial is reached."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from tests.trainers import own_callbacks
from trainers.lora.callbacks.own_callback import CallbackError
from trainers.lora.callbacks.trial_callbacks import TrialCallbacks, Wishes
from trainers.lora.options import LoraOptions

OWN = "tests.trainers.own_callbacks"
EARLY_STOPPING = "transformers:EarlyStoppingCallback"
STEPS_PER_EPOCH = 3
EVAL_STEPS = 2
LOSSES = [3.0, 2.0, 2.5, 1.95, 1.9, 1.5, 1.6, 1.7, 1.8]

Entry = str | Mapping[str, object]


@pytest.fixture(autouse=True)
def _clear() -> None:
    own_callbacks.SEEN.clear()


@pytest.fixture
def parameters() -> dict[str, nn.Parameter]:
    parameters = {name: nn.Parameter(torch.full((2, 2), 3.0)) for name in ("a.weight", "b.weight")}
    parameters["a.weight"].grad = torch.ones(2, 2)
    return parameters


@pytest.fixture
def make(fixed: dict[str, object], parameters: dict[str, nn.Parameter]) -> Any:
    def make(
        *entries: Entry, num_steps: int = 18, tokenizer: object = None, **options: object
    ) -> TrialCallbacks:
        given = {"max_steps": num_steps, "eval_steps": EVAL_STEPS, "logging_steps": 2}
        return TrialCallbacks(
            entries,
            LoraOptions.model_validate({**fixed, **given, **options}),
            num_steps,
            STEPS_PER_EPOCH,
            parameters,
            LlamaConfig(vocab_size=7),
            torch.device("cpu"),
            tokenizer,
        )

    return make


def line(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step / STEPS_PER_EPOCH,
        "loss": 1 / step,
        "learning_rate": 0.1,
        "grad_norm": None,
    }


def drive(
    callbacks: TrialCallbacks,
    validations: Iterable[Mapping[str, float]] = (),
    steps: range = range(1, 19),
) -> int:
    """Do what the engine does; return the step after which the trial ended."""
    found = iter(validations)
    wishes = Wishes()
    for step in steps:
        callbacks.step_begin()
        callbacks.pre_optimizer_step()
        callbacks.optimizer_step()
        is_due = bool(validations) and step % EVAL_STEPS == 0
        wishes = callbacks.step_end(line(step), is_due, step == 18)
        if wishes.evaluate:
            wishes = callbacks.evaluated(next(found))
        if wishes.save:
            wishes = callbacks.saved()
        if callbacks.is_epoch_end:
            wishes = callbacks.epoch_end()
        if wishes.stop:
            break
    if wishes.stop:
        callbacks.train_end()
    return step


def losses(values: Iterable[float] = LOSSES) -> list[dict[str, float]]:
    return [{"eval_loss": value} for value in values]


class ScriptedTrainer(Trainer):
    """transformers' own loop around a model of one weight; its validations are given."""

    def __init__(
        self, folder: Path, validations: list[dict[str, float]], callbacks: list[Any], **args: Any
    ) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(1))

            def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
                return {"loss": ((self.weight * x - labels) ** 2).mean()}

        rows = [{"x": torch.ones(1), "labels": torch.ones(1)} for _ in range(STEPS_PER_EPOCH)]
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=18,
            per_device_train_batch_size=1,
            eval_strategy="steps",
            eval_steps=EVAL_STEPS,
            save_steps=EVAL_STEPS,
            logging_steps=2,
            load_best_model_at_end=True,
            save_only_model=True,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            **args,
        )
        self._validations = iter(validations)
        super().__init__(Model(), arguments, train_dataset=rows, eval_dataset=rows)
        self.callback_handler.callbacks[1:] = callbacks  # the first is the default flow

    def evaluation_loop(self, *_: Any, **__: Any) -> EvalLoopOutput:
        return EvalLoopOutput(None, None, dict(next(self._validations)), 1)


def heard() -> list[tuple[Any, ...]]:
    """Return what ``Recorder`` heard, as far as it is the same with any trainer."""
    return [
        (event, seen["step"], round(seen["epoch"], 6), seen["control"], seen["best"])
        for event, seen in own_callbacks.SEEN
        if event != "on_init_end" and "train_runtime" not in seen["logs"]
    ]


@pytest.mark.parametrize(
    ("metric", "validations", "patience", "threshold", "stops_at"),
    [
        ("eval_loss", losses(), 1, 0.0, 6),
        ("eval_loss", losses(), 2, 0.0, 16),
        # Not counted as gains, the small steps still move the best: 2.0, 1.95, 1.9.
        ("eval_loss", losses(), 2, 0.1, 8),
        ("eval_loss", losses(), 4, 0.1, 18),
        ("eval_f1", [{"eval_loss": 1 / (i + 1), "eval_f1": i % 4} for i in range(9)], 2, 0.0, 12),
        ("eval_loss", losses([2.0, float("nan"), float("nan"), 1.0]), 2, 0.0, 6),
    ],
)
def test_events_control_and_early_stopping_are_those_of_transformers_trainer(
    make: Any,
    tmp_path: Path,
    metric: str,
    validations: list[dict[str, float]],
    patience: int,
    threshold: float,
    stops_at: int,
) -> None:
    from transformers import EarlyStoppingCallback

    trainer = ScriptedTrainer(
        tmp_path,
        validations,
        [own_callbacks.Recorder(), EarlyStoppingCallback(patience, threshold)],
        metric_for_best_model=metric,
    )
    trainer.train()
    assert trainer.state.global_step == stops_at
    by_transformers = heard()
    own_callbacks.SEEN.clear()
    callbacks = make(
        f"{OWN}:Recorder",
        {
            "path": EARLY_STOPPING,
            "early_stopping_patience": patience,
            "early_stopping_threshold": threshold,
        },
        load_best_model_at_end=True,
        metric_for_best_model=metric.replace("eval_f1", "f1"),
        eval_metrics=["classification"],
    )
    given = [{name.replace("eval_f1", "f1"): v for name, v in m.items()} for m in validations]
    assert drive(callbacks, given) == stops_at
    assert heard() == by_transformers
    history = [set(entry) for entry in callbacks.state()["trainer_state"]["log_history"]]
    assert all({"epoch", "step"} < names for names in history)


def test_a_callback_reads_its_trials_arguments_state_metrics_logs_and_weights(
    make: Any, parameters: dict[str, nn.Parameter], tokenizer: object
) -> None:
    callbacks = make(
        f"{OWN}:Recorder",
        tokenizer=tokenizer,
        learning_rate=0.125,
        per_device_train_batch_size=5,
        gradient_checkpointing=True,
        warmup_steps=0.25,
        seed=7,
        lr_scheduler_type="cosine",
        eval_steps=0.25,
    )
    drive(callbacks, [{"eval_loss": 2.0, "perplexity": 9.0, "train_loss": 1.0}] * 9)
    by_event = dict(own_callbacks.SEEN)  # the last of each
    arguments = by_event["on_step_end"]["args"]
    assert isinstance(arguments, TrainingArguments)
    assert (arguments.learning_rate, arguments.per_device_train_batch_size) == (0.125, 5)
    assert (arguments.train_batch_size, arguments.warmup_steps, arguments.seed) == (5, 0.25, 7)
    assert (arguments.lr_scheduler_type, arguments.eval_strategy) == ("cosine", "steps")
    assert arguments.activation_checkpointing
    assert arguments.report_to == []
    assert (arguments.metric_for_best_model, arguments.greater_is_better) == ("eval_loss", False)
    assert (arguments.world_size, arguments.device, arguments.n_gpu) == (1, torch.device("cpu"), 0)
    seen = by_event["on_evaluate"]
    assert seen["max_steps"] == 18
    assert seen["metrics"] == {
        "eval_loss": 2.0,
        "eval_perplexity": 9.0,
        "perplexity": 9.0,
        "train_loss": 1.0,
        "epoch": 6.0,
    }
    assert seen["weights"].keys() == parameters.keys()
    assert all(map(torch.equal, seen["weights"].values(), parameters.values()))
    assert torch.equal(seen["gradients"]["a.weight"], torch.ones(2, 2))
    assert seen["gradients"]["b.weight"] is None
    assert seen["config"].vocab_size == 7
    assert {"model", "processing_class", "optimizer", "lr_scheduler"} <= seen["given"]
    logs = [seen["logs"]["loss"] for event, seen in own_callbacks.SEEN if "loss" in seen["logs"]]
    assert logs[:2] == [(1 / 1 + 1 / 2) / 2, (1 / 3 + 1 / 4) / 2]  # means since the log before
    assert callbacks.state()["trainer_state"]["eval_steps"] == 5  # a quarter of 18, rounded up
    assert callbacks.state()["trainer_state"]["num_train_epochs"] == 6


def test_making_callbacks_touches_neither_the_process_nor_the_disk(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.chdir(tmp_path)
    environment = dict(os.environ)
    drive(make(EARLY_STOPPING, "transformers:PrinterCallback"), losses())
    assert PartialState._shared_state == {}
    assert list(tmp_path.iterdir()) == []
    assert dict(os.environ) == environment


def test_what_a_callback_changes_is_its_own_trials_copy(
    make: Any, parameters: dict[str, nn.Parameter], tokenizer: Any
) -> None:
    before = copy.deepcopy(parameters)
    eos_token = tokenizer.eos_token
    metrics = losses()
    vandal = make(f"{OWN}:Vandal", tokenizer=tokenizer)
    neighbour = make(f"{OWN}:Recorder", tokenizer=tokenizer)
    steps = iter(metrics)
    for step in range(1, 5):
        for callbacks in (vandal, neighbour):
            callbacks.step_begin()
            callbacks.pre_optimizer_step()
            given = line(step)
            callbacks.step_end(given)
            assert given == line(step)
            assert callbacks.is_epoch_end == (step == STEPS_PER_EPOCH)
            if callbacks.is_epoch_end:
                callbacks.epoch_end()
        validation = next(steps)
        for callbacks in (vandal, neighbour):
            callbacks.evaluated(validation)
    assert metrics == losses()
    assert tokenizer.eos_token == eos_token
    for name, parameter in parameters.items():
        assert torch.equal(parameter, before[name])
    assert torch.equal(parameters["a.weight"].grad, torch.ones(2, 2))
    seen = own_callbacks.SEEN[-1][1]
    assert (seen["step"], seen["max_steps"], seen["config"].vocab_size) == (4, 18, 7)
    assert seen["args"].learning_rate != 1e9
    assert not any("vandal" in entry for entry in seen["history"])


@pytest.mark.parametrize(
    "attribute",
    ["base_model", "model", "modules", "forward", "train", "set_adapter", "load_state_dict", "_x"],
)
def test_a_callback_cannot_reach_the_base_model(make: Any, attribute: str) -> None:
    callbacks = make({"path": f"{OWN}:Reacher", "attribute": attribute})
    with pytest.raises(
        CallbackError, match=f"no '{attribute}'.* may read named_parameters"
    ) as info:
        drive(callbacks)
    assert isinstance(info.value.__cause__, AttributeError)


def test_nothing_that_a_callback_is_given_leads_to_the_base_model(
    make: Any, parameters: dict[str, nn.Parameter]
) -> None:
    import gc

    base = nn.Linear(2, 2)
    base.adapter = parameters["a.weight"]
    callbacks = make(f"{OWN}:Recorder")
    callbacks.step_begin()
    known, fresh = set(), [callbacks._given["model"]]
    while fresh:
        thing = fresh.pop()
        if id(thing) in known or isinstance(thing, type) or type(thing).__name__ == "module":
            continue
        known.add(id(thing))
        fresh += gc.get_referents(thing)
    assert id(parameters["a.weight"]) in known
    assert id(base) not in known


@pytest.mark.parametrize("exits", [False, True])
@pytest.mark.parametrize(
    "event",
    [
        "on_init_end",
        "on_train_begin",
        "on_epoch_begin",
        "on_step_begin",
        "on_pre_optimizer_step",
        "on_optimizer_step",
        "on_step_end",
        "on_log",
        "on_evaluate",
        "on_save",
        "on_epoch_end",
        "on_train_end",
    ],
)
def test_an_error_in_a_callback_names_its_path_and_its_event(
    make: Any, event: str, exits: bool
) -> None:
    callbacks = make({"path": f"{OWN}:Fails", "event": event, "exits": exits})
    with pytest.raises(CallbackError, match=f"'{OWN}:Fails' failed in {event}: "):
        drive(callbacks, losses())


@pytest.mark.parametrize(
    ("event", "flag", "wish"),
    [
        ("on_step_end", "should_training_stop", "stop"),
        ("on_step_end", "should_evaluate", "evaluate"),
        ("on_step_end", "should_save", "save"),
        ("on_log", "should_training_stop", "stop"),
        ("on_log", "should_evaluate", "evaluate"),
        ("on_step_begin", "should_training_stop", "stop"),
    ],
)
def test_a_flag_set_by_a_callback_is_a_wish_until_the_next_step(
    make: Any, event: str, flag: str, wish: str
) -> None:
    at = 3 if event == "on_step_begin" else 4  # at the begin of a step the ones before are counted
    callbacks = make({"path": f"{OWN}:Wishful", "event": event, "flag": flag, "step": at})
    for step in range(1, 7):
        callbacks.step_begin()
        wishes = callbacks.step_end(line(step))
        is_wished = step == 4 or (step > 4 and wish == "stop")
        assert wishes == (Wishes(**{wish: True}) if is_wished else Wishes())


def test_a_stop_wished_at_a_validation_a_save_or_an_epochs_end_is_a_wish(make: Any) -> None:
    for event in ("on_evaluate", "on_save", "on_epoch_end"):
        callbacks = make(
            {"path": f"{OWN}:Wishful", "event": event, "flag": "should_training_stop", "step": 6}
        )
        assert drive(callbacks, losses()) == 6


def test_a_users_condition_on_logs_stops_the_trial(make: Any) -> None:
    # Logged are the means of 1, 1/2; 1/3, 1/4; 1/5, 1/6; so 0.75, 0.29, 0.18.
    assert drive(make({"path": f"{OWN}:StopsAtLogs", "below": 0.2})) == 6


def test_cutting_an_epoch_short_is_refused_and_not_ignored(make: Any) -> None:
    callbacks = make(
        {"path": f"{OWN}:Wishful", "event": "on_step_end", "flag": "should_epoch_stop"}
    )
    with pytest.raises(CallbackError, match="Set should_training_stop to end the trial"):
        drive(callbacks)


def test_a_returned_control_counts_and_is_not_shared_between_trials(make: Any) -> None:
    first, second = make(f"{OWN}:ReturnsAnother"), make(f"{OWN}:ReturnsAnother")
    for callbacks in (first, second):
        callbacks.step_begin()
        callbacks.step_end(line(1))
    first.step_begin()
    first.step_end(line(2), is_last=True)
    first._control.should_training_stop = True
    assert not second._wishes.stop
    assert own_callbacks.SHARED_CONTROL.state()["args"]["should_training_stop"] is False
    with pytest.raises(CallbackError, match="returned 'stop' from on_step_end"):
        drive(make({"path": f"{OWN}:ReturnsAnother", "nonsense": True}))


@pytest.mark.parametrize("saved_after", [1, 2, 3, 4, 7])
def test_a_resumed_trial_goes_on_as_if_nothing_had_happened(make: Any, saved_after: int) -> None:
    entries = [
        f"{OWN}:Recorder",
        {"path": EARLY_STOPPING, "early_stopping_patience": 2},
        {"path": f"{OWN}:Countdown", "steps": 17},
        {"path": f"{OWN}:Countdown", "steps": 15},
    ]
    ended = drive(make(*entries), losses())
    whole = heard()
    assert ended == 15
    own_callbacks.SEEN.clear()
    first = make(*entries)
    drive(first, losses(), range(1, saved_after + 1))
    saved = json.loads(json.dumps(first.state()))
    second = make(*entries)
    second.load_state(saved)
    assert second.state() == saved
    num_validations = saved_after // EVAL_STEPS
    assert drive(second, losses(LOSSES[num_validations:]), range(saved_after + 1, 19)) == ended
    begins = ("on_train_begin", "on_epoch_begin")  # are told again, as in transformers
    parts = [event for event in heard() if event[0] not in begins]
    assert parts == [event for event in whole if event[0] not in begins]


def test_a_state_that_is_no_json_names_the_callback(make: Any) -> None:
    callbacks = make({"path": f"{OWN}:Countdown", "steps": 3, "junk": True})
    with pytest.raises(CallbackError, match=f"'{OWN}:Countdown': what state\\(\\) returned"):
        callbacks.state()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("EarlyStoppingCallback", "not a dotted path.*my_package.module:name"),
        ({"early_stopping_patience": 3}, "has no path"),
        ("no.such.module:Callback", "no.such.module cannot be imported"),
        ("transformers:EarlyStopping", "the module transformers has no EarlyStopping"),
        (f"{OWN}:NO_CALLBACK", "is no class of callbacks"),
        (f"{OWN}:make_callback", "is no class of callbacks"),
        ("builtins:dict", "is no class of callbacks"),
        ({"path": EARLY_STOPPING, "patience": 3}, "arguments \\(patience=3\\): TypeError"),
        ({"path": f"{OWN}:RefusesItsArguments", "share": 2}, "must not be above 1"),
        (f"{OWN}:RefusesItsArguments", "arguments \\(none\\)"),
    ],
)
def test_what_is_no_callback_is_refused_with_what_to_do(make: Any, entry: Entry, said: str) -> None:
    with pytest.raises(ValueError, match=f"^callbacks: .*{said}"):
        make(entry)


def test_early_stopping_without_a_validation_says_so(make: Any) -> None:
    callbacks = make(EARLY_STOPPING, eval_strategy="no")
    with pytest.raises(CallbackError, match=r"on_train_begin.*requires IntervalStrategy"):
        drive(callbacks)


def test_a_metric_that_is_not_reported_is_named(make: Any) -> None:
    callbacks = make(EARLY_STOPPING)
    callbacks.step_begin()
    callbacks.step_end(line(1))
    with pytest.raises(ValueError, match=r"'eval_loss' is not among.*eval_other"):
        callbacks.evaluated({"other": 1.0})


def test_a_validation_before_the_first_step_is_no_best(make: Any) -> None:
    callbacks = make(EARLY_STOPPING)
    callbacks.train_begin()
    callbacks.evaluated({"eval_loss": 0.1})
    assert callbacks.state()["trainer_state"]["best_metric"] is None


def test_events_that_never_happen_and_state_that_is_lost_are_noted(make: Any) -> None:
    progress = make("transformers:ProgressCallback").notes
    assert len(progress) == 1
    assert "handles on_prediction_step, on_predict, which does not happen here" in progress[0]
    assert "ExportableState" in make({"path": f"{OWN}:StopsAtLogs", "below": 1}).notes[0]
    assert (
        make(EARLY_STOPPING, f"{OWN}:Recorder", {"path": f"{OWN}:Countdown", "steps": 1}).notes
        == ()
    )
