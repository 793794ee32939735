"""What STUDY and --storage mean on the command line: a study's name, or its file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hpo.spec_file import DEFAULT_STORAGE, SpecFile, read_spec_file, resolve_storage
from hpo.studies import StudyRecord, open_study

StudyArgument = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study's name, or its YAML file.")
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        envvar="HPO_STORAGE",
        help="The database: sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME. Without it the "
        f"file's 'storage:', or {DEFAULT_STORAGE} here. Keep a password in the environment.",
        show_envvar=True,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout, for programs.")]


@dataclass(frozen=True)
class Target:
    """A study that a user has named.

    Attributes:
        name: The study's name.
        storage: The database's URL.
        file: The checked file, if a file was named.
    """

    name: str
    storage: str
    file: SpecFile | None

    def open(self) -> StudyRecord:
        """Return the stored study."""
        return open_study(self.name, self.storage)


def is_file(study: str) -> bool:
    """Return whether an argument names a file rather than a study."""
    return study.endswith((".yaml", ".yml")) or os.sep in study


def find_target(study: str, storage: str | None) -> Target:
    """Return which study is meant.

    Raises:
        SpecError: The file is wrong, or the storage is no URL.
    """
    if is_file(study):
        file = read_spec_file(Path(study))
        return Target(file.spec.study, find_storage(storage, file.storage), file)
    return Target(study, find_storage(storage, None), None)


def find_storage(storage: str | None, of_file: str | None) -> str:
    """Return the database's URL: the option's or the environment's, the file's, or the default."""
    if storage is not None:
        return resolve_storage(storage, Path.cwd())
    return of_file or resolve_storage(DEFAULT_STORAGE, Path.cwd())
