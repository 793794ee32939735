"""One callback that a user named by its path: made, called, and kept over an interruption."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from trainers.lora.dotted_path import load_dotted_path

_NEVER_HAPPEN = ("on_substep_end", "on_prediction_step", "on_predict", "on_push_begin")
"""transformers' events that are not raised here: steps and validations are not the Trainer's."""


class CallbackError(RuntimeError):
    """A callback failed; the message names its path and the event, the cause is chained."""


class OwnCallback:
    """A callback of transformers' or of the user's own.

    Attributes:
        path: Names it in messages.
    """

    def __init__(self, entry: str | Mapping[str, object]) -> None:
        """Import the class and make an object of it.

        Args:
            entry: A dotted path, or a mapping of ``path`` and the constructor's arguments.

        Raises:
            ValueError: The path leads to no callback, or the arguments do not fit.
        """
        arguments = {} if isinstance(entry, str) else copy.deepcopy(dict(entry))
        path = entry if isinstance(entry, str) else arguments.pop("path", None)
        if not isinstance(path, str):
            raise ValueError(
                f"callbacks: {entry!r} has no path. Give a dotted path, as in "
                f"'my_package.module:MyCallback', or a mapping with 'path' and the arguments."
            )
        self.path = path
        self._callback = _make(path, arguments)

    @property
    def notes(self) -> list[str]:
        """What of this callback does not work as in transformers' Trainer."""
        kind = type(self._callback)
        notes = []
        unheard = [e for e in _NEVER_HAPPEN if getattr(kind, e) is not getattr(TrainerCallback, e)]
        if unheard:
            notes.append(
                f"callbacks: {self.path} handles {', '.join(unheard)}, which does not happen here"
            )
        is_users = not kind.__module__.startswith("transformers.")
        if is_users and vars(self._callback) and not isinstance(self._callback, ExportableState):
            notes.append(
                f"callbacks: {self.path} begins anew when an interrupted trial goes on. To keep what "
                f"it knows let it inherit from transformers.trainer_callback.ExportableState too"
            )
        return notes

    def call(
        self,
        event: str,
        arguments: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        others: Mapping[str, object],
    ) -> TrainerControl:
        """Call an event; return the control that is valid after it.

        Raises:
            CallbackError: The callback fails.
        """
        try:
            result = getattr(self._callback, event)(arguments, state, control, **others)
        except (Exception, SystemExit) as error:
            raise CallbackError(
                f"callbacks: {self.path!r} failed in {event}: {type(error).__name__}: {error}"
            ) from error
        if result is None or result is control:
            return control
        if not isinstance(result, TrainerControl):
            raise CallbackError(
                f"callbacks: {self.path!r} returned {result!r} from {event}. Return the control that "
                f"it was given, or nothing."
            )
        return copy.copy(result)  # other trials may be given the same object

    def state(self) -> object:
        """Return what the callback wants to be kept, as plain JSON; None if it keeps nothing.

        Raises:
            CallbackError: The callback fails, or what it returns is no JSON.
        """
        if not isinstance(self._callback, ExportableState):
            return None
        try:
            exported = self._callback.state()
        except (Exception, SystemExit) as error:
            raise CallbackError(
                f"callbacks: {self.path!r} failed in state(): {type(error).__name__}: {error}"
            ) from error
        return as_json(f"{self.path!r}: what state() returned", exported)

    def load_state(self, exported: Any) -> None:
        """Let the callback be as it was, by transformers' own convention.

        Raises:
            ValueError: It cannot be made from what it had returned.
        """
        if exported is None:
            return
        assert isinstance(self._callback, ExportableState)
        try:
            self._callback = type(self._callback).from_state(exported)
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"callbacks: {self.path!r} cannot go on from its saved state ({exported!r}): "
                f"{type(error).__name__}: {error}. Its state() must return 'args' for the "
                f"constructor and 'attributes' to set."
            ) from error


def as_json(what: str, value: object) -> object:
    """Return a value as JSON would give it back.

    Raises:
        CallbackError: It is no JSON.
    """
    try:
        plain: object = json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise CallbackError(
            f"callbacks: {what} is not plain JSON ({error}). Keep numbers, texts, lists and dicts in "
            f"it only."
        ) from error
    return plain


def _make(path: str, arguments: Mapping[str, Any]) -> TrainerCallback:
    kind = load_dotted_path(path, "callbacks")
    if not (isinstance(kind, type) and issubclass(kind, TrainerCallback)):
        raise ValueError(
            f"callbacks: {path!r} is no class of callbacks. Give a class that inherits from "
            f"transformers.TrainerCallback; each trial makes an object of it."
        )
    try:
        return kind(**arguments)
    except (Exception, SystemExit) as error:  # a user's constructor may raise anything
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items()) or "none"
        raise ValueError(
            f"callbacks: {path!r} cannot be made with these arguments ({given}): "
            f"{type(error).__name__}: {error}. Give what its constructor takes beside its path, as "
            f"in {{path: {path}, some_argument: 3}}."
        ) from error
