"""TensorBoard event files by tensorboardX, which needs no torch.

They lie in ``tensorboard/<run>`` of the study's folder.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo.trackers.tracker import Ending, Point, Run, flat


class TensorBoard:
    """Writes one folder of event files a run, with its hyperparameters."""

    def __init__(self, folder: Path, study: str) -> None:
        # tensorboardX imports both where they are there, and uses neither for scalars: 3 seconds and
        # 400 MiB. This process is the tracker's own, so nobody else misses them.
        for unused in ("torch", "comet_ml"):
            sys.modules.setdefault(unused, None)  # type: ignore[arg-type]
        import tensorboardX  # noqa: F401  # a missing package is said once, at the start

        self._root = folder / "tensorboard"

    def open(self, run: Run, last_step: int | None) -> TensorBoardRun:
        folder = self._root / (re.sub(r"[^\w.=,+-]+", "_", run.name).strip(".") or str(run.number))
        return TensorBoardRun(run, folder, self._root, last_step)


class TensorBoardRun:
    """One run's event file; a run that goes on gets a further one in the same folder."""

    def __init__(self, run: Run, folder: Path, root: Path, last_step: int | None) -> None:
        from tensorboardX import SummaryWriter

        # Events after the last step that is known to be whole came from a killed process: they are
        # written again, and TensorBoard hides the older ones.
        purge = None if last_step is None else last_step + 1
        self._writer: Any = SummaryWriter(str(folder), purge_step=purge)
        self.address = f"tensorboard --logdir {root}"
        from tensorboardX.summary import hparams

        experiment, start, self._session_end = hparams(
            flat(run.config), {} if run.metric is None else {f"best/{run.metric}": 0.0}
        )
        self._writer.file_writer.add_summary(experiment)
        self._writer.file_writer.add_summary(start)
        self._writer.flush()

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            for name, value in point.values.items():
                self._writer.add_scalar(name, value, point.step)
        self._writer.flush()

    def end(self, ending: Ending, best: Mapping[str, float]) -> None:
        for name, value in best.items():
            self._writer.add_scalar(name, value, 0)
        said = f"{ending.state}: {ending.reason}" + (
            f": {ending.message}" if ending.message else ""
        )
        self._writer.add_text("end", said, 0)
        self._writer.file_writer.add_summary(self._session_end)
        self._writer.close()

    def leave(self) -> None:
        self._writer.close()
