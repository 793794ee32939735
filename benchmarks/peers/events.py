"""What happens in a search, a line of JSON each, from whichever process. Standard library only."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from workload import Config

FILE = "events.jsonl"


class Events:
    """Appends to the file of a search. Cheap to make, so every process makes its own."""

    def __init__(self, out: Path) -> None:
        """Take the folder of the search."""
        self._path = out / FILE

    def search_begin(self) -> None:
        """The recipe begins to search; its imports are done."""
        self._write("search_begin")

    def search_end(self) -> None:
        """The tool has named its best trial."""
        self._write("search_end")

    def begin(self, trial: int, config: Config) -> None:
        """The tool starts on a trial."""
        self._write("begin", trial=trial, step=0, config=config.as_dict())

    def step(self, trial: int, step: int) -> None:
        """An optimizer step is done, the ``step``-th of its trial."""
        self._write("step", trial=trial, step=step)

    def validation(self, trial: int, step: int, loss: float) -> None:
        """A validation is done: mean loss of each target token."""
        self._write("validation", trial=trial, step=step, loss=loss)

    def end(self, trial: int, step: int) -> None:
        """The tool is done with a trial."""
        self._write("end", trial=trial, step=step)

    def _write(self, kind: str, **values: object) -> None:
        line = json.dumps({"t": time.time(), "kind": kind, **values}) + "\n"
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(
                file, line.encode()
            )  # one write, so that lines of several processes stay whole
        finally:
            os.close(file)
