"""Writes a trial to a folder and reads it back: the adapter as PEFT reads it, and the rest.

No pickles: safetensors for tensors, JSON for everything else. Python writes floats to JSON so that
they read back as the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainers.lora.adapters import load_weights
from trainers.lora.optimizer import load_state_tensors, state_tensors
from trainers.lora.options import LoraOptions
from trainers.lora.progress import Progress
from trainers.lora.trial import Trial
from trainers.protocol import ADAPTER_FOLDER, STATE_FOLDER

STATE_FORMAT = 2
"""Raised when a saved state can no longer be read by older code."""

_WEIGHTS = f"{ADAPTER_FOLDER}/adapter_model.safetensors"
_OPTIMIZER = f"{STATE_FOLDER}/optimizer.safetensors"
_BEST = f"{STATE_FOLDER}/best.safetensors"
_STATE = f"{STATE_FOLDER}/state.json"

_MAY_DIFFER = LoraOptions.paths | {"per_device_eval_batch_size"}
"""Options that do not change a trial: the same data may lie elsewhere (its tokens are compared)."""


def save_trial(trial: Trial, config: LoraConfig, data_digest: str, folder: Path) -> None:
    """Write a trial as it is now.

    Raises:
        ValueError: The folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty. Give a new folder to save the trial in.")
    (folder / ADAPTER_FOLDER).mkdir(parents=True)
    (folder / STATE_FOLDER).mkdir()
    config.inference_mode = True
    config.save_pretrained(str(folder / ADAPTER_FOLDER))
    weights = {name: parameter.detach() for name, parameter in trial.parameters.items()}
    save_file(_contiguous(weights), folder / _WEIGHTS, metadata={"format": "pt"})
    optimizer = state_tensors(trial.optimizer, trial.parameters)
    save_file(_contiguous(optimizer), folder / _OPTIMIZER)
    if trial.best_weights is not None:
        save_file(_contiguous(trial.best_weights), folder / _BEST)
    state = {
        "format": STATE_FORMAT,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "options": trial.options.model_dump(mode="json"),
        "data_digest": data_digest,
        "progress": trial.progress.as_json(),
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
    differing = [
        f"{name}: {state['options'].get(name)!r} there, {now[name]!r} here"
        for name in now
        if name not in _MAY_DIFFER and state["options"].get(name) != now[name]
    ]
    if differing:
        raise ValueError(
            f"{folder} holds a trial of other options ({'; '.join(differing)}). Resume it with its "
            f"own options, or start a new trial."
        )
    if state["data_digest"] != data_digest:
        raise ValueError(
            f"{folder} holds a trial on other data: {options.train_file} or the validation set has "
            f"changed since. Put the old data back, or start a new trial."
        )


def load_trial(trial: Trial, folder: Path) -> None:
    """Bring a trial at its beginning to where the saved one was."""
    state = _read_state(folder)
    load_weights(trial.parameters, _read_tensors(folder / _WEIGHTS))
    load_state_tensors(trial.optimizer, trial.parameters, _read_tensors(folder / _OPTIMIZER))
    trial.progress = Progress.from_json(state["progress"])
    if (folder / _BEST).exists():
        device = next(iter(trial.parameters.values())).device
        best = _read_tensors(folder / _BEST)
        trial.best_weights = {name: tensor.to(device) for name, tensor in best.items()}
    if trial.callbacks is not None:
        trial.callbacks.load_state(state["callbacks"])
    if trial.scaler is not None:
        trial.scaler.load_state_dict(state["scaler"])


def load_adapter(trial: Trial, adapter: Path) -> None:
    """Give a trial the weights of a saved adapter, and nothing else of the trial it was.

    Raises:
        ValueError: The file is missing or cut off, or belongs to other options.
    """
    weights = _read_tensors(adapter / Path(_WEIGHTS).name)
    if weights.keys() != trial.parameters.keys():
        raise ValueError(f"{adapter} is an adapter of other options: it has other layers.")
    load_weights(trial.parameters, weights)


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder} holds no whole saved trial ({error}). Give a folder that save() wrote."
        ) from error
    if state["format"] != STATE_FORMAT:
        raise ValueError(
            f"{folder}: saved in format {state['format']}, this version reads {STATE_FORMAT}. "
            f"Resume it with the version that wrote it."
        )
    return state


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is missing or cut off ({error}).") from error


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(torch.device("cpu")).contiguous() for name, tensor in tensors.items()}
