"""Implicit-feedback ALS (Hu, Koren, Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008).

Trained by `implicit` on one machine. Confidence is 1 + alpha * r; implicit's matrix value is the confidence, so it gets
1 + alpha * r with an alpha of its own of 1.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from jobs.models import NONE, CandidateModel, Training, _kept
from jobs.models._factors import FactorModel, FactorSettings
from jobs.search import Between

if TYPE_CHECKING:
    from implicit.cpu.als import AlternatingLeastSquares

FIRST = (
    {"factors": 128, "regularization": 100.0, "alpha": 60.0},
    {"factors": 256, "regularization": 300.0, "alpha": 100.0},
    {"factors": 128, "regularization": 10.0, "alpha": 10.0},
    {"factors": 128, "regularization": 10.0, "alpha": 10.0, "iterations": 3},
    {"factors": 128, "regularization": 50.0, "alpha": 15.0},
    {"factors": 64, "regularization": 1.0, "alpha": 1.0},
    {"factors": 256, "regularization": 100.0, "alpha": 30.0},
    {"factors": 128, "regularization": 1.0, "alpha": 3.0},
    {"factors": 512, "regularization": 300.0, "alpha": 200.0},
    {"factors": 64, "regularization": 0.1, "alpha": 1.0},
)
"""What `nightlist tune` tries first."""


class Settings(FactorSettings):
    """ALS by `implicit`."""

    regularization: Annotated[float, Between(0.01, 1000)] = Field(30.0, gt=0)
    """lambda; good values span .01 to 100, and more where alpha is large."""
    frequency_exponent: float = 0.0
    """lambda is scaled by (a row's number of pairs) ** v. `implicit` is v = 0 and refuses others."""

    warm_iterations: int = Field(0, ge=0)
    """Sweeps where last night's factors, of the same length, are there to begin from; 0: every night begins anew."""

    @field_validator("frequency_exponent")
    @classmethod
    def _is_implicits(cls, exponent: float) -> float:
        if exponent != 0:
            raise ValueError(f"als.frequency_exponent = {exponent}: `implicit` can only do 0; als_spark does 1")
        return exponent


def confidence(weights: csr_matrix, alpha: float) -> csr_matrix:
    """1 + alpha * r on the stored pairs, float32: even a decayed r near 0 stays above "not seen", whose confidence is 1."""
    return csr_matrix(
        ((1.0 + alpha * weights.data).astype(np.float32), weights.indices, weights.indptr), shape=weights.shape
    )


class Model(FactorModel):
    """Trained by `implicit`, on all cores of this machine."""

    settings_class = Settings
    begun_from = 0

    @classmethod
    def fit(cls, training: Training, settings: Settings, fitted: Mapping[str, CandidateModel] | None = None) -> Self:
        """Train on all users; deterministic for a seed and what it begins from, whatever the number of threads."""
        pairs = confidence(training.weights, settings.alpha)
        with threadpool_limits(1, "blas"):
            solver = _solver(settings, training.seed)
            begin, begun_from = last_nights(training, settings), 0
            if begin is not None:
                begun_from = int(begin.any(axis=1).sum())  # the solver writes into it
                solver.item_factors, solver.iterations = begin, settings.warm_iterations
            solver.fit(pairs, show_progress=False)
        known = np.bincount(pairs.indices, minlength=pairs.shape[1]) > 0
        model = cls.trained(np.ascontiguousarray(solver.item_factors, np.float32), known, settings)
        model.begun_from = begun_from
        return model

    @property
    def notes(self) -> dict[str, int]:
        """Items that training had last night's factors of, too, where it is told to look for them."""
        return super().notes | ({"begun_from": self.begun_from} if self.settings.warm_iterations else {})


def last_nights(training: Training, settings: Settings) -> NDArray[np.float32] | None:
    """Tonight's items as last night left them, items x factors, and 0 for those that it did not know; None: begin anew.

    Users need nothing of the kind: a sweep begins with them.
    """
    before = training.before
    if not settings.warm_iterations or before is None or not (before.folder / "als").is_dir():
        return None
    factors = _kept.load(before.folder / "als")
    if factors.shape[1] != settings.factors:
        return None
    begin, known = np.zeros((before.numbers.size, settings.factors), np.float32), before.numbers != NONE
    begin[known] = factors[before.numbers[known]]
    return begin


def _solver(settings: Settings, seed: int) -> "AlternatingLeastSquares":
    from implicit.cpu.als import AlternatingLeastSquares

    return AlternatingLeastSquares(
        factors=settings.factors,
        regularization=settings.regularization,
        alpha=1.0,
        iterations=settings.iterations,
        random_state=seed,
        num_threads=os.cpu_count() or 1,
    )
