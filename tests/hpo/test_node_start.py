"""How a run waits for the node that it starts."""

from __future__ import annotations

import time

import pytest
from ray._private import services

from hpo.cluster import node_start


class Gcs:
    """Knows the node after so many looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def _initialize_global_state(self, options: object) -> None: ...

    def node_table(self) -> list[dict[str, str]]:
        self.looks -= 1
        return [{"NodeID": "other"}, *([{"NodeID": "ours"}] if self.looks <= 0 else [])]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Ray itself is asked for."""
    nodes: list[str] = []
    monkeypatch.setattr(services, "get_node", lambda address, node: nodes.append(node))
    monkeypatch.setattr(services, "_get_gcs_client_options", lambda address: address)
    return nodes


def test_ray_is_asked_once_its_node_is_known(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gcs = Gcs(looks=4)
    monkeypatch.setattr(node_start, "GlobalState", lambda: gcs)
    before = services.get_node
    with node_start.noticed_at_once():
        services.get_node("address", "ours")
    assert gcs.looks == 0
    assert asked == ["ours"]
    assert services.get_node is before


def test_a_node_that_never_comes_is_left_to_ray(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_start, "GlobalState", lambda: Gcs(looks=10**9))
    monkeypatch.setattr(node_start, "GIVE_UP_S", 0.2)
    began = time.monotonic()
    with node_start.noticed_at_once():
        services.get_node("address", "ours")
    assert asked == ["ours"]
    assert 0.2 <= time.monotonic() - began < 5
