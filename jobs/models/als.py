"""Implicit-feedback ALS (Hu, Koren, Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008).

Trained by `implicit` on one machine. Confidence is 1 + alpha * r; implicit's matrix value is the confidence, so it gets
1 + alpha * r with an alpha of its own of 1. Users are folded in against the final item factors before they are scored:
the factors that training leaves for users lag half an iteration behind.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from jobs.models import CandidateModel, Candidates, ItemList, Training, Users, rows_of
from jobs.models._top import empty, top_n
from schemas.settings import Section

if TYPE_CHECKING:
    from implicit.cpu.als import AlternatingLeastSquares

BLOCK = 256
"""Users scored at a time: the block's scores against all items bound a worker's memory."""


class Settings(Section):
    """ALS by `implicit`."""

    factors: int = Field(64, ge=1)
    """Length of the vectors; too few is the commonest fault."""
    regularization: float = Field(30.0, gt=0)
    """lambda; good values span .01 to 100."""
    frequency_exponent: float = 0.0
    """lambda is scaled by (a row's number of pairs) ** v. `implicit` is v = 0 and refuses others."""
    alpha: float = Field(10.0, gt=0)
    """Confidence of a pair is 1 + alpha * r; good values span 1 to 100."""
    iterations: int = Field(10, ge=1)
    """Sweeps over users and items."""

    @field_validator("frequency_exponent")
    @classmethod
    def _is_implicits(cls, exponent: float) -> float:
        if exponent != 0:
            raise ValueError(f"als.frequency_exponent = {exponent}: `implicit` can only do 0")
        return exponent


def confidence(weights: csr_matrix, alpha: float) -> csr_matrix:
    """1 + alpha * r on the stored pairs, float32: even a decayed r near 0 stays above "not seen", whose confidence is 1."""
    return csr_matrix(
        ((1.0 + alpha * weights.data).astype(np.float32), weights.indices, weights.indptr), shape=weights.shape
    )


class Model:
    """Item factors, and what it takes to fold a user in."""

    def __init__(self, item_factors: NDArray[np.float32], known: NDArray[np.bool_], settings: Settings) -> None:
        """`item_factors`: items x factors; `known`: items with at least one pair (the others' factors mean nothing)."""
        self.item_factors, self.known, self.settings = item_factors, known, settings
        self._solver = _solver(settings)
        self._solver.item_factors = item_factors

    @classmethod
    def fit(cls, training: Training, settings: Settings, fitted: Mapping[str, CandidateModel] | None = None) -> Self:
        """Train on all users; deterministic for a seed, whatever the number of threads."""
        pairs = confidence(training.weights, settings.alpha)
        with threadpool_limits(1, "blas"):
            solver = _solver(settings, training.seed)
            solver.fit(pairs, show_progress=False)
        known = np.bincount(pairs.indices, minlength=pairs.shape[1]) > 0
        return cls(np.ascontiguousarray(solver.item_factors, np.float32), known, settings)

    def fold_in(self, weights: csr_matrix) -> NDArray[np.float32]:
        """Users x factors: the exact minimum for each user with the item factors fixed (Hu et al., eq. 4)."""
        pairs = confidence(weights, self.settings.alpha)
        factors: NDArray[np.float32] = self._solver.recalculate_user(np.arange(pairs.shape[0]), pairs)
        return factors

    def candidates(self, users: Users, n: int) -> Candidates:
        """Users without a pair have no taste to fold in, and get no candidates."""
        rows, items = users.weights.shape
        found = empty(rows, min(n, items))
        allowed = self.known & users.eligible
        for start in range(0, rows, BLOCK):
            block = slice(start, start + BLOCK)
            scores = self.fold_in(users.weights[block]) @ self.item_factors.T
            scores[:, ~allowed] = -np.inf
            excluded = users.excluded[block]
            scores[rows_of(excluded), excluded.indices] = -np.inf
            scores[np.diff(users.weights[block].indptr) == 0] = -np.inf
            found.items[block], found.scores[block] = top_n(scores, n)
        return found

    def lists(self, eligible: NDArray[np.bool_], n: int) -> Iterator[ItemList]:
        """None of other kinds: item-to-item lists are the model `similar`'s."""
        return iter(())

    def save(self, folder: Path) -> None:
        """Two .npy files and the settings."""
        np.save(folder / "item_factors.npy", self.item_factors)
        np.save(folder / "known.npy", self.known)
        (folder / "settings.json").write_text(self.settings.model_dump_json())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Factors are mapped copy-on-write: shared by the workers of a node, and what implicit's solver accepts."""
        settings = Settings.model_validate_json((folder / "settings.json").read_text())
        return cls(np.load(folder / "item_factors.npy", mmap_mode="c"), np.load(folder / "known.npy"), settings)


def _solver(settings: Settings, seed: int | None = None) -> "AlternatingLeastSquares":
    """With a seed to train, on all cores; without one to fold users in, on the one core that a Spark worker has."""
    from implicit.cpu.als import AlternatingLeastSquares

    with threadpool_limits(1, "blas"):  # the constructor warns of more, and training runs under one
        return AlternatingLeastSquares(
            factors=settings.factors,
            regularization=settings.regularization,
            alpha=1.0,
            iterations=settings.iterations,
            random_state=seed,
            num_threads=1 if seed is None else os.cpu_count() or 1,
        )
