"""Pictures: drawn from whatever a study holds, also nothing, NaN, one trial or two hundred."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from hpo import trial_log
from hpo.cli.app import app
from hpo.plots.curves import read_curves, smoothed
from hpo.plots.study import draw_parameters, draw_validations
from hpo.plots.trial import draw_trial
from hpo.studies import TrialRecord
from hpo.study import Study
from tests.one_worker import Worker, make_spec, sqlite, start
from trainers.protocol import Report

PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def log(folder: Path, losses: list[float], evals: list[float]) -> None:
    for index, value in enumerate(evals, start=1):
        lines = [
            {"step": step, "loss": loss, "learning_rate": 1e-4, "grad_norm": None}
            for step, loss in enumerate(losses, start=1)
            if index == 1
        ]
        report = Report(0, index, len(losses) + index, {"eval_loss": value}, lines)
        trial_log.append(folder, report, "goes on")


def record(number: int, values: list[float], state: str = "COMPLETE") -> TrialRecord:
    reports = {i: {"step": i, "metrics": {"eval_loss": v}} for i, v in enumerate(values, start=1)}
    value = min(values) if values else None
    reason = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}.get(state)
    params = {"x": 0.1 * number, "y": number % 4, "kind": ["a", "b"][number % 2]}
    return TrialRecord(
        number, state, value, None, 0, params if values else {}, params, reports, reason, None, 1.0
    )


def test_smoothing_is_tensorboards() -> None:
    values, weight = [1.0, 5.0, math.nan, 2.0, math.inf, 3.0], 0.6
    expected, last, count = [], 0.0, 0  # as its frontend computes it
    for value in values:
        if math.isfinite(value):
            last, count = last * weight + (1 - weight) * value, count + 1
        expected.append(last / (1 - weight**count))
    found = smoothed(pd.Series(values), weight)
    assert found.tolist() == pytest.approx(expected)
    assert smoothed(pd.Series(values), 0.0)[5] == 3.0


@pytest.mark.parametrize(
    ("losses", "evals"),
    [
        ([], []),
        ([2.0], [1.5]),
        ([2.0, math.nan, math.inf, 1.0], [math.nan]),
        ([math.nan], [math.inf]),
        ([1e9, 1.0], [2.0, 1.0]),
        ([0.0, 0.0], [0.0]),
    ],
)
def test_a_trial_is_drawn_whatever_its_log_holds(
    tmp_path: Path, losses: list[float], evals: list[float]
) -> None:
    log(tmp_path, losses, evals)
    figure = draw_trial(read_curves(tmp_path), "t", "eval_loss", 0.6)
    figure.savefig(tmp_path / "t.png")
    top = figure.axes[0]
    labels = [line.get_label() for line in top.lines]
    assert ("training" in labels) == bool(losses and evals)
    assert ("validation" in labels) == bool(evals)
    assert ("NaN or infinite" in labels) == (not all(map(math.isfinite, losses + evals)))


def test_what_is_drawn_is_what_is_logged(tmp_path: Path) -> None:
    log(tmp_path, [3.0, 2.0, 1.0], [1.5, 1.2, 1.4])
    top = draw_trial(read_curves(tmp_path), "t", "eval_loss", 0.6).axes[0]
    lines = {str(line.get_label()): line for line in top.lines}
    assert list(lines["training"].get_ydata()) == [3.0, 2.0, 1.0]
    assert list(lines["validation"].get_xdata()) == [4, 5, 6]
    assert "lowest validation: 1.2 at step 5" in lines


@pytest.mark.parametrize("count", [0, 1, 2, 200])
@pytest.mark.parametrize("values", [[], [2.0, 1.0], [1e6]])
def test_a_study_is_drawn_with_any_number_of_trials(
    tmp_path: Path, count: int, values: list[float]
) -> None:
    states = ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    trials = [
        record(n, [v + n / 100 for v in values], states[n % 4] if values else "RUNNING")
        for n in range(count)
    ]
    best = trials[0] if trials and values else None
    for draw in (draw_validations, draw_parameters):
        draw(trials, best, make_spec(tmp_path)).savefig(tmp_path / "s.png")


def test_the_best_stands_out_and_a_diverged_value_does_not_flatten_the_rest(
    tmp_path: Path,
) -> None:
    trials = [record(n, [2.0 - n / 10, 1.0 - n / 100]) for n in range(8)]
    trials.append(record(8, [math.nan]))
    trials.append(record(9, [500.0], "FAIL"))
    figure = draw_validations(trials, trials[7], make_spec(tmp_path))
    axes = figure.axes[0]
    assert any("best: trial 7" in str(line.get_label()) for line in axes.lines)
    assert axes.get_ylim()[1] < 10 or axes.get_yscale() == "log"
    assert np.isfinite(axes.get_ylim()).all()


def test_the_verb_draws_the_study_and_each_trial_and_prints_the_paths(tmp_path: Path) -> None:
    url = sqlite(tmp_path)
    study = Study(start(make_spec(tmp_path), url), 3)
    Worker(study).work()
    log(study.store.trial_folder(1), [2.0, 1.0], [1.5])
    found = CliRunner().invoke(app, ["plot", "s", "--storage", url])
    assert found.exit_code == 0, found.output
    paths = [Path(line) for line in found.stdout.splitlines()]
    trials = [f"trial-{number}.png" for number in range(3)]
    assert [path.name for path in paths] == ["validations.png", "parameters.png", *trials]
    assert all(path.read_bytes().startswith(PNG) for path in paths)
    assert paths[0].parent == tmp_path / "runs" / "s" / "plots"
    arguments = ["plot", "s", "--storage", url, "--trial", "1", "--out", str(tmp_path / "out")]
    one = CliRunner().invoke(app, [*arguments, "--smoothing", "0"])
    assert one.stdout.split() == [str(tmp_path / "out" / "trial-1.png")]
    for wrong in (["--smoothing", "1"], ["--trial", "99"]):
        assert CliRunner().invoke(app, [*arguments, *wrong]).exit_code != 0


def test_the_folder_of_one_training_is_drawn(tmp_path: Path) -> None:
    log(tmp_path / "checkpoints-ab12" / "0", [2.0, 1.0], [1.5])
    found = CliRunner().invoke(app, ["plot", str(tmp_path)])
    assert found.exit_code == 0, found.output
    assert Path(found.stdout.strip()) == tmp_path / "plots" / "training.png"
