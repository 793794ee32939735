"""Comet: one experiment a trial, tagged with its study.

Offline by COMET_START_ONLINE=false or COMET_MODE=offline, or if COMET_OFFLINE_DIRECTORY is set and no
API key is; then archives lie there, or else in ``comet/`` of the study's folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo.trackers.tracker import Ending, Point, Run, flat

PROJECT = "hpo"


class Comet:
    """Comet takes what it is given and looks at nothing by itself."""

    def __init__(self, folder: Path, study: str) -> None:
        import comet_ml

        self._comet: Any = comet_ml
        self._directory = os.environ.get("COMET_OFFLINE_DIRECTORY") or str(folder / "comet")

    def open(self, run: Run, last_step: int | None) -> CometRun:
        offline = self._is_offline()
        if offline:
            Path(self._directory).mkdir(parents=True, exist_ok=True)
        nothing = dict.fromkeys(
            (
                *("log_code", "log_graph", "parse_args", "log_git_metadata", "log_git_patch"),
                *("log_env_details", "log_env_gpu", "log_env_host", "log_env_cpu"),
                *("log_env_network", "log_env_disk", "auto_param_logging", "auto_metric_logging"),
                *("auto_output_logging", "auto_log_co2"),
            ),
            False,
        )
        experiment = self._comet.start(
            project_name=os.environ.get("COMET_PROJECT_NAME", PROJECT),
            experiment_key=hashlib.sha256(run.key.encode()).hexdigest()[:40],
            mode="get_or_create",
            online=False if offline else None,
            experiment_config=self._comet.ExperimentConfig(
                name=run.name,
                tags=[run.study],
                offline_directory=self._directory,
                display_summary_level=0,
                **nothing,
            ),
        )
        experiment.log_parameters(flat(run.config))
        experiment.log_others({"study": run.study, "trial": run.number})
        return CometRun(experiment, "" if offline else str(experiment.url or ""))

    def _is_offline(self) -> bool:
        if os.environ.get("COMET_MODE", "").lower() == "offline":
            return True
        online = os.environ.get("COMET_START_ONLINE")
        if online is not None:
            return online.lower() in ("0", "false", "no", "off")
        key = self._comet.config.get_config("comet.api_key")
        return bool(os.environ.get("COMET_OFFLINE_DIRECTORY")) and not key


class CometRun:
    """One experiment."""

    def __init__(self, experiment: Any, address: str) -> None:
        self._experiment = experiment
        self.address = address

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self._experiment.log_metrics(dict(point.values), step=point.step)

    def end(self, ending: Ending, best: Mapping[str, float]) -> None:
        self._experiment.log_metrics(dict(best))
        said = {"state": ending.state, "reason": ending.reason, "message": ending.message}
        self._experiment.log_others({name: value for name, value in said.items() if value})
        self._experiment.end()

    def leave(self) -> None:
        self._experiment.end()
