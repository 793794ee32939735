"""The process of one tracker: `python -m hpo.trackers TARGET NAME FOLDER STUDY`, told of trials on stdin.

A line on stdin is a trial's news, a line on stdout something for the user. It leaves when stdin ends, in
`GRACE_S` at most, whatever its SDK does; so a driver that is killed leaves nothing behind.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

from hpo.trackers.follower import Follower
from hpo.trackers.tracker import Ending, Run

GRACE_S = 10.0
_SECRETS = ("KEY", "TOKEN", "PASSWORD", "SECRET", "CREDENTIAL")
_MIN_SECRET_CHARS = 6


def main(target: str, name: str, folder: str, study: str) -> None:
    """Follow trials until stdin ends."""
    channel = _take_stdout()
    voice = _Voice(name, channel)
    module, _, attribute = target.partition(":")
    follower = None
    try:
        tracker = getattr(importlib.import_module(module), attribute)(Path(folder), study)
        follower = Follower(tracker, Path(folder) / "trackers" / name)
    except Exception as error:
        voice.warn(error)
    for line in sys.stdin:
        if follower is None:
            continue
        try:
            run, ending = _parse(line)
            follower.follow(run, ending)
        except Exception as error:
            voice.warn(error)
        if follower.address:
            voice.tell(f"{name}: {follower.address}")
    threading.Thread(target=_leave_in_time, daemon=True).start()
    if follower is not None:
        try:
            follower.leave()
        except Exception as error:
            voice.warn(error)
    voice.say({"bye": True})


class _Voice:
    """Says a tracker's first failure, and where it can be looked at, once each."""

    def __init__(self, name: str, channel: TextIO) -> None:
        self._name = name
        self._channel = channel
        self._said: set[str] = set()

    def warn(self, error: Exception) -> None:
        if "warning" not in self._said:
            self._said.add("warning")
            reason = " ".join(str(error).split()) or type(error).__name__
            self.say({"warning": _without_secrets(reason)[:500]})

    def tell(self, text: str) -> None:
        if "note" not in self._said:
            self._said.add("note")
            self.say({"note": _without_secrets(text)})

    def say(self, message: dict[str, object]) -> None:
        try:
            print(json.dumps(message), file=self._channel, flush=True)
        except OSError:  # nobody listens any more
            return


def _take_stdout() -> TextIO:
    """Keep stdout for ourselves: SDKs print what they like, and may print a key."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return channel


def _parse(line: str) -> tuple[Run, Ending | None]:
    message = json.loads(line)
    run = message["run"]
    run = Run(**{**run, "folder": Path(run["folder"]), "log_folder": Path(run["log_folder"])})
    return run, None if message["ending"] is None else Ending(**message["ending"])


def _leave_in_time() -> None:
    time.sleep(GRACE_S)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _without_secrets(text: str) -> str:
    for name, value in os.environ.items():
        if any(word in name.upper() for word in _SECRETS) and len(value) >= _MIN_SECRET_CHARS:
            text = text.replace(value, "***")
    return text


if __name__ == "__main__":
    main(*sys.argv[1:])
