"""The errors that `hpo` raises for its users: one small tree, picklable, one message each.

A message says what is wrong, the value, what is allowed and what to do next. ``exit_code`` is what
the command line ends with. What cannot happen is an ``assert``, not an error from here.
"""

from __future__ import annotations


class HpoError(Exception):
    """Something that the user can mend; shown without a traceback."""

    exit_code = 2


class SpecError(HpoError):
    """A study's file is wrong; the message lists everything that is."""


class StudyError(HpoError):
    """A study does not exist, exists already, is in use, or does not allow what was asked."""


class StorageError(HpoError):
    """The database cannot be reached, read or written, or belongs to another version."""


class NoDatabaseError(StorageError):
    """There is no such database yet; looking must not make one."""


class CheckpointError(HpoError):
    """A checkpoint is torn, missing or not ours, or cannot be written."""


class TrainerError(HpoError):
    """The trainer cannot start: its model, its data or its name is wrong."""


class LeaseLostError(HpoError):
    """Another driver owns the trial now; whatever this one has to say about it is void."""

    exit_code = 1


class ExhaustedError(HpoError):
    """There is no further point to propose; ends a search, and is no failure of it."""

    exit_code = 0
