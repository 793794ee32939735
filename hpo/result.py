"""The result of a study: one folder with the best adapter and all that is needed to make it again.

In a folder a new one is written beside the old one and swapped in. At a URL ``trial.json`` goes first and
comes last: without it, the result is being written.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML

from hpo import faults
from hpo.checkpoints import Checkpoint, CheckpointStore
from hpo.errors import CheckpointError
from hpo.spec import StudySpec
from hpo.store import local
from hpo.store.local import LocalShelf
from hpo.store.remote import RemoteShelf
from hpo.studies import TrialRecord
from trainers.protocol import ADAPTER_FOLDER

log = logging.getLogger(__name__)

BEST = "best"
CONFIG_FILE = "config.yaml"
TRIAL_FILE = "trial.json"
PACKAGES = ("hpo", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "optuna", "ray")


def write_best(store: CheckpointStore, spec: StudySpec, trial: TrialRecord) -> bool:
    """Make ``best/`` of a study's store hold this trial's result.

    Holds ``adapter/``, ``config.yaml`` (for `hpo train`) and ``trial.json`` (history, versions and
    seeds). If it does already, the checkpoint is not read: it may be large, and far away. To be called
    by one process at a time: what it finds half written is of a dead one.

    Returns:
        Whether it holds it now; else the trial's checkpoint is torn.

    Raises:
        CheckpointError: It cannot be written.
    """
    assert trial.best_step is not None
    wanted = {"study": spec.study, "number": trial.number, "step": trial.best_step}
    present = read_best(store)
    checkpoint = None
    if {key: present.get(key) for key in wanted} != wanted:
        try:
            checkpoint = store.at_step(trial.number, trial.best_step)
        except CheckpointError as error:
            log.warning("trial %d cannot be handed over: %s", trial.number, error)
            return False
    try:
        if isinstance(store.shelf, LocalShelf):
            if checkpoint is not None:
                write_result(store.shelf.root / BEST, spec, trial, checkpoint)
            for name in os.listdir(store.shelf.root):
                if name.startswith(f".{BEST}."):  # of a killed driver
                    shutil.rmtree(store.shelf.root / name, ignore_errors=True)
        elif checkpoint is not None:
            _upload(store.shelf, spec, trial, checkpoint)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {store.shown(BEST)}: {error.strerror or error}. Free space there or mend its "
            f"permissions, then type `hpo resume {spec.study}`: it writes the result anew."
        ) from error
    return True


def read_best(store: CheckpointStore) -> Mapping[str, object]:
    """Return what ``best/`` says of itself; empty if there is none, or it is being written."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if isinstance(store.shelf, LocalShelf):
            path = store.shelf.root / BEST / TRIAL_FILE
        else:
            path = store.shelf.scratch() / TRIAL_FILE
            store.shelf.pull(f"{BEST}/{TRIAL_FILE}", path)
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _upload(
    shelf: RemoteShelf, spec: StudySpec, trial: TrialRecord, checkpoint: Checkpoint
) -> None:
    folder = shelf.scratch() / BEST
    try:
        fill(folder, spec, trial, checkpoint)
        faults.reached("best copied")
        old = set(shelf.names(BEST))
        shelf.delete(f"{BEST}/{TRIAL_FILE}")
        faults.reached("best moved")
        new = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        for name in sorted(new, key=lambda name: name == TRIAL_FILE):  # that one last
            shelf.push(folder / name, f"{BEST}/{name}")
        for name in old - set(new):
            shelf.delete(f"{BEST}/{name}")
        faults.reached("best written")
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)


def write_result(folder: Path, spec: StudySpec, trial: TrialRecord, checkpoint: Checkpoint) -> None:
    """Replace ``folder`` by a trial's result."""
    fresh, old = _beside(folder), _beside(folder)
    try:
        fill(fresh, spec, trial, checkpoint)
        faults.reached("best copied")
        if folder.exists():
            folder.rename(old)
        faults.reached("best moved")
        fresh.rename(folder)
    except Exception:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists():
            old.rename(folder)
        raise
    faults.reached("best written")
    shutil.rmtree(old, ignore_errors=True)


def _beside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")


def fill(fresh: Path, spec: StudySpec, trial: TrialRecord, checkpoint: Checkpoint) -> None:
    """Write a trial's result into a new folder."""
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
    for path in (fresh, *fresh.rglob("*")):
        local.fsync(path)


def config_yaml(config: Mapping[str, object], heading: str) -> str:
    """Return a config as YAML with a comment above it."""
    stream = StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(dict(config), stream)
    comment = "".join(f"# {line}\n" for line in heading.splitlines())
    return comment + stream.getvalue()


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
