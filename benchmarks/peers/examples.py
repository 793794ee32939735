"""The examples: Alpaca rows as turns of the model's own chat template, the loss on the answer only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.utils.data import Dataset
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from workload import Workload

IGNORE_INDEX = -100

Example = dict[str, list[int]]


class Examples(Dataset[Example]):
    """Examples of one file, in its order. Each is tokenised when first asked for.

    A trial of a few steps asks for a few dozen, so nobody waits for the rest.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, str]],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> None:
        """Take the rows of the file."""
        self._rows = rows
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._known: dict[int, Example] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        if index not in self._known:
            self._known[index] = self._tokenise(self._rows[index])
        return self._known[index]

    def _tokenise(self, row: Mapping[str, str]) -> Example:
        question = "\n".join(part for part in (row["instruction"], row.get("input", "")) if part)
        asked = [{"role": "user", "content": question}]
        answered = [*asked, {"role": "assistant", "content": row["output"]}]
        prompt = self._render(asked, add_generation_prompt=True)
        text = self._render(answered, add_generation_prompt=False)
        ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        num_prompt = len(self._tokenizer(prompt, add_special_tokens=False)["input_ids"])
        labels = [IGNORE_INDEX] * num_prompt + ids[num_prompt:]
        cut = slice(self._max_length)
        return {
            "input_ids": ids[cut],
            "attention_mask": [1] * len(ids[cut]),
            "labels": labels[cut],
        }

    def _render(self, turns: list[dict[str, str]], add_generation_prompt: bool) -> str:
        text = self._tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return str(text)


class Data:
    """What all trials of a process share.

    Attributes:
        train: In file order.
        validation: The first ``eval_max_samples``, the longest first, so that the rows of a batch
            are of like length. Their mean loss does not depend on the order.
        collate: Pads a batch to its longest row.
    """

    def __init__(self, workload: Workload) -> None:
        """Read the files and the model's tokenizer."""
        tokenizer = AutoTokenizer.from_pretrained(workload.model)
        self.train = Examples(_read(workload.train_file), tokenizer, workload.max_length)
        first = Examples(
            _read(workload.validation_file)[: workload.eval_max_samples],
            tokenizer,
            workload.max_length,
        )
        examples = [first[index] for index in range(len(first))]
        self.validation = sorted(examples, key=lambda example: -len(example["input_ids"]))
        self.collate = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORE_INDEX)


def _read(path: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(Path(path).read_text())
    return rows
