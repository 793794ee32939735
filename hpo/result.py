"""The result of a study: one folder with the best adapter and all that is needed to make it again."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shutil
import uuid
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML

from hpo.checkpoints import Checkpoint
from hpo.spec import StudySpec
from hpo.studies import TrialRecord
from trainers.protocol import ADAPTER_FOLDER

CONFIG_FILE = "config.yaml"
TRIAL_FILE = "trial.json"
PACKAGES = ("hpo", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "optuna", "ray")


def write_best(folder: Path, spec: StudySpec, trial: TrialRecord, checkpoint: Checkpoint) -> None:
    """Make ``folder`` hold this trial's result, unless it does already.

    Holds ``adapter/``, ``config.yaml`` (for `hpo train`) and ``trial.json`` (history, versions and
    seeds). A new one is written beside it and swapped in.
    """
    wanted = {"study": spec.study, "number": trial.number, "step": checkpoint.step}
    with contextlib.suppress(OSError, ValueError):
        present = json.loads((folder / TRIAL_FILE).read_text(encoding="utf-8"))
        if {key: present.get(key) for key in wanted} == wanted:
            return
    write_result(folder, spec, trial, checkpoint)


def write_result(folder: Path, spec: StudySpec, trial: TrialRecord, checkpoint: Checkpoint) -> None:
    """Replace ``folder`` by a trial's result."""
    fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    shutil.copytree(checkpoint.adapter, fresh / ADAPTER_FOLDER)
    (fresh / CONFIG_FILE).write_text(
        config_yaml(
            {
                "trainer": spec.trainer,
                "output_dir": f"../retrained-{trial.number}",  # the study replaces this folder
                "metric": spec.metric,
                "direction": spec.direction,
                **trial.config,
            },
            f"The config of trial {trial.number} of the study {spec.study!r}: "
            f"{spec.metric} {trial.value:.6g} at step {checkpoint.step}.\n"
            f"Train it again: hpo train {CONFIG_FILE}",
        ),
        encoding="utf-8",
    )
    story = {
        "study": spec.study,
        "number": trial.number,
        "step": checkpoint.step,
        "metric": spec.metric,
        "value": trial.value,
        "params": trial.params,
        "notes": list(trial.notes),
        "history": [{"validation": k, **said} for k, said in trial.reports.items()],
        "seeds": {"sampler": spec.sampler.seed, "training": trial.config.get("seed")},
        "versions": versions(),
        "spec": spec.model_dump(mode="json"),
    }
    (fresh / TRIAL_FILE).write_text(json.dumps(story, indent=1), encoding="utf-8")
    if folder.exists():
        old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh.rename(folder)


def config_yaml(config: Mapping[str, object], heading: str) -> str:
    """Return a config as YAML with a comment above it."""
    stream = StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(dict(config), stream)
    comment = "".join(f"# {line}\n" for line in heading.splitlines())
    return comment + stream.getvalue()


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
