"""Truncated SVD of the frequency-normalised matrix: PureSVD, and the ideal low-pass filter on the items' graph.

With R users x items, R_ui = n_u ** -a * n_i ** -b, and V its first right singular vectors, a user with the history x (0 or 1) scores

    s(u, j) = n_j ** b * sum over f of (V' N ** -b x)_f V_jf        N: diagonal of the items' n

a = b = 0 is PureSVD (Cremonesi, Koren, Turrin, "Performance of Recommender Algorithms on Top-N Recommendation Tasks", RecSys
2010, eq. 12); a = b = 1/2 the ideal low-pass filter of Shen et al., "How Powerful is Graph Convolution for Recommendation?",
CIKM 2021 (sec. 4). The SVD is randomised with a fixed seed (Halko, Martinsson, Tropp, SIAM Review 2011, algorithm 4.4).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import csr_matrix, diags_array
from threadpoolctl import threadpool_limits

from jobs.models import CandidateModel, Training
from jobs.models._factors import FactorModel
from jobs.search import Between, OneOf
from schemas.settings import Section

OVERSAMPLED = 10
"""Directions tried beyond those kept, so that the last ones kept are good too."""
SMALLEST = 1e-5
"""Singular values below this share of the largest are rounding, and their vectors accidents."""


class Settings(Section):
    """A low-rank filter on the history."""

    factors: Annotated[int, OneOf((16, 32, 64, 128, 256, 512))] = Field(64, ge=1)
    """Singular vectors kept."""
    user_exponent: Annotated[float, Between(0, 1, log=False)] = Field(0.5, ge=0)
    """a: a user's pairs are divided by (their number of pairs) ** a."""
    item_exponent: Annotated[float, Between(0, 1, log=False)] = Field(0.5, ge=0)
    """b: an item's pairs are divided by (its number of pairs) ** b, and its scores multiplied by as much."""
    iterations: int = Field(6, ge=1)
    """Power iterations of the SVD."""


class Model(FactorModel):
    """`item_factors` are N ** b V; a user is the sum of those of the history, divided by n ** 2b."""

    settings_class = Settings

    def __init__(
        self, item_factors: NDArray[np.float32], known: NDArray[np.bool_], shares: NDArray[np.float32]
    ) -> None:
        """`shares`: what an item of the history counts, one number an item (0 where nobody had it)."""
        self.item_factors, self.known, self.shares = item_factors, known, shares

    @classmethod
    def fit(cls, training: Training, settings: Settings, fitted: Mapping[str, CandidateModel] | None = None) -> Self:
        """Deterministic for a seed, whatever the number of cores: one thread does it all."""
        counts = np.bincount(training.weights.indices, minlength=training.items).astype(np.float64)
        lengths = np.diff(training.weights.indptr).astype(np.float64)
        raised = np.maximum(counts, 1) ** settings.item_exponent
        pairs = csr_matrix((np.ones_like(training.weights.data), training.weights.indices, training.weights.indptr), training.weights.shape)
        normal = diags_array(np.maximum(lengths, 1) ** -settings.user_exponent) @ pairs @ diags_array(1 / raised)
        with threadpool_limits(1, "blas"):
            vectors = right_vectors(normal.tocsr().astype(np.float32), settings.factors, settings.iterations, training.seed)
        return cls((raised[:, None] * vectors).astype(np.float32), counts > 0, np.where(counts > 0, raised**-2, 0).astype(np.float32))

    def fold_in(self, weights: csr_matrix) -> NDArray[np.float32]:
        """Users x factors. Who has no pair gets 0."""
        shares = csr_matrix((self.shares[weights.indices], weights.indices, weights.indptr), weights.shape)
        return shares @ np.asarray(self.item_factors)

    def save(self, folder: Path) -> None:
        """Three .npy files."""
        for name in ("item_factors", "known", "shares"):
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Factors are memory-mapped, so that the workers of a node share them."""
        factors = np.load(folder / "item_factors.npy", mmap_mode="r")
        return cls(factors, np.load(folder / "known.npy"), np.load(folder / "shares.npy"))


def right_vectors(matrix: csr_matrix, factors: int, iterations: int, seed: int) -> NDArray[np.float32]:
    """The first right singular vectors as columns x (at most `factors`), the largest singular value first."""
    size = min(factors + OVERSAMPLED, *matrix.shape)
    across = matrix.T.tocsr()
    basis = np.random.default_rng(seed).standard_normal((matrix.shape[1], size), np.float32)
    for _ in range(iterations):
        basis, _ = np.linalg.qr(across @ (matrix @ basis))
    left, upper = np.linalg.qr(matrix @ basis)
    _, values, rotation = np.linalg.svd(upper)
    kept = min(factors, int((values > SMALLEST * values[0]).sum()))
    return basis @ rotation[:kept].T
