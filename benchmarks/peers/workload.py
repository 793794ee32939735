"""What a recipe is given: the search, as the harness wrote it to a file. Standard library only."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Config:
    """One trial's hyperparameters; ``lora_alpha`` is always twice the rank."""

    learning_rate: float
    lora_r: int
    batch_size: int

    def as_dict(self) -> dict[str, float | int]:
        """Return it as JSON has it."""
        return asdict(self)

    @staticmethod
    def of(values: Mapping[str, float | int]) -> Config:
        """Return the config among these values; whatever else is there is left."""
        return Config(
            learning_rate=float(values["learning_rate"]),
            lora_r=int(values["lora_r"]),
            batch_size=int(values["batch_size"]),
        )


@dataclass(frozen=True)
class Scripted:
    """A trial whose course is given: its config, and the validation after which it stops."""

    config: Config
    num_validations: int


@dataclass(frozen=True)
class Space:
    """What is searched: the learning rate log-uniformly, the others among choices."""

    low: float
    high: float
    lora_r: tuple[int, ...]
    batch_size: tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """The same for every tool.

    Attributes:
        threads: Of each process that trains.
        concurrency: How many trials run side by side.
        reduction_factor: Of ASHA; a trial's first validation is its first rung.
        script: Each trial's course; None: the tool searches.
        initial: With which configs a tool that searches begins.
    """

    model: str
    train_file: str
    validation_file: str
    max_length: int
    dtype: str
    max_steps: int
    eval_steps: int
    eval_max_samples: int
    eval_batch_size: int
    num_trials: int
    seed: int
    concurrency: int
    threads: int
    reduction_factor: int
    space: Space
    script: tuple[Scripted, ...] | None
    initial: tuple[Config, ...] = ()

    @property
    def max_validations(self) -> int:
        """Validations of a trial that is never stopped."""
        return self.max_steps // self.eval_steps

    def course(self) -> tuple[Scripted, ...]:
        """Return the script.

        Raises:
            SystemExit: There is none.
        """
        if self.script is None:
            raise SystemExit("this recipe searches nothing: give a workload with a script")
        return self.script

    def num_validations(self, number: int) -> int:
        """Return after which validation a trial stops, whatever its tool decides."""
        return self.max_validations if self.script is None else self.script[number].num_validations


def read_workload(path: Path) -> Workload:
    """Return the workload of a file.

    Raises:
        KeyError, TypeError: A name is missing or not known.
    """
    given = json.loads(path.read_text())
    space, script, initial = (given.pop(name) for name in ("space", "script", "initial"))
    return Workload(
        **given,
        space=Space(
            low=float(space["learning_rate"]["low"]),
            high=float(space["learning_rate"]["high"]),
            lora_r=tuple(space["lora_r"]),
            batch_size=tuple(space["batch_size"]),
        ),
        script=None if script is None else tuple(map(_scripted, script)),
        initial=tuple(map(Config.of, initial)),
    )


def _scripted(entry: Mapping[str, float | int]) -> Scripted:
    return Scripted(Config.of(entry), int(entry["num_validations"]))


@dataclass(frozen=True)
class Arguments:
    """What a recipe was started with.

    Attributes:
        given: The workload's file, for processes that the recipe starts.
        out: An existing folder.
        flags: The options that were given.
        worker: Which of the recipe's own processes this is; None: the first, which starts them.
    """

    given: Path
    workload: Workload
    out: Path
    flags: frozenset[str]
    worker: int | None


def parse_arguments(
    description: str | None, flags: Mapping[str, str] | None = None, argv: Sequence[str] = ()
) -> Arguments:
    """Read ``WORKLOAD.json OUT_FOLDER`` and the flags of a recipe, by name with their help."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("workload", type=Path, metavar="WORKLOAD.json")
    parser.add_argument("out", type=Path, metavar="OUT_FOLDER")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    for name, text in (flags or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parsed = parser.parse_args(argv or None)
    parsed.out.mkdir(parents=True, exist_ok=True)
    return Arguments(
        given=parsed.workload.resolve(),
        workload=read_workload(parsed.workload),
        out=parsed.out.resolve(),
        flags=frozenset(n for n in flags or {} if getattr(parsed, n.replace("-", "_"))),
        worker=parsed.worker,
    )
