"""LLaMA-Factory's command line, once for each config, in a loop; several loops run side by side.

The tool has no search and no pruning: without a script the configs are a grid over the space. A
trial's steps and validations are read from its ``trainer_log.jsonl`` while it runs.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from events import Events
from workload import Arguments, Config, Scripted, Workload, parse_arguments

COMMAND = Path(sys.executable).parent / "llamafactory-cli"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""As in the model's own chat template; LLaMA-Factory's has a full stop at its end."""
POLL_S = 0.02


def grid(workload: Workload) -> tuple[Scripted, ...]:
    """Return the trials: the smallest and largest choices, at as many learning rates as are left."""
    space = workload.space
    ends = list(
        itertools.product(
            dict.fromkeys((space.lora_r[0], space.lora_r[-1])),
            dict.fromkeys((space.batch_size[0], space.batch_size[-1])),
        )
    )
    num_rates = -(-workload.num_trials // len(ends))
    ratio = space.high / space.low
    rates = [space.low * ratio ** ((i + 0.5) / num_rates) for i in range(num_rates)]
    configs = [Config(rate, rank, size) for rate in rates for rank, size in ends]
    return tuple(
        Scripted(config, workload.max_validations) for config in configs[: workload.num_trials]
    )


def training_file(workload: Workload, out: Path, number: int, trial: Scripted) -> dict[str, object]:
    """Return what ``llamafactory-cli train`` is given.

    It cannot stop before ``max_steps``, to which its schedule leads; so a trial that is to stop
    early gets a schedule that leads, as straight, to where the full one would be by then.
    """
    num_steps = trial.num_validations * workload.eval_steps
    rate = trial.config.learning_rate
    return {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": workload.model,
        "finetuning_type": "lora",
        "lora_target": "all",
        "lora_rank": trial.config.lora_r,
        "lora_alpha": 2 * trial.config.lora_r,
        "lora_dropout": 0.0,
        "template": "smollm2",
        "default_system": SYSTEM,
        "dataset_dir": str(out / "data"),
        "dataset": "train",
        "eval_dataset": "validation",
        "cutoff_len": workload.max_length,
        "output_dir": str(out / "adapters" / str(number)),
        "bf16": workload.dtype == "bfloat16",
        "use_cpu": True,
        "seed": number,
        "disable_shuffling": True,
        "learning_rate": rate,
        "lr_scheduler_type": "polynomial",
        "lr_scheduler_kwargs": {"lr_end": rate * (1 - num_steps / workload.max_steps), "power": 1},
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "max_steps": num_steps,
        "per_device_train_batch_size": trial.config.batch_size,
        # One batch: its validation loss is a mean over batches, not over target tokens.
        "per_device_eval_batch_size": workload.eval_max_samples,
        "eval_strategy": "steps",
        "eval_steps": workload.eval_steps,
        "save_strategy": "best",
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "save_only_model": True,
        "save_total_limit": 1,
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": "none",
        "plot_loss": False,
    }


def write_data(workload: Workload, out: Path) -> None:
    """Write the folder that LLaMA-Factory reads: both files, and what they are."""
    folder = out / "data"
    folder.mkdir()
    rows = json.loads(Path(workload.validation_file).read_text())[: workload.eval_max_samples]
    (folder / "validation.json").write_text(json.dumps(rows))
    info = {
        "train": {"file_name": str(Path(workload.train_file).resolve())},
        "validation": {"file_name": "validation.json"},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))


def run_trial(arguments: Arguments, number: int, trial: Scripted) -> None:
    """Run the command for one trial, and tell its events as its log grows.

    Raises:
        subprocess.CalledProcessError: It failed; see its output beside its adapter.
    """
    out = arguments.out
    given = training_file(arguments.workload, out, number, trial)
    file = out / f"{number}.yaml"
    file.write_text(json.dumps(given))  # JSON is YAML
    events, log = Events(out), Path(str(given["output_dir"])) / "trainer_log.jsonl"
    events.begin(number, trial.config)
    command = [str(COMMAND), "train", str(file)]
    with (out / f"{number}.log").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        step = 0
        for entry in _follow(log, process):
            step = int(entry["current_steps"])
            if "eval_loss" in entry:
                events.validation(number, step, entry["eval_loss"])
            elif "loss" in entry:
                events.step(number, step)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    events.end(number, step)


def _follow(log: Path, process: subprocess.Popen[bytes]) -> Iterator[dict[str, float]]:
    """Yield a log's entries as they come, until the process that writes it has ended."""
    num_read, ended = 0, False
    while not ended:
        ended = process.poll() is not None
        lines = log.read_text().split("\n")[:-1] if log.exists() else []  # whole ones only
        for line in lines[num_read:]:
            yield json.loads(line)
        num_read = len(lines)
        time.sleep(0 if ended else POLL_S)


def run_loop(arguments: Arguments, waiting: list[int], trials: Sequence[Scripted]) -> None:
    """Run one trial after the other, until none waits."""
    while waiting:
        number = waiting.pop(0)
        run_trial(arguments, number, trials[number])


def main() -> None:
    """Run the grid, or the script."""
    arguments = parse_arguments(__doc__)
    workload, out = arguments.workload, arguments.out
    Events(out).search_begin()
    os.environ.update(
        OMP_NUM_THREADS=str(workload.threads),
        HF_HUB_OFFLINE="1",
        HF_DATASETS_CACHE=str(out / "cache"),  # what one trial tokenised, the others find
    )
    write_data(workload, out)
    trials = grid(workload) if workload.script is None else workload.script
    waiting = list(range(len(trials)))
    with ThreadPoolExecutor(workload.concurrency) as loops:
        futures = [
            loops.submit(run_loop, arguments, waiting, trials) for _ in range(workload.concurrency)
        ]
    for future in futures:
        future.result()  # raises what a loop raised
    Events(out).search_end()


if __name__ == "__main__":
    main()
