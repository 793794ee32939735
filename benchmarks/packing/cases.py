"""A case: so many trials, each with so many rows of so many tokens a step; and the rows for it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.conditions import ROOT

TEXT_FILE = ROOT / "data" / "docstrings" / "train.json"
RANKS = (8, 16)
"""Of the trials of a case, in turn."""

NUM_EPOCH_ROWS = 64
"""Rows of a case's file: trials draw their own with their own seeds."""


@dataclass(frozen=True)
class Case:
    """The work of one training step.

    Attributes:
        num_trials: In the pack.
        num_rows: Of each trial.
        num_tokens: Of each row; no padding.
        quantized: On a base in NF4 instead of bfloat16.
        target_share: The loss is on this last part of each row; on all of it at 1.
    """

    num_trials: int
    num_rows: int
    num_tokens: int
    quantized: bool = False
    target_share: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Case:
        """Read ``8x1x32``, or ``nf4-8x1x32`` on a quantized base.

        Raises:
            ValueError: It is no case.
        """
        found = re.fullmatch(r"(nf4-)?(\d+)x(\d+)x(\d+)", text)
        if found is None:
            raise ValueError(
                f"{text!r} is no case. Give TRIALSxROWSxTOKENS, as in 8x1x32 or nf4-8x1x32."
            )
        return cls(int(found[2]), int(found[3]), int(found[4]), quantized=bool(found[1]))

    def __str__(self) -> str:
        base = "nf4-" if self.quantized else ""
        return f"{base}{self.num_trials}x{self.num_rows}x{self.num_tokens}"

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of a row without loss."""
        return self.num_tokens - round(self.target_share * self.num_tokens)

    def rank(self, trial: int) -> int:
        """Return a trial's rank: the trials of a pack differ in theirs."""
        return RANKS[trial % len(RANKS)]


def read_text() -> str:
    """Return real text, which ``make setup`` writes: Python functions with their documentation."""
    rows = json.loads(TEXT_FILE.read_text(encoding="utf-8"))
    return "\n".join(" ".join(map(str, row.values())) for row in rows)


def write_rows(path: Path, tokenizer: Any, case: Case, text: str) -> dict[str, object]:
    """Write rows that have exactly the case's tokens once they are cut; return their options.

    Args:
        path: Of a new JSONL file.
        tokenizer: Of the model that will be trained.
        case: Says how long a row is, and how much of it is the prompt.
        text: What the rows are cut from. Only its ASCII part is used: a cut between two tokens is
            then one between two characters.
    """
    plain = text.encode("ascii", "ignore").decode()
    ids = tokenizer(plain, add_special_tokens=False)["input_ids"]
    window = 2 * case.num_tokens  # cut to the case's tokens, wherever a word's are cut in two
    assert len(ids) >= window, "the text is too short"
    rows: list[Mapping[str, str]] = []
    for number in range(NUM_EPOCH_ROWS):
        first = (number * window) % (len(ids) - window + 1)
        row = tokenizer.decode(ids[first : first + window])
        rows.append(_split(row, tokenizer, case.num_prompt_tokens))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "train_file": str(path),
        "data_format": "prompt_completion" if case.num_prompt_tokens else "text",
        "max_length": case.num_tokens,
    }


def _split(row: str, tokenizer: Any, num_prompt_tokens: int) -> Mapping[str, str]:
    if not num_prompt_tokens:
        return {"text": row}
    offsets = tokenizer(row, add_special_tokens=False, return_offsets_mapping=True)
    end = offsets["offset_mapping"][num_prompt_tokens - 1][1]
    return {"prompt": row[:end], "completion": row[end:]}
