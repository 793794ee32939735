"""A Ray cluster for the length of a run: joined, or started on this machine and ended with all it made.

What a run that was killed has left of its own on this machine goes when the next one starts.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from hpo.cluster.loopback import on_loopback
from hpo.cluster.replaced import replaced
from hpo.cluster.signals import Signals
from hpo.errors import StudyError

NAMESPACE = "hpo"
CONNECT_TIMEOUT_S = 5
END_S = 5.0
"""So long a busy machine may take to end what is killed."""

LAST_S = 1.0
"""So long a process may take to end by itself when its cluster has gone."""

_OF_DEAD_PROCESSES = ("['A worker died or was killed", "['The node with node id")

OWNER = "hpo-owner.json"  # in Ray's session folder: which process may not be dead for it to stay

_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours saves the trials first
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # said by us, in a line each
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Its parts try to reach each other once a second: one start in six took that longer.
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "500",
    "RAY_worker_niceness": "0",  # at Ray's 15 every other process keeps a host from its cores
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}


@contextlib.contextmanager
def ray_session(
    address: str | None,
    run_id: str,
    signals: Signals,
    say: Callable[[str], None],
) -> Iterator[Path]:
    """Connect to Ray, and in the end leave no process and no file of this run behind.

    Args:
        address: Of a running cluster; None: start one here. One that this process has joined already
            is used as it is.
        run_id: Part of the names of this run's hosts.
        signals: Those that have come while Ray starts are not lost.
        say: Told in one line what is done.

    Yields:
        A folder for what nobody reads afterwards.

    Raises:
        StudyError: Ray cannot be joined or started.
    """
    import ray

    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    _sweep()
    started = not ray.is_initialized()
    before = set(psutil.Process().children())
    folder: Path | None = None
    scratch: Path | None = None
    keep = False
    try:
        _hush(ray._private.worker)
        if started:
            say(f"joining the Ray cluster {address}" if address else "starting Ray on this machine")
            folder = _start(address, signals)
        scratch = _scratch(folder)
        yield scratch
    except Exception:
        keep = True  # Ray's logs may tell why; the next run removes them
        raise
    finally:
        with signals.held_off():
            # Of a cluster of our own every process is ended below, also one that cannot be told.
            processes = _descendants(before) if started and address is None else []
            _end_hosts(run_id, 0.0 if processes else END_S)
            if started:
                ray.shutdown()
            _end_processes(processes)
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)
            if started and address is None and not keep:
                for path in [folder] if folder else _sessions(os.getpid()):
                    shutil.rmtree(path, ignore_errors=True)


def host_handles(run_id: str) -> list[Any]:
    """Return the actors that are hosts of a run."""
    import ray
    from ray.util import list_named_actors

    handles = []
    for actor in list_named_actors(all_namespaces=True):
        if actor["name"].startswith(f"hpo-host-{run_id}-"):
            with contextlib.suppress(ValueError):
                handles.append(ray.get_actor(actor["name"], namespace=actor["namespace"]))
    return handles


def _start(address: str | None, signals: Signals) -> Path | None:
    """Connect; return the session's folder if it is our own."""
    import ray

    from hpo.cluster.node_processes import only_what_is_asked
    from hpo.cluster.node_start import noticed_at_once

    _check_reachable(address)
    # Ray has no option for either: its processes would get the signals that a terminal or a batch system
    # sends to a whole group, and end before the trials are saved; and it takes SIGTERM for itself.
    popen = ray._private.services.ConsolePopen

    def in_own_group(*args: Any, preexec_fn: Callable[[], None], **options: Any) -> Any:
        def begin() -> None:
            signals.unblocked()
            preexec_fn()

        return popen(*args, preexec_fn=begin, process_group=0, **options)

    with (
        replaced(ray._private.services, "ConsolePopen", in_own_group),
        replaced(ray._private.utils, "set_sigterm_handler", lambda handler: None),
        signals.kept(),
    ):
        try:
            is_ours = address is None
            with on_loopback(is_ours), only_what_is_asked(is_ours), noticed_at_once():
                context = ray.init(
                    address=address or "local",
                    namespace=NAMESPACE,
                    include_dashboard=False if address is None else None,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise StudyError(
                f"cannot {'join the Ray cluster ' + address if address else 'start Ray'}: {error}"
            ) from None
    if address is not None:
        return None
    folder = Path(context.address_info["session_dir"])
    me = psutil.Process()
    (folder / OWNER).write_text(json.dumps({"pid": me.pid, "began": me.create_time()}))
    return folder


def _hush(worker: Any) -> None:
    """Keep to itself what Ray says of each dead process: the run says what that means for a trial."""
    spoken = worker.print_to_stdstream
    if getattr(spoken, "is_hushed", False):
        return

    def hushed(data: dict[str, Any], *args: Any, **options: Any) -> None:
        if not str(data.get("lines")).startswith(_OF_DEAD_PROCESSES):
            spoken(data, *args, **options)

    hushed.is_hushed = True  # type: ignore[attr-defined]
    worker.print_to_stdstream = hushed


def _scratch(folder: Path | None) -> Path:
    if folder is None:
        return Path(tempfile.mkdtemp(prefix=f"hpo-tune-{os.getpid()}-"))
    scratch = folder / "hpo-tune"
    scratch.mkdir()
    return scratch


def _end_hosts(run_id: str, wait_s: float) -> None:
    """Kill this run's hosts: they belong to no driver, and would wait for one."""
    import ray

    with contextlib.suppress(Exception):  # a cluster that is gone has no hosts
        for host in host_handles(run_id):
            ray.kill(host)
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and host_handles(run_id):
            time.sleep(0.05)


def _descendants(before: set[psutil.Process]) -> list[psutil.Process]:
    """Return the processes that were started since, and all that those have started."""
    found = []
    for process in set(psutil.Process().children()) - before:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [process, *process.children(recursive=True)]
    return found


def _end_processes(processes: list[psutil.Process]) -> None:
    """Wait until processes are gone. A host that is just killed can outlive its cluster by a minute."""
    _, alive = psutil.wait_procs(processes, timeout=LAST_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=END_S)


def _sweep() -> None:
    """Remove what runs of ours that were killed have left: Ray's sessions and our own folders."""
    for folder in _sessions():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            owner = json.loads((folder / OWNER).read_text())
            if not _is_alive(int(owner["pid"]), float(owner["began"])):
                shutil.rmtree(folder, ignore_errors=True)
    for folder in Path(tempfile.gettempdir()).glob("hpo-tune-*-*"):
        pid = folder.name.split("-")[2]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _sessions(pid: int | None = None) -> list[Path]:
    """Return the folders of Ray's sessions on this machine, or those that a process has begun."""
    root = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray"
    found = root.glob(f"session_2*_{'*' if pid is None else pid}")
    return [folder for folder in found if not folder.is_symlink()]


def _is_alive(pid: int, began: float) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return abs(psutil.Process(pid).create_time() - began) < 1.0
    return False


def _check_reachable(address: str | None) -> None:
    """Knock at a cluster's door: Ray itself tries for minutes before it gives up.

    Raises:
        StudyError: Nobody answers there.
    """
    host, separator, port = (address or "").rpartition(":")
    if not separator or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise StudyError(
            f"cannot join the Ray cluster {address}: {error.strerror or error}. Start its head with "
            f"`ray start --head`, or leave 'ray_address:' out to use this machine."
        ) from None
