from __future__ import annotations

import optuna
import pytest
from optuna.samplers import RandomSampler


@pytest.fixture
def study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=RandomSampler(seed=0))
