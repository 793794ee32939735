"""Writes a trial to a folder and reads it back: its weights, by their pool, and the rest.

No pickles: safetensors for tensors, JSON for everything else. Python writes floats to JSON so that
they read back as the same bits.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from trainers.lora.model.weights import WeightPool, contiguous, read_tensors
from trainers.lora.optimizer import load_state, state_tensors, state_values
from trainers.lora.options import LoraOptions
from trainers.lora.progress import Progress
from trainers.lora.trial import Trial
from trainers.protocol import ADAPTER_FOLDER, STATE_FOLDER

STATE_FORMAT = 2
"""Raised when a saved state can no longer be read by older code. 1 knew AdamW only."""

_READABLE = (1, 2)
_OPTIMIZER = f"{STATE_FOLDER}/optimizer.safetensors"
_BEST = f"{STATE_FOLDER}/best.safetensors"
_STATE = f"{STATE_FOLDER}/state.json"

_MAY_DIFFER = LoraOptions.paths | {"per_device_eval_batch_size"}
"""Options that do not change a trial: the same data may lie elsewhere (its tokens are compared)."""


def save_trial(trial: Trial, weights: WeightPool, data_digest: str, folder: Path) -> None:
    """Write a trial as it is now.

    Raises:
        ValueError: The folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty. Give a new folder to save the trial in.")
    (folder / ADAPTER_FOLDER).mkdir(parents=True)
    (folder / STATE_FOLDER).mkdir()
    weights.save(trial.key, folder / ADAPTER_FOLDER)
    optimizer = state_tensors(trial.optimizer, trial.parameters)
    save_file(contiguous(optimizer), folder / _OPTIMIZER)
    if trial.best_weights is not None:
        save_file(contiguous(trial.best_weights), folder / _BEST)
    state = {
        "format": STATE_FORMAT,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "options": trial.options.model_dump(mode="json"),
        "data_digest": data_digest,
        "progress": trial.progress.as_json(),
        "optimizer": state_values(trial.optimizer, trial.parameters),
        "learning_rate": trial.learning_rate.state(),
        "callbacks": None if trial.callbacks is None else trial.callbacks.state(),
        "scaler": None if trial.scaler is None else trial.scaler.state_dict(),
    }
    text = json.dumps(state, indent=2)
    (folder / _STATE).write_text(text + "\n", encoding="utf-8")


def check_resumable(folder: Path, options: LoraOptions, data_digest: str) -> None:
    """Compare a saved trial with what is to go on from it.

    Raises:
        ValueError: The folder holds no whole trial, or one of other options or other data.
    """
    state = _read_state(folder)
    now = options.model_dump(mode="json")
    # Options that came after it was saved had no effect then: their defaults.
    then = _defaults() | state["options"]
    differing = [
        f"{name}: {then.get(name)!r} there, {now[name]!r} here"
        for name in now
        if name not in _MAY_DIFFER and then.get(name) != now[name]
    ]
    if differing:
        raise ValueError(
            f"{folder} holds a trial of other options ({'; '.join(differing)}). Resume it with its "
            f"own options, or start a new trial."
        )
    if state["data_digest"] != data_digest:
        raise ValueError(
            f"{folder} holds a trial on other data: the training or the validation set has changed "
            f"since. Put the old data back, or start a new trial."
        )


def load_trial(trial: Trial, folder: Path) -> None:
    """Bring a trial that has the saved weights to where the saved one was.

    Raises:
        ValueError: The folder holds no whole trial.
    """
    state = _read_state(folder)
    tensors = read_tensors(folder / _OPTIMIZER)
    load_state(trial.optimizer, trial.parameters, tensors, state.get("optimizer", {}))
    trial.learning_rate.load_state(state.get("learning_rate", {}))
    trial.progress = Progress.from_json(state["progress"])
    if (folder / _BEST).exists():
        device = next(iter(trial.parameters.values())).device
        best = read_tensors(folder / _BEST)
        trial.best_weights = {name: tensor.to(device) for name, tensor in best.items()}
    if trial.callbacks is not None:
        trial.callbacks.load_state(state["callbacks"])
    if trial.scaler is not None:
        trial.scaler.load_state_dict(state["scaler"])


def _defaults() -> dict[str, object]:
    fields = LoraOptions.model_fields
    return {
        name: list(field.default) if isinstance(field.default, tuple) else field.default
        for name, field in fields.items()
        if not field.is_required()
    }


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder} holds no whole saved trial ({error}). Give a folder that save() wrote."
        ) from error
    if state["format"] not in _READABLE:
        raise ValueError(
            f"{folder}: saved in format {state['format']}, this version reads "
            f"{' and '.join(map(str, _READABLE))}. "
            f"Resume it with the version that wrote it."
        )
    return state
