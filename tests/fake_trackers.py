"""Trackers without an SDK: one that writes down what it is told, and others that misbehave."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpo.trackers.tracker import Ending, Point, Run


class Recorder:
    """Writes a line for everything to `recorded.jsonl`; fails while a file `broken` is there."""

    def __init__(self, folder: Path, study: str) -> None:
        self._folder = folder

    def open(self, run: Run, last_step: int | None) -> RecordedRun:
        opened = RecordedRun(self._folder, run)
        opened.write("open", name=run.name, key=run.key, last_step=last_step, config=run.config)
        return opened


class RecordedRun:
    address = "over there"

    def __init__(self, folder: Path, run: Run) -> None:
        self._folder = folder
        self._number = run.number

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self.write("point", step=point.step, **point.values)

    def end(self, ending: Ending, best: Mapping[str, float]) -> None:
        self.write("end", state=ending.state, reason=ending.reason, **best)

    def leave(self) -> None:
        self.write("leave")

    def write(self, what: str, **said: object) -> None:
        if (self._folder / "broken").exists():
            raise OSError(f"no network for the key {os.environ.get('FAKE_API_KEY')}")
        line = {"what": what, "trial": self._number, **said}
        with (self._folder / "recorded.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


class Hanging(Recorder):
    def open(self, run: Run, last_step: int | None) -> RecordedRun:
        time.sleep(600)
        raise AssertionError


class Dying(Recorder):
    def open(self, run: Run, last_step: int | None) -> RecordedRun:
        os._exit(3)


class Broken:
    def __init__(self, folder: Path, study: str) -> None:
        raise RuntimeError("log in first: postgres://me:hunter2@host/db")


def recorded(folder: Path) -> list[dict[str, object]]:
    path = folder / "recorded.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
