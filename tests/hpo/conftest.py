"""Tests of rules do not wait for the disk; what reaches it is tested in test_checkpoints."""

import pytest


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "test_checkpoints" not in request.module.__name__:
        monkeypatch.setattr("hpo.store.local.fsync", lambda path: None)
