"""Item factors, and folding users in: what every implementation of ALS hands to retrieval.

A user x with n pairs is the exact minimum with the item factors Y fixed, of the objective that trained them (Hu, Koren,
Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008, eq. 4; n ** v is the weighted regularization
of Zhou et al., "Large-Scale Parallel Collaborative Filtering for the Netflix Prize", AAIM 2008):

    (Y'Y + alpha * sum of r y y' + lambda * n ** v * I) x = sum of (1 + alpha * r) y        sums over the user's pairs

The factors that training leaves for users are never used: some implementations' lag half an iteration behind.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.linalg.lapack import dposv
from scipy.sparse import csr_matrix

from jobs.models import Candidates, ItemList, Users
from jobs.models._top import best_of_product, empty
from jobs.search import Between, OneOf
from schemas.settings import Section

PIECE = 8_192
"""Pairs of a user whose factors are held at once: a bot with a million would take a gigabyte."""


class FactorSettings(Section):
    """The objective, and how far to go; confidence of a pair is 1 + alpha * r in every implementation."""

    factors: Annotated[int, OneOf((32, 64, 128, 256, 512))] = Field(64, ge=1)
    """Length of the vectors; too few is the commonest fault."""
    regularization: float = Field(gt=0)
    """lambda."""
    frequency_exponent: float
    """lambda is scaled by (a row's number of pairs) ** v."""
    alpha: Annotated[float, Between(1, 300)] = Field(10.0, gt=0)
    """Confidence of a pair is 1 + alpha * r; good values span 1 to 200."""
    iterations: int = Field(10, ge=1)
    """Sweeps over users and items."""


class FactorModel:
    """Item factors, and what it takes to fold a user in. An implementation adds its settings and `fit`."""

    settings_class: ClassVar[type[FactorSettings]]

    def __init__(self, item_factors: NDArray[np.float32], known: NDArray[np.bool_], settings: FactorSettings) -> None:
        """`item_factors`: items x factors; `known`: items with at least one pair (the others' factors are 0)."""
        self.item_factors, self.known, self.settings = item_factors, known, settings

    def fold_in(self, weights: csr_matrix) -> NDArray[np.float32]:
        """Users x factors, solved in float64 one by one, so that nobody's depend on who stands beside.

        `weights`: users x items, float32, r > 0. Who has no pair gets 0.
        """
        items, lengths = np.asarray(self.item_factors), np.diff(weights.indptr)
        above_one = self.settings.alpha * weights.data.astype(np.float64)
        ridges = self.settings.regularization * lengths.astype(np.float64) ** self.settings.frequency_exponent
        folded = np.zeros((lengths.size, items.shape[1]), np.float32)
        for row in np.flatnonzero(lengths):
            begin, end = weights.indptr[row : row + 2]
            left, right = _sums(items, weights.indices, above_one, slice(begin, min(begin + PIECE, end)))
            for start in range(begin + PIECE, end, PIECE):
                more = _sums(items, weights.indices, above_one, slice(start, min(start + PIECE, end)))
                left, right = left + more[0], right + more[1]
            left += self._gram
            left.flat[:: items.shape[1] + 1] += ridges[row]
            folded[row] = _solved(left, right)
        return folded

    def candidates(self, users: Users, n: int) -> Candidates:
        """Users without a pair have no taste to fold in, and get no candidates."""
        rows, items = users.weights.shape
        found, allowed = empty(rows, min(n, items)), self.known & users.eligible
        active = np.flatnonzero(np.diff(users.weights.indptr))
        tastes = self.fold_in(users.weights[active])
        best = best_of_product(tastes, self.item_factors, users.excluded[active], allowed, n)
        found.items[active], found.scores[active] = best
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
        """Factors are memory-mapped, so that the workers of a node share them."""
        settings = cls.settings_class.model_validate_json((folder / "settings.json").read_text())
        return cls(np.load(folder / "item_factors.npy", mmap_mode="r"), np.load(folder / "known.npy"), settings)

    @cached_property
    def _gram(self) -> NDArray[np.float64]:
        """Y'Y, factors x factors."""
        items = np.asarray(self.item_factors)
        return (items.T @ items).astype(np.float64)


def _sums(
    items: NDArray[np.float32], numbers: NDArray[np.integer], above_one: NDArray[np.float64], pairs: slice
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """alpha * sum of r y y' and sum of (1 + alpha * r) y over these pairs."""
    y, c = items[numbers[pairs]].astype(np.float64), above_one[pairs]
    return (y.T * c) @ y, (1.0 + c) @ y


def _solved(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """x of left x = right by Cholesky; `left` is symmetric, and both are overwritten.

    Raises ValueError where it is not positive definite, which a positive lambda leaves to factors that are not finite.
    """
    _, solution, failed = dposv(left.T, right, overwrite_a=True, overwrite_b=True)  # .T: LAPACK's order, not a copy
    if failed:
        raise ValueError("a user can't be folded in: the item factors are broken; train again")
    return solution
