"""Truncated SVD of the frequency-normalised matrix: PureSVD, low-pass filters on the items' graph, and what lies between.

With R users x items, R_ui = n_u ** -a * n_i ** -b, and V its first right singular vectors with singular values s (divided by
the first), a user with the history x scores

    score(u, j) = n_j ** b * sum over f of (V' N ** -b x)_f * s_f ** p * V_jf        N: diagonal of the items' n

a = b = p = 0 is PureSVD (Cremonesi, Koren, Turrin, "Performance of Recommender Algorithms on Top-N Recommendation Tasks", RecSys
2010, eq. 12). a = b = 1/2 are the filters of Shen et al., "How Powerful is Graph Convolution for Recommendation?" (CIKM 2021,
sec. 4): p = 0 the ideal low-pass one, p = 2 the linear one, of low rank. The SVD is randomised with a fixed seed (Halko,
Martinsson, Tropp, "Finding Structure with Randomness", SIAM Review 2011, algorithm 4.4).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from jobs.models import CandidateModel, Training, rows_of
from jobs.models._factors import FactorModel, VectorSettings
from jobs.models._index import Index
from jobs.models._kept import Factors
from jobs.models._pairs import powered
from jobs.search import Between, OneOf

OVERSAMPLED = 10
"""Directions tried beyond those kept, so that the last ones kept are good too."""
SMALLEST = 1e-5
"""Singular values below this share of the largest are rounding, and their vectors accidents."""

FIRST = (
    {"factors": 256, "user_exponent": 0.5, "item_exponent": 0.5, "value_exponent": 0.0},
    {"factors": 512, "user_exponent": 0.5, "item_exponent": 0.5, "value_exponent": 0.0},
    {"factors": 64, "user_exponent": 0.5, "item_exponent": 0.5, "value_exponent": 0.5},
)
"""What `nightlist tune` tries first: the ideal low-pass filter at three widths."""


class Settings(VectorSettings):
    """A low-rank filter on the history."""

    factors: Annotated[int, OneOf((32, 64, 128, 256, 512))] = Field(256, ge=1)
    """Singular vectors kept."""
    user_exponent: Annotated[float, Between(0, 1, log=False)] = Field(0.25, ge=0)
    """a: a user's pairs are divided by (their number of pairs) ** a."""
    item_exponent: Annotated[float, Between(0, 1, log=False)] = Field(0.25, ge=0)
    """b: an item's pairs are divided by (its number of pairs) ** b, and its scores multiplied by as much."""
    weight_exponent: Annotated[float, Between(0, 1, log=False)] = Field(0.5, ge=0)
    """A pair counts r to this power; 0: all pairs count alike."""
    value_exponent: Annotated[float, Between(0, 2, log=False)] = Field(1.0, ge=0)
    """p: 0 takes all the vectors kept for equally good, however sparse the data; larger values trust the first ones more."""
    iterations: int = Field(6, ge=1)
    """Power iterations of the SVD."""


class Model(FactorModel):
    """`item_factors` are N ** b V S ** (p / 2); a user is the sum of those of the history, each divided by n ** 2b."""

    settings_class = Settings

    def __init__(
        self,
        item_factors: Factors,
        known: NDArray[np.bool_],
        settings: Settings,
        index: Index | None,
        shares: NDArray[np.float32],
    ) -> None:
        """`shares`: what an item of the history counts, one number an item (0 where nobody had it)."""
        super().__init__(item_factors, known, settings, index)
        self.shares = shares

    @classmethod
    def fit(cls, training: Training, settings: Settings, fitted: Mapping[str, CandidateModel] | None = None) -> Self:
        """Deterministic for a seed, whatever the number of cores: one thread does it all."""
        counts = np.bincount(training.weights.indices, minlength=training.items).astype(np.float64)
        lengths = np.maximum(np.diff(training.weights.indptr), 1).astype(np.float64)
        raised = np.maximum(counts, 1) ** settings.item_exponent
        normal = scaled(
            powered(training.weights, settings.weight_exponent), lengths**-settings.user_exponent, 1 / raised
        )
        with threadpool_limits(1, "blas"):
            vectors, values = right_vectors(normal, settings.factors, settings.iterations, training.seed)
        factors = raised[:, None] * vectors * (values / values[0]) ** (settings.value_exponent / 2)
        shares = np.where(counts > 0, raised**-2, 0)
        return cls.trained(factors.astype(np.float32), counts > 0, settings, shares=shares.astype(np.float32))

    def fold_in(self, weights: csr_matrix) -> NDArray[np.float32]:
        """Users x factors. Who has no pair gets 0."""
        ones = np.ones(weights.shape[0], np.float32)
        summed = scaled(powered(weights, self.settings.weight_exponent), ones, self.shares)
        items, columns = np.unique(summed.indices, return_inverse=True)
        shape = (summed.shape[0], items.size)
        return csr_matrix((summed.data, columns, summed.indptr), shape) @ self._vectors[items].astype(np.float32)

    def save(self, folder: Path) -> None:
        """One array more than others."""
        super().save(folder)
        np.save(folder / "shares.npy", self.shares)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote."""
        return super().load(folder, shares=np.load(folder / "shares.npy"))


def scaled(weights: csr_matrix, of_user: NDArray[np.floating], of_item: NDArray[np.floating]) -> csr_matrix:
    """Each stored entry times its user's and its item's number, float32."""
    data = weights.data * of_user[rows_of(weights)] * of_item[weights.indices]
    return csr_matrix((data.astype(np.float32), weights.indices, weights.indptr), weights.shape)


def right_vectors(
    matrix: csr_matrix, factors: int, iterations: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The first right singular vectors as columns (at most `factors`), and their singular values, the largest first."""
    size = min(factors + OVERSAMPLED, *matrix.shape)
    across = matrix.T.tocsr()
    basis = np.random.default_rng(seed).standard_normal((matrix.shape[1], size), np.float32)
    for _ in range(iterations):
        basis, _ = np.linalg.qr(across @ (matrix @ basis))
    _, upper = np.linalg.qr(matrix @ basis)
    _, values, rotation = np.linalg.svd(upper)
    kept = min(factors, int((values > SMALLEST * values[0]).sum()))
    return basis @ rotation[:kept].T, values[:kept]
