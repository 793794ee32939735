"""The places that a store is tested at, and a hand that reaches into them behind its back."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow.fs import FileSelector, FileSystem

from hpo.store.address import is_url, local_folder, open_filesystem
from trainers.protocol import Report

PLACES = ("folder", "file", "s3", "memory")


def address_of(place: str, folder: Path, s3_options: str) -> str:
    """Return a fresh address of a kind."""
    name = uuid.uuid4().hex[:8]
    return {
        "folder": str(folder / name),
        "file": f"file://{folder / name}",
        "s3": f"s3://bucket/{name}{s3_options}",
        "memory": f"memory://bucket/{name}",
    }[place]


@dataclass(frozen=True)
class Hand:
    """Sees and changes the stored files themselves."""

    filesystem: Any
    root: str

    @classmethod
    def at(cls, address: str) -> Hand:
        if is_url(address):
            return cls(*open_filesystem(address))
        return cls(*FileSystem.from_uri(str(local_folder(address))))

    def files(self) -> dict[str, bytes]:
        """Return every stored file by its name under the root."""
        selector = FileSelector(self.root, recursive=True, allow_not_found=True)
        found = {}
        for info in self.filesystem.get_file_info(selector):
            if info.is_file:
                with self.filesystem.open_input_stream(info.path) as file:
                    found[info.path.strip("/")[len(self.root.strip("/")) + 1 :]] = file.read()
        return found

    def write(self, name: str, content: bytes) -> None:
        with self.filesystem.open_output_stream(f"{self.root}/{name}") as file:
            file.write(content)

    def delete(self, name: str) -> None:
        self.filesystem.delete_file(f"{self.root}/{name}")


def history(trial: int, count: int) -> list[Report]:
    return [Report(trial, k, 4 * k, {"eval_loss": 1.0 / k}) for k in range(1, count + 1)]


def save(folder: Path) -> None:
    """Write what a trainer would, in a few bytes."""
    for name in ("adapter", "state"):
        (folder / name).mkdir()
        (folder / name / "weights.bin").write_bytes(bytes(range(256)) * 4)


SAVED = {"adapter/weights.bin": bytes(range(256)) * 4, "state/weights.bin": bytes(range(256)) * 4}


def content(folder: Path) -> dict[str, bytes]:
    """Return what the trainer finds in a checkpoint."""
    return {name: (folder / name).read_bytes() for name in SAVED}
