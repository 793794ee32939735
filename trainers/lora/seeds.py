"""The random streams of a trial: each has a seed of its own, derived from the trial's."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *stream: object) -> int:
    """Return the seed of one of a trial's random streams, as in ``(42, "dropout", step, pass)``."""
    name = ":".join(str(part) for part in (seed, *stream))
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch takes 63 bits
