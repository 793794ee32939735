"""A proxy before a PostgreSQL that cuts the line when a commit is done and its answer is under way."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Proxy:
    """A listening proxy.

    Attributes:
        target: The server's port on 127.0.0.1.
        every: Which commits lose their answer: each that many; 0 is none.
        num_cut: Answers lost so far.
    """

    target: int
    every: int = 0
    num_cut: int = 0
    listener: socket.socket = field(default_factory=socket.socket)
    _num_commits: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                cut = threading.Event()
                for here, there in ((client, server), (server, client)):
                    arguments = (here, there, cut, here is client)
                    threading.Thread(target=self._pass_on, args=arguments, daemon=True).start()

    def _pass_on(
        self, here: socket.socket, there: socket.socket, cut: threading.Event, from_client: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := here.recv(1 << 16):
                if from_client and b"COMMIT" in data and self._is_next():
                    cut.set()
                elif not from_client and cut.is_set():  # the server has committed
                    self.num_cut += 1
                    break
                there.sendall(data)
        for end in (here, there):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _is_next(self) -> bool:
        with self._lock:
            self._num_commits += 1
            return self.every > 0 and self._num_commits % self.every == 0


@contextlib.contextmanager
def cutting_proxy(target: int) -> Iterator[Proxy]:
    """Run a proxy for a while."""
    proxy = Proxy(target)
    proxy.listener.bind(("127.0.0.1", 0))
    proxy.listener.listen()
    threading.Thread(target=proxy.serve, daemon=True).start()
    try:
        yield proxy
    finally:
        with contextlib.suppress(OSError):
            proxy.listener.shutdown(socket.SHUT_RDWR)
        proxy.listener.close()
