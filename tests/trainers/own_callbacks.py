"""Callbacks as a user would write them; the tests name them by dotted path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl
from transformers.trainer_callback import ExportableState

SEEN: list[tuple[str, dict[str, Any]]] = []
"""Events that ``Recorder`` heard, with what it read; tests clear it."""

NO_CALLBACK = 3


def make_callback() -> TrainerCallback:
    return TrainerCallback()


class _Listener(TrainerCallback):
    """Passes every event to ``hear``."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def event(args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            return self.hear(name, args, state, control, kwargs)

        return event

    def hear(
        self, event: str, args: Any, state: Any, control: Any, kwargs: Mapping[str, Any]
    ) -> Any:
        raise NotImplementedError


class Recorder(_Listener):
    """Reads everything that a callback is given, at every event."""

    def hear(
        self, event: str, args: Any, state: Any, control: Any, kwargs: Mapping[str, Any]
    ) -> None:
        args.to_json_string()
        str(args)
        model = kwargs["model"]
        seen = {
            "args": args,
            "given": set(kwargs),
            "step": state.global_step,
            "epoch": state.epoch,
            "max_steps": state.max_steps,
            "best": (state.best_metric, state.best_global_step),
            "control": (
                control.should_training_stop,
                control.should_evaluate,
                control.should_save,
                control.should_log,
            ),
            "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
            "gradients": {name: weight.grad for name, weight in model.named_parameters()},
            "config": getattr(model, "config", None),
            "logs": dict(kwargs.get("logs", {})),
            "metrics": dict(kwargs.get("metrics", {})),
            "history": list(state.log_history),
        }
        SEEN.append((event, seen))


class Vandal(_Listener):
    """Changes all it can reach, and tries to reach the base model."""

    def hear(
        self, event: str, args: Any, state: Any, control: Any, kwargs: Mapping[str, Any]
    ) -> None:
        args.learning_rate = 1e9
        args.output_dir = "/vandal"
        state.max_steps = -5
        state.global_step = 10**6
        state.log_history.append({"vandal": 1.0})
        model = kwargs["model"]
        model.config.vocab_size = 1
        model.training = False
        for weight in model.parameters():
            weight.data.fill_(float("nan"))
            if weight.grad is not None:
                weight.grad.fill_(float("nan"))
        for tensor in model.state_dict().values():
            tensor.fill_(float("nan"))
        for name in ("logs", "metrics"):
            if name in kwargs:
                kwargs[name].clear()
                kwargs[name]["eval_loss"] = 0.0
        if kwargs["processing_class"] is not None:
            kwargs["processing_class"].eos_token = "vandal"


class Reacher(TrainerCallback):
    """Reaches for an attribute of the model."""

    def __init__(self, attribute: str) -> None:
        self.attribute = attribute

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        getattr(kwargs["model"], self.attribute)


class Fails(TrainerCallback):
    """Raises at one event."""

    def __init__(self, event: str, exits: bool = False) -> None:
        def fail(*_: Any, **__: Any) -> None:
            if exits:
                raise SystemExit(3)
            raise ZeroDivisionError("of my own")

        setattr(self, event, fail)


class RefusesItsArguments(TrainerCallback):
    def __init__(self, share: float) -> None:
        if share > 1:
            raise ValueError("share must not be above 1")


class Wishful(TrainerCallback):
    """Sets a flag of the control at one event and step."""

    def __init__(self, event: str, flag: str, step: int = 1) -> None:
        def wish(args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if state.global_step == step:
                setattr(control, flag, True)
            return control

        setattr(self, event, wish)


SHARED_CONTROL = TrainerControl()


class ReturnsAnother(TrainerCallback):
    """Returns a control that all its objects share, or something else."""

    def __init__(self, nonsense: bool = False) -> None:
        self.returned: Any = "stop" if nonsense else SHARED_CONTROL

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        return self.returned


class Countdown(TrainerCallback, ExportableState):
    """Stops after some steps, counted over interruptions."""

    def __init__(self, steps: int, junk: bool = False) -> None:
        self.steps = steps
        self.junk = junk

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps -= 1
        if self.steps == 0:
            control.should_training_stop = True

    def state(self) -> dict[str, Any]:
        attributes = {"junk": {1, 2}} if self.junk else {}
        return {"args": {"steps": self.steps}, "attributes": attributes}


class StopsAtLogs(TrainerCallback):
    """Stops once the logged loss is low, as a user of ``on_log`` would."""

    def __init__(self, below: float) -> None:
        self.below = below

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs and logs["loss"] < self.below:
            control.should_training_stop = True
