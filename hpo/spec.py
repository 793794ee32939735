"""What a study is: every field of the user's file, validated, as one frozen value.

Reading the file, its line numbers and the trainer's options are in ``hpo.spec_file``. A spec holds
no path that depends on a folder and no password: it is stored with the study, and a resume needs
nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from search_spaces import SearchSpace
from search_spaces.problems import did_you_mean

STUDY_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
AUTO = "auto"
DEFAULT_RUN_NAME = "{study}-{number}"

TrackerName = Literal["tensorboard", "wandb", "mlflow", "comet_ml", "trackio", "all"]


def tracker_names(value: object) -> list[TrackerName]:
    """Return `report_to:` as a list: a name, several, `all` that are installed, or none.

    Raises:
        ValueError: A name is not known; with those that are.
    """
    given = (
        []
        if value in (None, "none", [], ["none"])
        else value
        if isinstance(value, list)
        else [value]
    )
    known: tuple[TrackerName, ...] = get_args(TrackerName)
    for name in given:
        if name not in known:
            raise ValueError(
                f"unknown tracker {name!r}.{did_you_mean(str(name), known)} Known: "
                f"{', '.join(known)}, none."
            )
    return [name for name in known if name in given]


Trackers = Annotated[
    list[TrackerName],
    BeforeValidator(
        tracker_names,
        json_schema_input_type=TrackerName | Literal["none"] | list[TrackerName] | None,
    ),
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SamplerSpec(BaseModel):
    """How configs are proposed."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str = Field(
        "tpe",
        description="grid, random, tpe, gp, cmaes, qmc, nsga2, nsga3, brute_force, or a dotted path. "
        "Other keys are the sampler's own options, under Optuna's names.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Same seed, one worker: the same configs.")

    @property
    def options(self) -> dict[str, object]:
        """The sampler's own options."""
        return dict(self.model_extra or {})


class PrunerSpec(BaseModel):
    """How trials are stopped early."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str = Field(
        "asha",
        description="asha, hyperband, median, percentile, patient, threshold, wilcoxon, none, or a "
        "dotted path. Other keys are the pruner's own options.",
    )

    @property
    def options(self) -> dict[str, object]:
        """The pruner's own options."""
        return dict(self.model_extra or {})


def gpu_share(value: object) -> object:
    """Return `gpu:` as a number, or `auto`.

    Raises:
        ValueError: It is neither, or no share that can be given.
    """
    if value == AUTO:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("give a number of GPUs, as in 0.25, or auto")
    if value > 1 and value != int(value):
        raise ValueError("above 1 give a whole number of GPUs, as in 2")
    if not value >= 0.01:
        raise ValueError("at least 0.01, a hundred trials on one GPU")
    return float(value)


class ResourcesSpec(_Part):
    """What one trial gets."""

    gpu: Annotated[
        float | Literal["auto"],
        BeforeValidator(
            gpu_share, json_schema_input_type=Annotated[float, Field(ge=0.01)] | Literal["auto"]
        ),
    ] = Field(
        1.0,
        description="GPUs per trial. 0.25: four trials share a GPU and its one base model. auto: as "
        "many as fit, measured when the run begins, 8 at most. Where the cluster has no GPU: the "
        "same share of a node's cores.",
    )
    cpu_hosts: Annotated[int, Field(ge=1)] = Field(
        1,
        description="On a node without a GPU: processes among which its cores and its trials are "
        "divided, each with a base model of its own. More are faster, and take more memory.",
    )


class BudgetSpec(_Part):
    """When the search ends."""

    trials: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None, description="Trials of the whole study; `--trials` overrides it."
    )
    hours: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Hours of one `hpo run` or `hpo resume`; running trials are saved then."
    )


class StudySpec(_Part):
    """One study, as it is stored."""

    study: str = Field(
        pattern=STUDY_NAME_PATTERN,
        description="The study's name in the database and in `output_dir`.",
    )
    metric: str = Field("eval_loss", min_length=1, description="Any metric the trainer reports.")
    direction: Literal["minimize", "maximize"] = "minimize"
    output_dir: str = Field(
        "runs",
        description="Where checkpoints, logs and the best adapter go: a folder that all nodes share, or "
        "a URL, as in s3://bucket/runs. Credentials come from the environment.",
    )
    ray_address: str | None = Field(
        None,
        description="A running Ray cluster, as in 'auto' or 'head:6379'; none: this machine.",
    )
    trainer: str = Field("lora", description="lora, or a dotted path to a Trainer of your own.")
    fixed: dict[str, object] = Field(
        default_factory=dict, description="Options that all trials share."
    )
    space: dict[str, object] = Field(description="Options to search.")
    constraints: list[str] = Field(
        default_factory=list, description="Expressions that every config must meet."
    )
    enqueue: list[dict[str, object]] = Field(
        default_factory=list, description="Configs to try first."
    )
    sampler: SamplerSpec = SamplerSpec()
    pruner: PrunerSpec = PrunerSpec()
    resources: ResourcesSpec = ResourcesSpec()
    budget: BudgetSpec = BudgetSpec()
    max_concurrent: Annotated[int, Field(ge=1)] | None = Field(
        None, description="At most this many trials at once; none: what the cluster holds."
    )
    keep_checkpoints: int = Field(
        3, ge=1, description="Finished trials whose best checkpoint is kept: the best so many."
    )
    report_to: Trackers = Field(
        default_factory=list,
        description="Experiment trackers: tensorboard, wandb, mlflow, comet_ml, trackio; one, a list, "
        "all that are installed, or none.",
    )
    run_name: str = Field(
        DEFAULT_RUN_NAME,
        min_length=1,
        description="A trial's name in the trackers: a format of study, number and options, as in "
        "'r{lora_r}-{number}'.",
    )
    lease_s: float = Field(
        30.0, ge=1, description="Seconds after which a silent driver loses its trials to another."
    )
    stall_timeout: float = Field(
        1800.0,
        ge=1,
        description="Seconds after which a trial that makes no step is killed and goes on from its "
        "checkpoint. Longer than a model takes to load and a validation to run.",
    )
    max_failures: int = Field(
        3,
        ge=0,
        description="How often a trial goes on after its process or node was lost or stalled; then "
        "it fails.",
    )
    max_identical_errors: int = Field(
        3,
        ge=1,
        description="The study stops when this many trials in a row failed with the same error.",
    )
    disk_quota_gib: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="GiB that the study's folder may take; a checkpoint that would take it beyond "
        "stops the study, with what to delete. None: until the disk is full.",
    )

    @property
    def search_space(self) -> SearchSpace:
        """The parsed search space; cheap enough to be made where it is needed."""
        return SearchSpace.parse(self.space_document, self.fixed)

    @property
    def space_document(self) -> Mapping[str, object]:
        """The part of the file that the space language reads."""
        return {"space": self.space, "constraints": self.constraints, "enqueue": self.enqueue}

    @property
    def sign(self) -> float:
        """1 if smaller is better, -1 if larger is: ``sign * value`` is to be minimized."""
        return 1.0 if self.direction == "minimize" else -1.0
