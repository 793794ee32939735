"""Spreads trials over the hosts of a node without a GPU, also when there are fewer left than places."""

from __future__ import annotations


class Spread:
    """Which host each of Tune's trials is on. With one host, all are there."""

    def __init__(self, num_hosts: int) -> None:
        """Begin without trials."""
        self._num_hosts = num_hosts
        self._host_of: dict[str, int] = {}

    def __len__(self) -> int:
        """Return the number of trials that have a place."""
        return len(self._host_of)

    def take(self, trial_id: str) -> int:
        """Give a trial a place; return the number of its host: the emptiest."""
        self._host_of[trial_id] = self._emptiest()
        return self._host_of[trial_id]

    def free(self, trial_id: str) -> None:
        """Free a trial's place, if it has one."""
        self._host_of.pop(trial_id, None)

    def is_crowded(self, trial_id: str) -> bool:
        """Return whether a trial would have fewer beside it on another host."""
        host = self._host_of.get(trial_id)
        return host is not None and self._count(host) - self._count(self._emptiest()) > 1

    def _emptiest(self) -> int:
        return min(range(self._num_hosts), key=self._count)

    def _count(self, host: int) -> int:
        return list(self._host_of.values()).count(host)
