"""Notices at once that the node which a run starts has joined its Ray.

``ray.init`` looks for its node once a second. Seen in Ray 2.60, ``GlobalStateAccessor``; can go when that
waits for the node instead of looking.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from ray._private import services
from ray._private.state import GlobalState

from hpo.cluster.replaced import replaced

LOOK_EVERY_S = 0.02
GIVE_UP_S = 10.0
"""Then Ray looks by itself, and says what is wrong."""


@contextlib.contextmanager
def noticed_at_once() -> Iterator[None]:
    """Within this, ``ray.init`` returns as soon as the node that it starts is there."""
    get_node = services.get_node

    def get_node_soon(gcs_address: str, node_id: str) -> Any:
        state = GlobalState()
        state._initialize_global_state(services._get_gcs_client_options(gcs_address))
        give_up_at = time.monotonic() + GIVE_UP_S
        while time.monotonic() < give_up_at and not _knows(state, node_id):
            time.sleep(LOOK_EVERY_S)
        return get_node(gcs_address, node_id)

    with replaced(services, "get_node", get_node_soon):
        yield


def _knows(state: GlobalState, node_id: str) -> bool:
    return any(node["NodeID"] == node_id for node in state.node_table())
