"""Item factors, and folding users in: what every implementation of ALS hands to retrieval.

A user x with n pairs is the exact minimum with the item factors Y fixed, of the objective that trained them (Hu, Koren,
Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008, eq. 4; n ** v is the weighted regularization
of Zhou et al., "Large-Scale Parallel Collaborative Filtering for the Netflix Prize", AAIM 2008):

    (Y'Y + alpha * sum of r y y' + lambda * n ** v * I) x = sum of (1 + alpha * r) y        sums over the user's pairs

The factors that training leaves for users are never used: some implementations' lag half an iteration behind.

Y is what is kept (`store_as`), not what was trained: users are folded in against the very vectors that they are scored with,
so that a loaded model gives what the fitted one gave.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator
from scipy.linalg.lapack import dposv
from scipy.sparse import csr_matrix

from jobs.models import NONE, Candidates, ItemList, Users, _kept
from jobs.models._index import Index, described
from jobs.models._kept import Factors, Scaled, StoreAs, kept
from jobs.models._top import best_of_product, empty
from jobs.search import Between, OneOf
from schemas.settings import Section

PIECE = 8_192
"""Pairs of a user whose factors are held at once: a bot with a million would take a gigabyte."""
BLOCK = 65_536
"""Items whose part of Y'Y is added at a time."""
Query = tuple[NDArray[np.float32], Factors, csr_matrix, NDArray[np.bool_]]
"""What `best_of_product` takes but for n: users' factors, items', excluded items, allowed ones."""


class VectorSettings(Section):
    """How item vectors are kept and searched."""

    factors: Annotated[int, OneOf((32, 64, 128, 256, 512))] = Field(64, ge=1)
    """Length of the vectors; too few is the commonest fault."""
    store_as: StoreAs = "float32"
    """Numbers of the item vectors, on disk and in memory: float16 takes half of the space, int8 (a scale a vector) a quarter."""
    index: str = ""
    """Approximate search, as FAISS describes an index: "IVF4096,SQ8", "HNSW32", ...; empty: exact, by our own kernel."""
    index_search: str = ""
    """How far the index looks, in FAISS's words: "nprobe=64", "efSearch=256"; empty: as FAISS has it."""
    min_recall: float = Field(0.9, ge=0, le=1)
    """What share of the exact candidates an index has to find, on a sample of users, or the night is refused."""

    @field_validator("index", "index_search")
    @classmethod
    def _faiss_knows_it(cls, value: str, info: ValidationInfo) -> str:
        """Asked before a long job starts, and only where an index is wanted."""
        index, search = (value, "") if info.field_name == "index" else (info.data.get("index"), value)
        if value and index == "":
            raise ValueError("there is no index to search")
        if value and index and "factors" in info.data:
            described(index, search, info.data["factors"])
        return value


class FactorSettings(VectorSettings):
    """The objective, and how far to go; confidence of a pair is 1 + alpha * r in every implementation."""

    regularization: float = Field(gt=0)
    """lambda."""
    frequency_exponent: float
    """lambda is scaled by (a row's number of pairs) ** v."""
    alpha: Annotated[float, Between(1, 300)] = Field(10.0, gt=0)
    """Confidence of a pair is 1 + alpha * r; good values span 1 to 200."""
    iterations: Annotated[int, Between(2, 30)] = Field(10, ge=1)
    """Sweeps over users and items; where data is sparse fewer can be better: to stop early regularizes, too."""


