"""How Tune starts its actors: our proxies, in place of the class that Tune was given.

Tune asks for a class of its own, and hands it arguments of its own classes. A process takes longer to
import these, and more memory, than all that a proxy needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.air.execution._internal import RayActorManager

from hpo.cluster.proxy import TrialProxy


class Proxies(RayActorManager):
    """Takes the place of Tune's own manager of actors, for which it has no option."""

    def __init__(self, **arguments: Any) -> None:
        """Take what Tune's own does."""
        super().__init__(**arguments)
        # In no environment of its own: so that processes which Ray has begun already can be used.
        self._class = ray.remote(TrialProxy)

    def add_actor(
        self, cls: object, kwargs: Mapping[str, Any], resource_request: Any, **heard: Any
    ) -> Any:
        """Start a proxy for a trial."""
        config = _plain(kwargs["config"])
        return super().add_actor(self._class, {"config": config}, resource_request, **heard)

    def schedule_actor_task(
        self,
        tracked_actor: Any,
        method_name: str,
        args: tuple[Any, ...] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **heard: Any,
    ) -> Any:
        """Call a proxy: to go on, to take another trial, or to stop."""
        if method_name == "reset":
            assert args is not None
            args, kwargs = (_plain(args[0]),), None
        return super().schedule_actor_task(tracked_actor, method_name, args, kwargs, **heard)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's config without what Tune adds to it for a class of its own."""
    return {name: value for name, value in config.items() if not name.startswith("__")}
