"""The limit: a script's steps and validations as a bare, warm loop, with no search around it.

transformers and PEFT alone, one process for each trial that runs side by side. Before the search
begins, each process has loaded the model, made one adapter for each rank, and done a step and a
validation with it; a trial then takes the adapter of its rank and draws it anew. Nothing is saved.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from threading import Barrier

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers: the model is a folder

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, multiprocessing
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForCausalLM

from events import Events
from examples import IGNORE_INDEX, Data, Example
from workload import Arguments, Config, Scripted, Workload, parse_arguments

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

WARM_UP = -1
"""Number of the trial that nobody counts."""


class Loop:
    """The model with an adapter for each rank of the script, and what one trial after the other does."""

    def __init__(self, workload: Workload, out: Path) -> None:
        """Load and make everything, and do the first passes."""
        torch.set_num_threads(workload.threads)
        self._workload = workload
        self._events = Events(out)
        self._data = Data(workload)
        self._model = _model(workload)
        rows, size = self._data.validation, workload.eval_batch_size
        self._validation = [self._batch(rows[i : i + size]) for i in range(0, len(rows), size)]
        for rank in {scripted.config.lora_r for scripted in workload.course()}:
            warm_up = Config(learning_rate=0.0, lora_r=rank, batch_size=1)
            for _ in self._train(WARM_UP, warm_up, num_steps=1):
                self._validate()

    def run(self, number: int, scripted: Scripted) -> None:
        """Train a trial to where the script stops it."""
        self._events.begin(number, scripted.config)
        num_steps = scripted.num_validations * self._workload.eval_steps
        for step in self._train(number, scripted.config, num_steps):
            self._events.step(number, step)
            if step % self._workload.eval_steps == 0:
                self._events.validation(number, step, self._validate())
        self._events.end(number, num_steps)

    def _train(self, number: int, config: Config, num_steps: int) -> Iterator[int]:
        """Do the steps of a trial, and yield each when it is done."""
        self._draw(max(number, 0), config.lora_r)
        weights = [weight for weight in self._model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, weight_decay=0.0, fused=True)
        for step in range(1, num_steps + 1):
            first = (step - 1) * config.batch_size
            rows = [self._data.train[i] for i in range(first, first + config.batch_size)]
            self._model.train()
            self._loss(self._batch(rows)).backward()
            clip_grad_norm_(weights, 1.0)
            for group in optimizer.param_groups:  # linear, without warm-up
                group["lr"] = config.learning_rate * (1 - (step - 1) / self._workload.max_steps)
            optimizer.step()
            optimizer.zero_grad()
            yield step

    def _draw(self, seed: int, rank: int) -> None:
        """Take the adapter of this rank, and draw its weights anew."""
        torch.manual_seed(seed)
        self._model.set_adapter(_name(rank))
        for module in self._model.modules():
            if isinstance(module, LoraLayer):
                module.reset_lora_parameters(_name(rank), init_lora_weights=True)

    @torch.no_grad()
    def _validate(self) -> float:
        """Return the mean loss of each target token."""
        self._model.eval()
        total, num_targets = 0.0, 0
        for batch in self._validation:
            count = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
            total += float(self._loss(batch)) * count
            num_targets += count
        return total / num_targets

    def _batch(self, rows: Sequence[Example]) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = dict(self._data.collate(list(rows)))
        return batch

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        context: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if self._workload.dtype == "bfloat16":
            context = torch.autocast("cpu", dtype=torch.bfloat16)
        with context:
            loss = self._model(**batch).loss
        assert isinstance(loss, Tensor)
        return loss


def _model(workload: Workload) -> PeftModel:
    """Load the model, with an adapter for each rank; below float32 their weights are in float32."""
    base = AutoModelForCausalLM.from_pretrained(workload.model, dtype=workload.dtype)
    base.config.use_cache = False
    model: PeftModel | None = None
    for rank in sorted({scripted.config.lora_r for scripted in workload.course()}):
        lora = LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        if model is None:
            made = get_peft_model(base, lora, adapter_name=_name(rank))
            assert isinstance(made, PeftModel)
            model = made
        else:
            model.add_adapter(_name(rank), lora)
    assert model is not None, "a script has trials"
    return model


def _name(rank: int) -> str:
    return f"rank_{rank}"


def work(arguments: Arguments, counter: Synchronized[int], start: Barrier) -> None:
    """Prepare, wait for the others, then take the next trial of the script until none is left."""
    course = arguments.workload.course()
    try:
        loop = Loop(arguments.workload, arguments.out)
    except BaseException:
        start.abort()  # or the others would wait for ever
        raise
    start.wait()
    while True:
        with counter.get_lock():
            number = counter.value
            counter.value += 1
        if number >= len(course):
            return
        loop.run(number, course[number])


def main() -> None:
    """Run the script in as many processes as trials run side by side."""
    arguments = parse_arguments(__doc__)
    spawn = multiprocessing.get_context("spawn")
    concurrency = arguments.workload.concurrency
    counter = spawn.Value("q", 0)
    start = spawn.Barrier(concurrency, action=Events(arguments.out).search_begin)
    processes = [
        spawn.Process(target=work, args=(arguments, counter, start), daemon=True)
        for _ in range(concurrency)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a process of the loop failed")
    Events(arguments.out).search_end()


if __name__ == "__main__":
    main()
