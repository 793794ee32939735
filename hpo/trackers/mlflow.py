"""MLflow: one experiment a study, one run a trial.

In ``mlflow/mlflow.db`` of the study's folder, or where MLFLOW_TRACKING_URI says.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo.trackers.follower import chunks
from hpo.trackers.tracker import Ending, Point, Run, flat

KEY_TAG = "hpo.key"
MAX_PARAMS = 100
MAX_POINTS = 50
"""A call takes 100 parameters and 1000 metrics; a point has fewer than 20."""

MAX_VALUE_CHARS = 6000


class MLflow:
    """Logs through MLflow's client, which holds any number of runs open."""

    def __init__(self, folder: Path, study: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        here = (folder / "mlflow").resolve()
        given = os.environ.get("MLFLOW_TRACKING_URI")
        if not given:
            here.mkdir(parents=True, exist_ok=True)
        self._uri = given or f"sqlite:///{here / 'mlflow.db'}"
        self._client: Any = MlflowClient(tracking_uri=self._uri)
        found = self._client.get_experiment_by_name(study)
        self._experiment = found.experiment_id if found else self._create(study, given, here)

    def open(self, run: Run, last_step: int | None) -> MLflowRun:
        found = self._client.search_runs([self._experiment], f"tags.`{KEY_TAG}` = '{run.key}'")
        if found:
            run_id = found[0].info.run_id
            self._client.update_run(run_id, status="RUNNING")
        else:
            tags = {KEY_TAG: run.key, "hpo.study": run.study, "hpo.trial": str(run.number)}
            created = self._client.create_run(self._experiment, tags=tags, run_name=run.name)
            run_id = created.info.run_id
            self._log_config(run_id, run)
        return MLflowRun(self._client, run_id, "" if "@" in self._uri else self._uri)

    def _create(self, study: str, given: str | None, here: Path) -> str:
        location = None if given else (here / "artifacts").as_uri()
        return str(self._client.create_experiment(study, artifact_location=location))

    def _log_config(self, run_id: str, run: Run) -> None:
        from mlflow.entities import Param

        params = [Param(k, str(v)[:MAX_VALUE_CHARS]) for k, v in flat(run.config).items()]
        for start in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(run_id, params=params[start : start + MAX_PARAMS])


class MLflowRun:
    """One run; a point that it has already is written over."""

    def __init__(self, client: Any, run_id: str, uri: str) -> None:
        self._client = client
        self._run_id = run_id
        self.address = uri and f"mlflow ui --backend-store-uri {uri}"

    def log(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for chunk in chunks(points, MAX_POINTS):
            metrics = [
                Metric(name, value, now, point.step)
                for point in chunk
                for name, value in point.values.items()
            ]
            self._client.log_batch(self._run_id, metrics=metrics)

    def end(self, ending: Ending, best: Mapping[str, float]) -> None:
        for name, value in best.items():
            self._client.log_metric(self._run_id, name, value)
        self._client.set_tag(self._run_id, "hpo.state", ending.state)
        self._client.set_tag(self._run_id, "hpo.reason", ending.reason)
        if ending.message:
            self._client.set_tag(self._run_id, "hpo.message", ending.message[:MAX_VALUE_CHARS])
        status = "FINISHED" if ending.is_good else "FAILED"
        self._client.set_terminated(self._run_id, status)

    def leave(self) -> None:
        self._client.set_terminated(self._run_id, "KILLED")
