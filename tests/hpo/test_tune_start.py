"""How Tune is loaded: without pandas and Ray's data sets, which come when they are asked for."""

from __future__ import annotations

import pytest

from tests.new_process import printed_by

LOAD = "import sys; from hpo.cluster.tune_start import LATER, load_tune;"


def test_tune_is_loaded_without_what_only_its_tables_need() -> None:
    code = "load_tune(); print('ray.tune' in sys.modules, [m for m in LATER if m in sys.modules])"
    assert printed_by(LOAD + code) == "True []"


def test_what_tune_needs_of_pandas_after_all_is_there_when_it_is_asked_for() -> None:
    code = (
        "load_tune(); from ray.tune import progress_reporter;"
        "frame = progress_reporter.pd.DataFrame({'loss': [1.0]});"
        "import pandas, ray.data; print(type(frame) is pandas.DataFrame, callable(ray.data.range))"
    )
    assert printed_by(LOAD + code) == "True True"


def test_pandas_that_is_there_already_is_used_and_stays() -> None:
    code = (
        "import pandas; load_tune(); from ray.tune import progress_reporter;"
        "print(progress_reporter.pd is pandas, sys.modules['pandas'] is pandas)"
    )
    assert printed_by(LOAD + code) == "True True"


@pytest.mark.parametrize("named", ["pandas.api.types", "ray.data.block"])
def test_a_tune_that_needs_more_of_them_is_loaded_with_them(named: str) -> None:
    code = (
        "from hpo.cluster import tune_start; import importlib; load = tune_start._load;"
        f"tune_start._load = lambda: (load(), importlib.import_module({named!r}));"
        f"load_tune(); print({named!r} in sys.modules)"
    )
    assert printed_by(LOAD + code) == "True"
