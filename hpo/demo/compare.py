"""The best adapter of a demo's study beside the untuned model and the default config.

Three figures on the study's validation set, then answers side by side. For answers that are JSON,
how many are exactly right.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpo.config_file import ConfigFile
from hpo.lookup import find_trainer
from hpo.proposals import config_digest
from hpo.single import train_config
from hpo.studies import StudyRecord, TrialRecord
from trainers.lora.data.records import read_records
from trainers.lora.data.samples import Conversation, read_samples
from trainers.protocol import ADAPTER_FOLDER

BATCH_SIZE = 16
MAX_NEW_TOKENS = 48


@dataclass(frozen=True)
class Question:
    """One example of the data: what the model is asked, and what it should say."""

    messages: list[dict[str, str]]
    answer: str


def compare(record: StudyRecord, best: TrialRecord, num_answers: int, num_scored: int) -> None:
    """Print the comparison to stdout.

    Args:
        record: A study of the LoRA trainer.
        best: Its best trial; its adapter stands in the study's `best/`.
        num_answers: Answers to show side by side.
        num_scored: Answers to compare with the expected one, if those are JSON.
    """
    adapter = Path(record.spec.output_dir) / record.name / "best" / ADAPTER_FOLDER
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(_losses(record, best, adapter))
    data = _test_file(record)
    questions = _questions(data)
    is_json = all(question.answer.startswith("{") for question in questions)
    chosen = questions[: num_scored if is_json else num_answers]
    untuned, tuned = _answers(record, adapter, chosen)
    console.print(_beside(chosen[:num_answers], untuned, tuned))
    if is_json:
        for name, answers in (("untuned", untuned), ("tuned", tuned)):
            right = sum(_same_json(a, q.answer) for a, q in zip(answers, chosen, strict=True))
            console.print(f"{name}: {right} of {len(chosen)} commands of {data.name} exactly right")


def _losses(record: StudyRecord, best: TrialRecord, adapter: Path) -> Table:
    """Validate the untuned model, the default config trained to its end, and the best adapter."""
    searched = record.spec.space
    default = {name: value for name, value in record.spec.fixed.items() if name not in searched}
    digest = config_digest(default)[:8]  # an edited file has another default
    folder = Path(record.spec.output_dir) / f"{record.name}-default-{digest}"
    print("training the default config to its end", file=sys.stderr)
    spec = record.spec
    config = ConfigFile(spec.trainer, default, folder, metric=spec.metric, sign=spec.sign)
    trained: Any = train_config(config, lambda text: print(text, file=sys.stderr))
    trainer = find_trainer(record.spec.trainer)(record.spec.fixed, "auto")
    table = Table(title="on the validation set", title_justify="left", header_style="bold")
    names = dict.fromkeys(("eval_loss", "perplexity", "eval_token_accuracy", spec.metric))
    for column in ("", *names):
        table.add_column(column, justify="right" if column else "left")
    rows: dict[str, Mapping[str, float]] = {
        "untuned model": trainer.evaluate(best.config),
        "default config": trained["metrics"],
        f"best of the study (trial {best.number})": trainer.evaluate(best.config, adapter),
    }
    for row, metrics in rows.items():
        table.add_row(row, *(f"{metrics[name]:.3f}" for name in names))
    return table


def _test_file(record: StudyRecord) -> Path:
    """Return the data that no training and no search has seen, if the demo made any."""
    validation = Path(str(record.spec.fixed["validation_file"]))
    test = validation.with_name(validation.name.replace("validation", "test"))
    return test if test.exists() else validation


def _questions(path: Path) -> list[Question]:
    questions = []
    for sample in read_samples(read_records(path), "auto"):
        assert isinstance(sample, Conversation), "the demos' data are conversations"
        messages = [{"role": m.role, "content": m.content} for m in sample.messages]
        questions.append(Question(messages[:-1], messages[-1]["content"]))
    return questions


def _answers(
    record: StudyRecord, adapter: Path, questions: Sequence[Question]
) -> tuple[list[str], list[str]]:
    """Return the greedy answers without and with the adapter."""
    folder = str(record.spec.fixed["model_name_or_path"])
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(adapter))
    model.eval()
    with model.disable_adapter():
        untuned = _generate(model, tokenizer, questions)
    return untuned, _generate(model, tokenizer, questions)


@torch.inference_mode()
def _generate(model: Any, tokenizer: Any, questions: Sequence[Question]) -> list[str]:
    answers: list[str] = []
    for start in range(0, len(questions), BATCH_SIZE):
        prompts = [
            tokenizer.apply_chat_template(q.messages, add_generation_prompt=True, tokenize=False)
            for q in questions[start : start + BATCH_SIZE]
        ]
        batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        output = model.generate(
            **batch.to(model.device), max_new_tokens=MAX_NEW_TOKENS, do_sample=False
        )
        new = output[:, batch["input_ids"].shape[1] :]
        answers += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return answers


def _beside(questions: Sequence[Question], untuned: list[str], tuned: list[str]) -> Table:
    table = Table(header_style="bold", show_lines=True)
    for column in ("asked", "expected", "untuned", "tuned"):
        table.add_column(column, overflow="fold", max_width=44)
    for question, before, after in zip(questions, untuned, tuned, strict=False):
        asked = question.messages[-1]["content"]
        table.add_row(asked, question.answer, before[:200], after)
    return table


def _same_json(given: str, expected: str) -> bool:
    try:
        return bool(json.loads(given) == json.loads(expected))
    except ValueError:
        return False
