"""Loads Ray Tune without pandas and Ray's data sets.

Tune imports both for functions that nobody here calls, such as its results as a table: that is two
thirds of the second that it takes to load, and 55 MiB of the driver. Here they are loaded if such a
function is called after all. Seen in Ray 2.60, ``ray.tune.__init__`` and ``ray.air.__init__``; can go
when Ray imports them where it uses them.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

from hpo.loading import to_stay

LATER = ("pandas", "ray.data")


def load_tune() -> None:
    """Import all that needs Tune."""
    with to_stay():
        with contextlib.suppress(ImportError), _loaded_when_asked(LATER):
            _load()
        _load()  # nothing is left to do, unless Tune needs more of them than it did


def _load() -> None:
    import hpo.cluster.heart
    import hpo.cluster.places
    import hpo.cluster.scheduler
    import hpo.cluster.searcher  # noqa: F401


@contextlib.contextmanager
def _loaded_when_asked(names: tuple[str, ...]) -> Iterator[None]:
    """Within this, whoever imports one of these modules gets what loads it later."""
    stand_ins = {name: _StandIn(name) for name in names if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


class _StandIn(ModuleType):
    """Has what its module has. Before that may be loaded, it is only asked for types to annotate with."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            return object
        return getattr(importlib.import_module(self.__name__), name)
