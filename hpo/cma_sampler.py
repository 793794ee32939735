"""Optuna's CMA-ES, which reads no more than numbers from the database.

Optuna keeps the optimizer's state with the trials as a pickle, and a pickle runs what its writer
wants. Here it may hold arrays, numbers and the optimizers of the package ``cmaes`` alone.
"""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any

from optuna.samplers import CmaEsSampler

from hpo.errors import StudyError

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

ALLOWED = {
    ("cmaes._cma", "CMA"),
    ("cmaes._cmawm", "CMAwM"),
    ("cmaes._sepcma", "SepCMA"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
}
"""All that the states of cmaes 0.12 to 0.13 consist of; numbers, texts and lists need no name."""


class PlainCmaEsSampler(CmaEsSampler):
    """CMA-ES with Optuna's options."""

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        """Return the newest stored state, as the parent does (Optuna 5.0).

        Raises:
            StudyError: It is no state of an optimizer.
        """
        prefix = self._attr_key_optimizer
        for trial in reversed(completed_trials):
            parts = {k: v for k, v in trial.system_attrs.items() if k.startswith(prefix)}
            if not parts:
                continue
            try:
                return _Numbers(
                    io.BytesIO(bytes.fromhex(self._concat_optimizer_attrs(parts)))
                ).load()
            except Exception as error:  # torn pickles raise anything
                raise StudyError(
                    f"the state of the sampler cmaes that is stored with trial {trial.number} cannot be "
                    f"read ({type(error).__name__}: {error}): it is damaged, or something else than hpo "
                    f"has written it. Restore the database from a backup, or begin a new study."
                ) from error
        return None


class _Numbers(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it would run {module}.{name}")
        return super().find_class(module, name)
