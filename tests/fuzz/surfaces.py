"""All surfaces, by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from tests.fuzz.data import ChatTemplates, DataFiles
from tests.fuzz.files import BaseFiles, ConfigFiles, DatasetInfos, Expressions, StudyFiles
from tests.fuzz.stored import Checkpoints, DatabaseFiles, Rows
from tests.fuzz.surface import Surface

SURFACES: Mapping[str, Callable[[Path], Surface]] = {
    "study": lambda _folder: StudyFiles(),
    "config": lambda _folder: ConfigFiles(),
    "base": lambda _folder: BaseFiles(),
    "dataset_info": lambda _folder: DatasetInfos(),
    "expression": lambda _folder: Expressions(),
    "data": DataFiles,
    "template": ChatTemplates,
    "rows": Rows,
    "database": DatabaseFiles,
    "checkpoints": Checkpoints,
}


def all_surfaces(folder: Path, only: Collection[str] | None = None) -> list[Surface]:
    """Return the surfaces; what they need beforehand is made in a folder."""
    folder.mkdir(parents=True)
    return [make(folder) for name, make in SURFACES.items() if not only or name in only]
