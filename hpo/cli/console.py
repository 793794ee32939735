"""Where the command line writes: data to stdout, everything else to stderr."""

from __future__ import annotations

import json

from rich.console import Console

stdout = Console(soft_wrap=False)
stderr = Console(stderr=True)


def print_json(value: object) -> None:
    """Write one JSON document to stdout."""
    print(json.dumps(value, indent=1, default=str))
