"""A checkpoint's manifest: which files it has, with their sizes and checksums. Trusts nothing it reads.

A manifest is somebody's bytes: it may be torn, huge, nested or name files elsewhere. What is not exactly
right is refused with its reason, and never crashes a reader.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hpo.errors import CheckpointError

FORMAT = 1
MANIFEST = "manifest.json"
HISTORY = "history.json"
MAX_BYTES = 16 << 20
"""Of a manifest; a real one has some kilobytes."""

_CHUNK_BYTES = 1 << 20


class RefusedError(Exception):
    """A checkpoint is not whole, and why, in a few words."""


class Listed(BaseModel):
    """What a manifest says of a file."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    bytes: Annotated[int, Field(ge=0, le=1 << 50)]
    blake2b: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Manifest(BaseModel):
    """What a checkpoint consists of.

    Attributes:
        folder: At a URL, the folder beside the manifest that the files lie in; locally they lie
            beside the manifest.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    format: Literal[1]
    trial: Annotated[int, Field(ge=0)]
    step: Annotated[int, Field(ge=0)]
    is_validation: bool
    files: dict[str, Listed]
    folder: Annotated[str, Field(pattern=r"^[0-9a-f]{1,32}$")] | None = None

    @property
    def num_bytes(self) -> int:
        """What its files take together."""
        return sum(listed.bytes for listed in self.files.values())


def make(
    folder: Path, trial: int, step: int, is_validation: bool, place: str | None = None
) -> Manifest:
    """Return the manifest of the files in a folder.

    Raises:
        ValueError: A link is among them: what it leads to is not saved.
    """
    if links := [path for path in folder.rglob("*") if path.is_symlink()]:
        raise ValueError(f"the trainer saved a symbolic link, {links[0].name}")
    files = {name: checksum(folder / name) for name in files_in(folder)}
    return Manifest(
        format=1, trial=trial, step=step, is_validation=is_validation, files=files, folder=place
    )


def as_bytes(manifest: Manifest) -> bytes:
    """Return a manifest as it is stored."""
    return json.dumps(manifest.model_dump(exclude_none=True), indent=1).encode()


def parse(content: bytes, trial: int, step: int) -> Manifest:
    """Return the manifest of one checkpoint.

    Raises:
        RefusedError: It is torn, of another checkpoint, or names files that are not in its folder.
        CheckpointError: A newer version wrote it.
    """
    if not content:
        raise RefusedError("its manifest is empty")
    if len(content) > MAX_BYTES:
        raise RefusedError("its manifest is larger than any of ours")
    value = parse_json(content, "manifest")
    written = value.get("format") if isinstance(value, dict) else None
    if isinstance(written, int) and written > FORMAT:  # passed over, its trial would begin again
        raise CheckpointError(
            f"the checkpoint of trial {trial} at step {step} has format {written}, and this version of "
            f"hpo knows {FORMAT}: a newer one wrote it. Update hpo, or remove the checkpoint's folder to "
            f"go on without it."
        )
    try:
        manifest = Manifest.model_validate(value)
    except ValidationError as error:
        said = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in said["loc"])[:80]
        raise RefusedError(
            f"its manifest is wrong at {where or 'the top'}: {said['msg']}"
        ) from None
    if (manifest.trial, manifest.step) != (trial, step):
        raise RefusedError(f"it is of trial {manifest.trial}, step {manifest.step}")
    for name in manifest.files:
        if not is_inside(name):
            raise RefusedError(f"its manifest names a file outside its folder, {name[:80]!r}")
    if HISTORY not in manifest.files:
        raise RefusedError("its manifest lists no history")
    return manifest


def parse_json(content: bytes, what: str) -> Any:
    """Return JSON of unknown origin.

    Raises:
        RefusedError: It is none, or deeper than any of ours.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        raise RefusedError(f"its {what} is torn") from None


def is_inside(name: str) -> bool:
    """Return whether a name can only be that of a file in the folder."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and not {"..", "."} & set(name.split("/"))
        and str(path) == name
        and path.name != MANIFEST
        and not any(character in name for character in "\\\0:")
    )


def verify(folder: Path, manifest: Manifest, *, deeply: bool) -> None:
    """Check that a local folder holds what its manifest lists, and nothing else.

    Args:
        folder: With the manifest beside the files.
        manifest: As parsed.
        deeply: Compare the checksums; else the sizes alone.

    Raises:
        RefusedError: It does not; with the first file that is wrong.
    """
    for name, listed in manifest.files.items():
        path = folder
        for part in PurePosixPath(name).parts:
            path /= part
            if path.is_symlink():
                raise RefusedError(f"{name} is a symbolic link")
        if not path.is_file():
            raise RefusedError(f"{name} is missing")
        if path.stat().st_size != listed.bytes:
            raise RefusedError(f"{name} has {path.stat().st_size} of {listed.bytes} bytes")
        if deeply and checksum(path) != listed:
            raise RefusedError(f"{name} has other bytes than were written")
    if extra := set(files_in(folder)) - manifest.files.keys():
        raise RefusedError(f"{min(extra)} is in its folder and not in its manifest")


def read_limited(path: Path) -> bytes:
    """Return a small file's bytes.

    Raises:
        RefusedError: It is missing, a link, or larger than any of ours.
    """
    try:
        if path.is_symlink() or not path.is_file():
            raise RefusedError(f"its {path.name} is missing")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RefusedError(f"its {path.name} cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise RefusedError(f"its {path.name} is larger than any of ours")
    return content


def files_in(folder: Path) -> Iterator[str]:
    """Yield the names of a checkpoint's files, relative; hidden ones are a file system's own."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST and not path.name.startswith("."):
            yield name


def checksum(path: Path) -> Listed:
    """Return a file's size and checksum."""
    digest = hashlib.blake2b(digest_size=16)
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return Listed(bytes=size, blake2b=digest.hexdigest())
