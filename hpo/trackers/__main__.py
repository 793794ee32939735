"""The process of one tracker: `python -m hpo.trackers TARGET NAME FOLDER STUDY GRACE_S`.

A line on stdin is a trial's news, a line on stdout something for the user. It leaves within GRACE_S
of the end of stdin, whatever its SDK does; so a driver that is killed leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from hpo.trackers.follower import Follower
from hpo.trackers.tracker import Ending, Run

_SECRETS = ("KEY", "TOKEN", "PASSWORD", "SECRET", "CREDENTIAL")
_MIN_SECRET_CHARS = 6


def main(target: str, name: str, folder: str, study: str, grace_s: str) -> None:
    """Follow trials until stdin ends."""
    channel = _take_stdout()
    voice = _Voice(name, channel)
    module, _, attribute = target.partition(":")
    inbox = _Inbox(float(grace_s))
    follower = None
    try:
        tracker = getattr(importlib.import_module(module), attribute)(Path(folder), study)
        follower = Follower(tracker, Path(folder) / "trackers" / name)
    except Exception as error:
        voice.warn(error)
    for run, ending in inbox:
        if follower is None:
            continue
        try:
            follower.follow(run, ending)
        except Exception as error:
            voice.warn(error)
        if follower.address:
            voice.tell(f"{name}: {follower.address}")
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


class _Inbox:
    """The newest news of each trial. A thread reads, so that stdin's end is seen while an SDK hangs."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._changed = threading.Condition()
        self._news: dict[int, tuple[Run, Ending | None]] = {}
        self._ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def __iter__(self) -> Iterator[tuple[Run, Ending | None]]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._news or self._ended)
                if not self._news:
                    return
                number = next(iter(self._news))
                news = self._news.pop(number)
            yield news

    def _read(self) -> None:
        for line in sys.stdin:
            with contextlib.suppress(ValueError):  # torn: the driver was killed in mid-line
                run, ending = _parse(line)
                with self._changed:
                    self._news[run.number] = (run, ending)
                    self._changed.notify()
        with self._changed:
            self._ended = True
            self._changed.notify()
        time.sleep(self._grace_s)
        os.killpg(os.getpgid(0), signal.SIGKILL)  # and what the SDK has started


def _without_secrets(text: str) -> str:
    for name, value in os.environ.items():
        if any(word in name.upper() for word in _SECRETS) and len(value) >= _MIN_SECRET_CHARS:
            text = text.replace(value, "***")
    return text


if __name__ == "__main__":
    main(*sys.argv[1:])
