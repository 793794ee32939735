"""The verbs that run a search and end it: run, resume, stop, delete."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo.checkpoints import CheckpointStore
from hpo.cli import INTERRUPTED
from hpo.cli.console import print_json, stderr, stdout
from hpo.cli.target import JsonOption, StorageOption, StudyArgument, find_storage, find_target
from hpo.edits import check_edit
from hpo.errors import HpoError, NoDatabaseError, SpecError, StudyError
from hpo.progress import RunProgress
from hpo.samplers import GRID
from hpo.spec import StudySpec
from hpo.spec_file import read_spec_file
from hpo.studies import StudyRecord, TrialRecord, create_study
from hpo.study import Study
from hpo.tables import MAX_ROWS, as_json, shown, trials_table
from hpo.trackers import check_installed
from hpo.trackers.outlet import FLUSH_S

if TYPE_CHECKING:
    from hpo.cluster.driver import Outcome
    from hpo.cluster.signals import Signals

STOP_WAIT_S = 60
LEAVE_S = 27.0  # from a signal to the end; after 30 s a spot instance or a batch system kills

TrialsOption = Annotated[
    int | None,
    typer.Option("--trials", min=1, help="Trials of the whole study; overrides 'budget: trials'."),
]


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The study's YAML file.")],
    trials: TrialsOption = None,
    study: Annotated[
        str | None, typer.Option(help="Another name for the study than the file's.")
    ] = None,
    storage: StorageOption = None,
    json: JsonOption = False,
) -> None:
    """Run a new study: propose configs, train them, prune the losers, keep the best.

    Ctrl-C saves every running trial and leaves; `hpo resume` goes on. An existing study is refused.
    """
    read = read_spec_file(file)
    spec = _renamed(read.spec, study)
    check_installed(spec.report_to)
    num_trials = _num_trials(spec, trials)
    spec = _with_trials(spec, num_trials)
    record = create_study(spec, find_storage(storage, read.storage))
    try:
        _search(record, num_trials, json)
    except HpoError:
        if not record.summary.has_reports() and not record.summary.ends():
            record.delete()  # nothing was trained: the mended file may use the name
        raise


def resume(
    study: StudyArgument,
    trials: TrialsOption = None,
    storage: StorageOption = None,
    json: JsonOption = False,
) -> None:
    """Go on with a study from its database alone, whatever ended it: Ctrl-C, a crash, kill -9.

    Finished trials stand; interrupted ones go on from their last checkpoint under their number.
    --trials extends the study. With an edited file, ranges may widen.
    """
    target = find_target(study, storage)
    record = target.open()
    spec = record.spec
    if target.file is not None:
        edited = _renamed(target.file.spec, record.name)
        check_edit(spec, edited)
        asked = max(edited.budget.trials or 1, spec.budget.trials or 1)
        spec = _with_trials(edited, asked)  # a run's --trials may have been more than the file's
    check_installed(spec.report_to)
    num_trials = trials or spec.budget.trials or 1
    have = record.num_trials()
    if num_trials < have:
        raise StudyError(
            f"the study {record.name!r} has {have} trials; --trials {num_trials} is fewer."
        )
    _search(replace(record, spec=_with_trials(spec, num_trials)), num_trials, json)


def stop(
    study: StudyArgument,
    storage: StorageOption = None,
    wait: Annotated[
        bool, typer.Option(help="Wait until it has left, for a minute at most.")
    ] = True,
) -> None:
    """Ask a running study to save every trial and leave. `hpo resume` goes on later."""
    record = find_target(study, storage).open()
    if not record.is_driven():
        stderr.print(f"nobody runs the study {record.name!r}; there is nothing to stop.")
        return
    record.request_stop()
    stderr.print(f"asked the study {record.name!r} to save and leave.")
    deadline = time.monotonic() + (STOP_WAIT_S if wait else 0)
    while time.monotonic() < deadline:
        if not record.is_driven():
            stderr.print(f"it has left. To go on: hpo resume {record.name}")
            return
        time.sleep(1)
    if wait:
        stderr.print(
            f"it has not left yet. If its process is dead, `hpo resume {record.name}` takes over."
        )


def delete(
    study: StudyArgument,
    storage: StorageOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    missing_ok: Annotated[
        bool, typer.Option("--missing-ok", help="No error if there is no such study.")
    ] = False,
) -> None:
    """Remove a study: its rows in the database, its checkpoints and its best adapter."""
    try:
        record = find_target(study, storage).open()
    except (StudyError, NoDatabaseError):
        if missing_ok:
            return
        raise
    store = CheckpointStore.of_study(record.spec.output_dir, record.name)
    num_trials = record.num_trials()
    if not yes and not typer.confirm(
        f"Delete the study {record.name!r} with {num_trials} trials, and {store.shown()}?", err=True
    ):
        raise StudyError("nothing was deleted.")
    record.delete()
    store.clear()
    stderr.print(f"deleted the study {record.name!r} and {store.shown()}")


def _search(record: StudyRecord, num_trials: int, as_json_: bool) -> None:
    from hpo.cluster.signals import Signals

    with Signals() as signals:
        held, outcome = _driven(record, num_trials, signals)
    best = record.best()
    have = record.num_trials()
    if as_json_:
        print_json(
            {
                "study": record.name,
                "outcome": outcome.reason,
                "best": None if best is None else as_json(best),
                "trials": [as_json(trial) for trial in record.trials()],
            }
        )
    else:
        newest = record.trials(record.summary.latest(MAX_ROWS))
        stdout.print(trials_table(newest, held.spec, best, have))
        if best is not None:
            _tell_best(held, best)
    if outcome.early:
        stderr.print(f"stopped: {outcome.reason}. To go on: hpo resume {record.name}")
    elif have < num_trials:
        stderr.print(f"ended after {have} of {num_trials} trials: {outcome.reason}")
    if outcome.by_signal:
        raise typer.Exit(INTERRUPTED)
    if best is None and not outcome.early:
        stderr.print(f"no trial was completed. Causes: hpo status {record.name}")
        raise typer.Exit(1)


def _driven(record: StudyRecord, num_trials: int, signals: Signals) -> tuple[Study, Outcome]:
    """Run a study until it is done or told to stop, and leave it."""
    from hpo.cluster.driver import Driver, Outcome

    held = Study(record, num_trials)
    record.update_spec(record.spec)  # edited or extended; nobody else drives it now
    if held.is_done:
        stderr.print(f"all {num_trials} trials are done; --trials {num_trials * 2} would add more.")
        RunProgress(held, stderr).close()  # trackers may lack what an earlier run could not send
        held.close()
        return held, Outcome(False, False, f"all {num_trials} trials are done")
    progress = RunProgress(held, stderr)
    at_once = False
    try:
        return held, Driver(held, progress, signals).run()
    except KeyboardInterrupt:  # the second signal
        at_once = True
        stderr.print(f"stopped at once. To go on: hpo resume {record.name}")
        raise typer.Exit(INTERRUPTED) from None
    except HpoError as error:
        if record.summary.has_reports():
            error.exit_code = 1  # the study had begun; what it has stands
        raise
    finally:
        left_s = FLUSH_S
        if signals.first is not None:  # whoever ends machines waits no longer than that
            left_s = max(0.0, signals.since + LEAVE_S - time.monotonic())
        with signals.held_off():
            progress.close(0.0 if at_once else min(FLUSH_S, left_s))
            held.close()


def _tell_best(study: Study, best: TrialRecord) -> None:
    spec = study.spec
    config = ", ".join(f"{k}={shown(best.config[k])}" for k in spec.space if k in best.config)
    stdout.print(
        f"best: trial {best.number}, {spec.metric} {shown(best.value)}, {config}", soft_wrap=True
    )
    stdout.print(f"adapter: {study.store.shown('best', 'adapter')}", soft_wrap=True)
    stdout.print(
        f"next: hpo dashboard {spec.study} | hpo export {spec.study} --merge | "
        f"hpo resume {spec.study} --trials {study.num_trials * 2}",
        soft_wrap=True,
    )


def _renamed(spec: StudySpec, name: str | None) -> StudySpec:
    return spec if name is None else StudySpec.model_validate({**spec.model_dump(), "study": name})


def _with_trials(spec: StudySpec, num_trials: int) -> StudySpec:
    return spec.model_copy(update={"budget": spec.budget.model_copy(update={"trials": num_trials})})


def _num_trials(spec: StudySpec, option: int | None) -> int:
    asked = option or spec.budget.trials
    if asked is not None:
        return asked
    if spec.sampler.type == GRID:
        return len(spec.search_space.grid_points())
    raise SpecError("how many trials? Give --trials 40, or 'budget: {trials: 40}' in the file.")