class FactorModel:
    """Item factors, and what it takes to fold a user in. An implementation adds its settings and `fit`."""

    settings_class: ClassVar[type[VectorSettings]]

    def __init__(
        self, item_factors: Factors, known: NDArray[np.bool_], settings: Any, index: Index | None = None
    ) -> None:
        """`item_factors`: items x factors, as kept; `known`: items with at least one pair (the others' factors are 0)."""
        self.item_factors, self.known, self.settings, self.index = item_factors, known, settings, index

    @classmethod
    def trained(cls, item_factors: NDArray[np.float32], known: NDArray[np.bool_], settings: Any, **more: Any) -> Self:
        """The model of trained factors, which are kept, and have an index, as the settings say."""
        factors = kept(item_factors, settings.store_as)
        index = Index.build(factors, known, settings.index, settings.index_search) if settings.index else None
        return cls(factors, known, settings, index, **more)

    @property
    def notes(self) -> dict[str, int]:
        """Items in the index; 0 where they are too few for one, and are searched exactly."""
        return {"indexed_items": self.index.numbers.size if self.index else 0} if self.settings.index else {}

    def fold_in(self, weights: csr_matrix) -> NDArray[np.float32]:
        """Users x factors, solved in float64 one by one, so that nobody's depend on who stands beside.

        `weights`: users x items, float32, r > 0. Who has no pair gets 0.
        """
        items, lengths = self._vectors, np.diff(weights.indptr)
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
        found = empty(rows, min(n, items))
        active = np.flatnonzero(np.diff(users.weights.indptr))
        best, _ = self._best(self._query(users, active), n)
        found.items[active], found.scores[active] = best
        return found

    def recall(self, users: Users, n: int) -> dict[str, float]:
        """Of users with a pair: which share of their n exact candidates is found by the index, and of how many users;
        and which share of them it leaves short, so that they are searched exactly after all."""
        active = np.flatnonzero(np.diff(users.weights.indptr))
        query = self._query(users, active)
        best, short = self._best(query, n)
        exact = best_of_product(*query, n)
        pairs = zip(exact.items, best.items, strict=True)
        shares = [np.isin(one[one != NONE], other).mean() for one, other in pairs if (one != NONE).any()]
        return {
            "recall": float(np.mean(shares or [1.0])),
            "users": len(shares),
            "searched_exactly": float(np.mean(short)) if short.size else 0.0,
        }

    def lists(self, eligible: NDArray[np.bool_], n: int) -> Iterator[ItemList]:
        """None of other kinds: item-to-item lists are the model `similar`'s."""
        return iter(())

    def save(self, folder: Path) -> None:
        """.npy files, the settings, and the index where there is one."""
        _kept.save(self.item_factors, folder)
        np.save(folder / "known.npy", self.known)
        (folder / "settings.json").write_text(self.settings.model_dump_json())
        if self.index:
            self.index.save(folder)

    @classmethod
    def load(cls, folder: Path, **more: Any) -> Self:
        """Factors and index are memory-mapped, so that the workers of a node share them."""
        settings = cls.settings_class.model_validate_json((folder / "settings.json").read_text())
        known = np.load(folder / "known.npy")
        return cls(_kept.load(folder), known, settings, Index.load(folder, known), **more)

    def _query(self, users: Users, rows: NDArray[np.intp]) -> Query:
        """Whom to find the best for, and among which."""
        return self.fold_in(users.weights[rows]), self.item_factors, users.excluded[rows], self.known & users.eligible

    def _best(self, query: Query, n: int) -> tuple[Candidates, NDArray[np.bool_]]:
        """The best n, and for whom the index had too few: they are searched exactly."""
        if self.index is None:
            return best_of_product(*query, n), np.zeros(len(query[0]), bool)
        best, short = self.index.best(*query, n)
        if short.any():
            tastes, factors, excluded, allowed = query
            best.items[short], best.scores[short] = best_of_product(tastes[short], factors, excluded[short], allowed, n)
        return best, short

    @cached_property
    def _vectors(self) -> Factors:
        """The factors for taking out a few: a map's own class costs time at each look."""
        return self.item_factors if isinstance(self.item_factors, Scaled) else np.asarray(self.item_factors)

    @cached_property
    def _gram(self) -> NDArray[np.float64]:
        """Y'Y, factors x factors."""
        gram = np.zeros((self.item_factors.shape[1],) * 2)
        for start in range(0, len(self.item_factors), BLOCK):
            items = self._vectors[start : start + BLOCK].astype(np.float32)
            gram += items.T @ items
        return gram


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
