"""Where the command line writes: data to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys

from rich.console import Console

WIDTH_WITHOUT_TERMINAL = 160

stdout = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
stderr = Console(stderr=True)


def print_json(value: object) -> None:
    """Write one JSON document to stdout."""
    print(json.dumps(value, indent=1, default=str))
