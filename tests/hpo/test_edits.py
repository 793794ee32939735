"""An edited file on resume: accepted or refused, field by field."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.edits import check_edit
from hpo.errors import StudyError
from tests.one_worker import SPACE, make_spec


@pytest.mark.parametrize(
    "change",
    [
        {"budget": {"trials": 99, "hours": 3}},
        {"resources": {"gpu": 0.25}},
        {"max_concurrent": 1},
        {"keep_checkpoints": 9},
        {"enqueue": [{"x": 0.1, "y": 1, "kind": "a"}]},
        {"space": {**SPACE, "x": {"type": "float", "low": -2.0, "high": 3.0}}},
    ],
)
def test_what_no_stored_trial_depends_on_may_change(
    tmp_path: Path, change: dict[str, object]
) -> None:
    check_edit(make_spec(tmp_path), make_spec(tmp_path, **change))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"fixed": {"max_steps": 10}}, "fixed.max_steps: is 9, the file has 10"),
        ({"metric": "score"}, "metric"),
        ({"direction": "maximize"}, "direction"),
        ({"sampler": {"type": "random"}}, "sampler"),
        ({"pruner": {"type": "none"}}, "pruner"),
        ({"constraints": ["y > 1"]}, "constraints"),
        ({"space": {**SPACE, "x": {"type": "float", "low": 0.0, "high": 1.0}}}, "space.x"),
        ({"space": {**SPACE, "kind": ["a", "b", "c"]}}, "space.kind"),
        ({"space": {"x": SPACE["x"], "y": SPACE["y"]}}, "kind"),
        ({"space": {**SPACE, "overfit": {"type": "float", "low": 0, "high": 1}}}, "overfit"),
    ],
)
def test_what_stored_trials_depend_on_needs_a_new_study(
    tmp_path: Path, change: dict[str, object], named: str
) -> None:
    with pytest.raises(StudyError) as caught:
        check_edit(make_spec(tmp_path), make_spec(tmp_path, **change))
    assert named in str(caught.value)
    assert "another 'study:' name" in str(caught.value)
