"""Addresses of stores: a folder, or a URL that pyarrow or fsspec understands. Holds no password.

Credentials come from the environment, as the store's own library reads them.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from urllib.request import url2pathname

from hpo.errors import CheckpointError
from hpo.store.manifest import RefusedError

_SECRET = re.compile(r"pass(word|wd)?|secret|token|key|credential|sig(nature)?", re.IGNORECASE)
_OF_PYARROW = {"s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs"}
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "smb": "smbprotocol",
    "hf": "huggingface_hub",
    "webhdfs": "requests",
}


def is_url(address: str | Path) -> bool:
    """Return whether an address is none of a local folder."""
    return "://" in str(address) and not str(address).startswith("file://")


def local_folder(address: str | Path) -> Path:
    """Return the folder of a local address: a path, or ``file://``."""
    text = str(address)
    return Path(url2pathname(urlsplit(text).path)) if text.startswith("file://") else Path(text)


def absolute(address: str, folder: Path) -> str:
    """Return an address that is the same everywhere on this machine: a path starts at ``folder``."""
    if is_url(address):
        return address.rstrip("/")
    path = local_folder(address).expanduser()
    return os.path.normpath(folder.resolve() / path)


def child(address: str | Path, *names: str) -> str:
    """Return the address of something in a store; a URL's options stay behind its path."""
    if not is_url(address):
        return str(local_folder(address).joinpath(*names))
    base, question, options = str(address).partition("?")
    return "/".join((base.rstrip("/"), *names)) + question + options


def shown(address: str | Path) -> str:
    """Return an address as it may be printed: without user, password and options."""
    text = str(address)
    if not is_url(text):
        return text
    return re.sub(r"://[^/@]*@", "://", text.partition("?")[0])


def problem_of(address: str) -> str | None:
    """Return what is wrong with an address, as far as it shows without a connection."""
    if not is_url(address):
        return None
    try:
        parts = urlsplit(address)
        held = [name for name, _ in parse_qsl(parts.query) if _SECRET.search(name)]
        has_password = parts.password is not None
    except ValueError as error:
        return f"{shown(address)!r} is no address: {error}."
    if has_password or held:
        what = f"the option {held[0]!r}" if held else "a password"
        return (
            f"{shown(address)!r} is given with {what}, which would be stored with the study. Put "
            f"credentials into the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for "
            f"s3://, GOOGLE_APPLICATION_CREDENTIALS for gs://) or their library's own file, on "
            f"every node, and leave them out here."
        )
    if not parts.netloc and not parts.path.strip("/"):
        return f"{shown(address)!r} names no place. Give a path too, as in s3://bucket/runs."
    if parts.scheme in _OF_PYARROW:  # which may ask the network at once
        return None
    try:
        _open_fsspec(address)
    except CheckpointError as error:
        return str(error)
    return None


def open_filesystem(address: str) -> tuple[Any, str]:
    """Return pyarrow's file system for a URL, and the path there.

    Raises:
        CheckpointError: Nothing here understands the address; with the package to install.
    """
    import pyarrow as pa
    import pyarrow.fs

    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(address)
        return filesystem, path.rstrip("/")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ImportError) as error:
        return _open_fsspec(address, str(error))
    except (OSError, ValueError) as error:
        raise CheckpointError(_said(address, error)) from None


def _open_fsspec(address: str, arrow_says: str = "pyarrow does not") -> tuple[Any, str]:
    import fsspec
    import pyarrow.fs
    from fsspec.core import url_to_fs

    parts = urlsplit(address)
    try:
        if parts.scheme not in fsspec.available_protocols():
            raise CheckpointError(
                f"{shown(address)!r}: nothing here knows {parts.scheme!r} addresses ({arrow_says}). "
                f"Give a folder, s3://, gs://, or any scheme of pyarrow or fsspec."
            )
        found, path = url_to_fs(address.partition("?")[0], **dict(parse_qsl(parts.query)))
    except ImportError as error:
        package = _PACKAGES.get(parts.scheme, "its fsspec package")
        raise CheckpointError(
            f"{shown(address)!r} needs a package that is not installed ({error}). Type "
            f"`pip install {package}`, on every node too."
        ) from None
    except (ValueError, TypeError, OSError) as error:
        raise CheckpointError(
            f"{shown(address)!r} cannot be opened: {error} ({arrow_says})"
        ) from None
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(found)), str(path).rstrip("/")


@contextmanager
def reaching(address: str | Path) -> Iterator[None]:
    """Turn whatever a store's library raises into one message.

    Raises:
        CheckpointError: The store does not answer, or refuses.
    """
    try:
        yield
    except (CheckpointError, RefusedError):
        raise
    except Exception as error:  # each fsspec package has errors of its own
        raise CheckpointError(_said(address, error)) from None


def _said(address: str | Path, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    lowered = text.lower()
    if "no_such_bucket" in lowered or "nosuchbucket" in lowered:
        what = "There is no such bucket: make it, or mend 'output_dir:'."
    elif "access_denied" in lowered or "forbidden" in lowered or "403" in lowered:
        what = (
            "Check the credentials in the environment of this machine and of every node, and "
            "that they may list, read, write and delete there."
        )
    else:
        what = (
            "Check the address ('output_dir:', its endpoint_override and region), the network and "
            "the credentials in the environment, here and on every node."
        )
    return (
        f"the store {shown(address)} cannot be used: {text}. {what} `hpo resume` goes on from it."
    )


def check_usable(address: str | Path) -> None:
    """Check that a store can be written, listed and deleted from, before anything trains.

    Raises:
        CheckpointError: It cannot; with what to do.
    """
    if not is_url(address):
        return
    filesystem, path = open_filesystem(str(address))
    name = f"{path}/.hpo-{uuid.uuid4().hex[:8]}"
    with reaching(address):
        make_parents(filesystem, name)
        with filesystem.open_output_stream(name) as file:
            file.write(b"hpo")
        filesystem.delete_file(name)


def is_object_store(filesystem: Any) -> bool:
    """Return whether folders come into being with their files."""
    return filesystem.type_name in ("s3", "gcs", "abfs")


def make_parents(filesystem: Any, path: str) -> None:
    """Make the folder of a file, where the file system has folders."""
    if not is_object_store(filesystem):
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)
