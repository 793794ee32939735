"""Verdicts as pure functions of stored reports."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.errors import SpecError
from hpo.mirror import Mirror
from hpo.spec import PrunerSpec
from hpo.verdicts import Asha, Hyperband, Judge, build_judge


def study_of(*curves: list[float], direction: str = "minimize") -> optuna.Study:
    study = optuna.create_study(direction=direction)
    for curve in curves:
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED,
                intermediate_values=dict(enumerate(curve, start=1)),
            )
        )
    return study


def mirror_of(study: optuna.Study, judge: Judge) -> Mirror:
    """Return the same trials as a driver holds them."""
    mirror = Mirror("s", study.direction, judge.bracket_of)
    for trial in study.get_trials(deepcopy=False):
        mirror.put(trial, trial.distributions)
    return mirror


def last(study: optuna.Study) -> FrozenTrial:
    return study.get_trials(deepcopy=False)[-1]


def stops(judge: Judge, *curves: list[float]) -> bool:
    """Return the verdict on the last of these trials."""
    study = study_of(*curves)
    return judge.stops(mirror_of(study, judge), last(study))


def test_asha_rungs_are_powers_of_the_reduction_factor() -> None:
    judge = Asha(min_resource=2, reduction_factor=3)
    assert [v for v in range(1, 60) if judge.is_rung(v)] == [2, 6, 18, 54]


def test_asha_lets_the_first_at_a_rung_go_on() -> None:
    assert not stops(Asha(), [0.9])


@pytest.mark.parametrize(("own", "ends"), [(0.1, False), (0.2, True), (0.05, False)])
def test_asha_keeps_the_best_third_of_a_rung(own: float, ends: bool) -> None:
    # Of two trials one third is less than one: only the best goes on.
    assert stops(Asha(), [0.15], [own]) == ends


@pytest.mark.parametrize(("own", "ends"), [(0.15, False), (0.25, True)])
def test_asha_keeps_two_of_six(own: float, ends: bool) -> None:
    study = study_of([0.1], [0.2], [0.3], [0.4], [0.5], [own])
    assert Asha().stops(mirror_of(study, Asha()), last(study)) == ends


def test_asha_counts_equals_as_no_better() -> None:
    assert not stops(Asha(), [0.2], [0.2], [0.2])


def test_asha_judges_only_at_rungs() -> None:
    assert not stops(Asha(), [0.1, 0.1], [0.9, 0.9])


def test_asha_with_maximize_keeps_the_largest() -> None:
    study = study_of([0.5], [0.4], direction="maximize")
    assert Asha().stops(mirror_of(study, Asha()), last(study))


def test_asha_agrees_with_optunas_successive_halving_on_random_curves() -> None:
    """The same rule of promotion; Optuna's is asked afresh, so that no rung is stored twice."""
    import numpy as np

    rng = np.random.default_rng(0)
    judge = Asha(min_resource=1, reduction_factor=3)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    study = optuna.create_study(pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))
    disagreements = 0
    for _ in range(40):
        trial = study.ask()
        for step in range(1, 10):
            trial.report(float(rng.normal(1 / step, 0.1)), step)
            frozen = study.get_trials(deepcopy=False)[-1]
            ours = judge.stops(mirror_of(study, judge), frozen)
            theirs = trial.should_prune()
            disagreements += ours != theirs
            if theirs:
                break
        state = TrialState.PRUNED if theirs else TrialState.COMPLETE
        study.tell(trial, None if theirs else 0.0, state=state)
    assert disagreements == 0


def test_rungs_kept_trial_by_trial_say_what_counting_all_trials_says() -> None:
    import numpy as np

    rng = np.random.default_rng(1)
    judge = Hyperband(max_resource=9)
    mirror = Mirror("s", optuna.study.StudyDirection.MINIMIZE, judge.bracket_of)
    curves: dict[int, dict[int, float]] = {}
    for number in range(30):
        running = create_trial(state=TrialState.RUNNING)
        running.number = number
        mirror.put(running, {})
        curves[number] = {}
    for _ in range(400):
        number, value = int(rng.integers(30)), float(rng.integers(20))
        validation = len(curves[number]) + 1
        curves[number][validation] = value
        mirror.add_report(number, validation, value)
        peers = [
            curve[validation]
            for other, curve in curves.items()
            if validation in curve and judge.bracket_of(other) == judge.bracket_of(number)
        ]
        expected = (sum(peer < value for peer in peers), len(peers))
        assert mirror.rungs.place(number, validation, value, minimize=True) == expected


def test_verdicts_do_not_change_when_asked_again() -> None:
    study = study_of([0.1, 0.1, 0.1], [0.2, 0.3, 0.4], [0.9, 0.1, 0.3])
    for name, options in {"asha": {}, "hyperband": {"max_resource": 9}, "median": {}}.items():
        judge = build_judge(PrunerSpec(type=name, **options))
        mirror = mirror_of(study, judge)
        verdicts = [judge.stops(mirror, trial) for trial in study.get_trials() for _ in range(3)]
        assert verdicts == [v for v in verdicts[::3] for _ in range(3)]
    assert all(trial.system_attrs == {} for trial in study.get_trials())


def test_hyperband_spreads_trials_over_brackets_with_later_first_rungs() -> None:
    judge = Hyperband(max_resource=9)
    assert judge.num_brackets == 3
    brackets = [judge.bracket_of(number) for number in range(300)]
    assert brackets == [judge.bracket_of(number) for number in range(300)]
    counts = [brackets.count(bracket) for bracket in range(3)]
    assert counts[0] > counts[2] > 0


def test_median_stops_what_is_worse_than_the_median_of_completed_trials() -> None:
    study = optuna.create_study()
    for value in (0.1, 0.2, 0.3, 0.4, 0.5):
        study.add_trial(create_trial(value=value, intermediate_values={1: value}))
    study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values={1: 0.9}))
    judge = build_judge(PrunerSpec(type="median"))
    assert judge.stops(mirror_of(study, judge), last(study))


def test_patient_waits_for_its_patience() -> None:
    judge = build_judge(PrunerSpec(type="patient", patience=1))
    assert not stops(judge, [0.5, 0.4, 0.3])
    assert stops(judge, [0.1, 0.5, 0.6])


def test_none_never_stops() -> None:
    assert not stops(build_judge(PrunerSpec(type="none")), [0.1], [9.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "ash"}, "Did you mean 'asha'"),
        ({"type": "asha", "reduction_factor": 1}, "at least 2"),
        ({"type": "asha", "min_resource": 0.5}, "at least 1"),
        ({"type": "percentile"}, "refuses its options"),
        ({"type": "optuna.pruners.SuccessiveHalvingPruner"}, "writes into the study"),
        ({"type": "optuna.samplers.TPESampler"}, "no optuna.pruners.BasePruner"),
    ],
)
def test_a_bad_pruner_is_said(options: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build_judge(PrunerSpec(**options))
