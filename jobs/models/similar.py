"""Item-to-item: what goes with this item, by co-occurrence with shrinkage or by the cosine of ALS factors.

    s(i, j) = (c_ij / (n_i ** x * n_j ** y) * c_ij / (c_ij + shrinkage)) ** q        c_ij: sum over users of decay / length ** a

The defaults (a = 1, x = y = 1/2, q = 1) are a cosine. y is how much the popularity of what is proposed counts against it, as beta
is in RP3beta, which is x = a = 1 (Paudel, Christoffel, Newell, Bernstein, "Updatable, Accurate, Diverse, and Scalable
Recommendations for Interactive Applications", TiiS 2017; q is its alpha).

A user's candidates are what is similar to the history: score(u, j) = sum over i in the history of h(age) * s(i, j), where
h halves with age (item-based top-N, Deshpande and Karypis, "Item-Based Top-N Recommendation Algorithms", TOIS 2004).
"""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import csr_matrix, vstack
from threadpoolctl import threadpool_limits

from jobs.models import NONE, CandidateModel, Candidates, ItemList, Training, Users
from jobs.models._sparse_top import best_of_sparse_product
from jobs.models._top import best_of_product
from jobs.search import Between
from schemas.settings import Section

BLOCK = 1_024
"""Items whose neighbours are looked for at a time."""
TINY = 1e-15
"""Roots of what an item's users count are taken for no less."""
LARGEST = 1e30
"""A similarity stops here: with x + y > 1, one of two items that nobody had for years would be infinite."""

FIRST = (
    {"neighbours": 500, "shrinkage": 0.1, "history_exponent": 0.5, "popularity_exponent": 0.5},
    {"neighbours": 200, "shrinkage": 1.0, "history_exponent": 1.0, "popularity_exponent": 0.6},
    {"neighbours": 500, "shrinkage": 1.0, "user_exponent": 0.44, "history_exponent": 0.44, "popularity_exponent": 0.6},
    {"neighbours": 500, "shrinkage": 0.1, "user_exponent": 0.77, "history_exponent": 0.77, "popularity_exponent": 0.42},
    {"neighbours": 30, "shrinkage": 0.4, "history_exponent": 1.0, "popularity_exponent": 0.3, "exponent": 1.5},
    {"neighbours": 75, "user_exponent": 0.0, "history_exponent": 0.3, "popularity_exponent": 0.15, "exponent": 0.4},
)
"""What `nightlist tune` tries first: the linear filter of a normalised graph, RP3beta at three places, and what was best on data of our
own."""


class Settings(Section):
    """Item-to-item similarity."""

    method: Literal["cooccurrence", "factors"] = "cooccurrence"
    """Users in common, or the cosine of ALS item factors (needs `als` among retrieve.models or trains it beside)."""
    neighbours: Annotated[int, Between(20, 500)] = Field(50, ge=1)
    """Similar items kept for each item."""
    shrinkage: Annotated[float, Between(0.1, 100)] = Field(30.0, ge=0)
    """Co-occurrence: similarity counts half at so much in common; it keeps chance pairs of rare items down."""
    user_exponent: Annotated[float, Between(0, 1, log=False)] = Field(1.0, ge=0)
    """Co-occurrence: a user with n items counts 1 / n ** a for each pair of them."""
    history_exponent: Annotated[float, Between(0, 1, log=False)] = Field(0.5, ge=0)
    """Co-occurrence: x, how much the popularity of an item of the history counts against it."""
    popularity_exponent: Annotated[float, Between(0, 1, log=False)] = Field(0.5, ge=0)
    """Co-occurrence: y, how much the popularity of what is proposed counts against it."""
    exponent: Annotated[float, Between(0.3, 3)] = Field(1.0, gt=0)
    """Co-occurrence: q; the larger, the more the closest neighbours stand out."""
    half_life_days: Annotated[float, Between(3, 300)] = Field(14.0, ge=0)
    """Co-occurrence: a pair counts half for every such stretch since its latest event; 0: all pairs count alike."""
    history_half_life_days: Annotated[float, Between(3, 300)] = Field(30.0, ge=0)
    """Candidates: an item of the history counts half for every such stretch; 0: the whole history counts alike."""
    max_history: int = Field(500, ge=2)
    """Co-occurrence: only a user's latest so many items count; one bot with 50,000 would make 2.5 billion pairs."""


def requires(settings: Settings) -> tuple[str, ...]:
    """Factors come from the trained `als`."""
    return ("als",) if settings.method == "factors" else ()


class Model:
    """A sparse matrix of similarities."""

    def __init__(self, similarities: csr_matrix, history_half_life_days: float) -> None:
        """`similarities`: items x items, float32 > 0, at most `neighbours` a row, none on the diagonal."""
        self.similarities, self.history_half_life_days = similarities, history_half_life_days

    @classmethod
    def fit(cls, training: Training, settings: Settings, fitted: Mapping[str, CandidateModel] | None = None) -> Self:
        """Deterministic, on all cores; the matrix of all pairs of items is never there as a whole."""
        if settings.method == "factors":
            similarities = _cosines(fitted["als"], settings.neighbours)
        else:
            ages = latest(training.ages, settings.max_history, training.seed)
            histories = normalised(ages, settings.half_life_days, settings.user_exponent)
            similarities = _cooccurrences(histories, settings)
        return cls(similarities, settings.history_half_life_days)

    def candidates(self, users: Users, n: int) -> Candidates:
        """Items similar to the user's history, weighted by its age."""
        histories = decayed(users.ages, self.history_half_life_days)
        return best_of_sparse_product(histories, self.similarities, users.excluded, users.eligible, n)

    def lists(self, eligible: NDArray[np.bool_], n: int) -> Iterator[ItemList]:
        """One list for each item that has a neighbour to show."""
        for item in range(self.similarities.shape[0]):
            row = slice(*self.similarities.indptr[item : item + 2])
            items, scores = self.similarities.indices[row], self.similarities.data[row]
            shown = eligible[items]
            items, scores = items[shown], scores[shown]
            if items.size:
                best = np.lexsort((items, -scores))[:n]
                yield ItemList("similar", item, items[best], scores[best])

    def save(self, folder: Path) -> None:
        """The three arrays of the CSR matrix, and the half-life."""
        for name in ("data", "indices", "indptr"):
            np.save(folder / f"{name}.npy", getattr(self.similarities, name))
        np.save(folder / "half_life.npy", np.float64(self.history_half_life_days))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote."""
        data, indices, indptr = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("data", "indices", "indptr")
        )
        similarities = csr_matrix((data, indices, indptr), shape=(indptr.size - 1,) * 2)
        return cls(similarities, float(np.load(folder / "half_life.npy")))


def latest(ages: csr_matrix, max_history: int, seed: int) -> csr_matrix:
    """The same ages, only of each user's `max_history` latest items; who is first on a tie is drawn: where nothing has a time, the
    items of the lowest numbers would have all the pairs of those who have many."""
    lengths = np.diff(ages.indptr)
    if lengths.max(initial=0) <= max_history:
        return ages
    user_of = np.repeat(np.arange(lengths.size), lengths)
    order = np.lexsort((np.random.default_rng(seed).permutation(ages.nnz), ages.data, user_of))
    rank = np.arange(order.size) - np.repeat(ages.indptr[:-1], lengths)
    kept = np.sort(order[rank < max_history])
    indptr = np.r_[0, np.cumsum(np.minimum(lengths, max_history))]
    return csr_matrix((ages.data[kept], ages.indices[kept], indptr), shape=ages.shape)


def decayed(ages: csr_matrix, half_life_days: float) -> csr_matrix:
    """0.5 ** (age / half-life) in place of each age, float32; 1 where there is no half-life."""
    weights = np.exp2(-ages.data / half_life_days) if half_life_days else np.ones_like(ages.data)
    return csr_matrix((weights.astype(np.float32), ages.indices, ages.indptr), shape=ages.shape)


def normalised(ages: csr_matrix, half_life_days: float, exponent: float = 1.0) -> csr_matrix:
    """sqrt(decay / (length of the user's history) ** exponent): with 1, each user adds at most 1 to all that an item has in common."""
    weights = decayed(ages, half_life_days)
    lengths = np.diff(ages.indptr)
    weights.data = np.sqrt(weights.data / np.repeat(lengths**exponent, lengths)).astype(np.float32)
    return weights


def _cooccurrences(histories: csr_matrix, settings: Settings) -> csr_matrix:
    """s(i, j) of each item's neighbours, where c = B'B off its diagonal and n is the diagonal."""
    by_item = histories.T.tocsr()
    # Roots first: the product of two n, each decayed for years, underflows to 0.
    roots = np.sqrt(np.asarray(by_item.power(2).sum(axis=1), np.float64).ravel())
    had, proposed = (
        np.minimum(np.maximum(roots, TINY) ** (-2 * v), LARGEST)
        for v in (settings.history_exponent, settings.popularity_exponent)
    )

    def neighbours(block: slice) -> Candidates:
        itself = _places(block, by_item.shape[0])
        everything = np.ones(by_item.shape[0], bool)
        found = best_of_sparse_product(
            by_item[block], histories, itself, everything, settings.neighbours, proposed, settings.shrinkage
        )
        with np.errstate(over="ignore"):
            close = (np.maximum(found.scores, 0) * had[block, None].astype(np.float32)) ** settings.exponent
        return Candidates(found.items, np.minimum(close, np.float32(LARGEST)))

    return _by_blocks(neighbours, by_item.shape[0])


def _cosines(als: CandidateModel, neighbours: int) -> csr_matrix:
    """The cosine of item factors; items without a pair, and cosines that are not positive, count 0."""
    factors = np.where(als.known[:, None], als.item_factors[:], 0.0).astype(np.float32)
    lengths = np.linalg.norm(factors, axis=1, keepdims=True)
    factors = np.divide(factors, lengths, out=np.zeros_like(factors), where=lengths > 0)

    def closest(block: slice) -> Candidates:
        return best_of_product(factors[block], factors, _places(block, len(factors)), als.known, neighbours)

    return _by_blocks(closest, len(factors))


def _places(block: slice, items: int) -> csr_matrix:
    """Each item of the block, in its own row."""
    own = np.arange(block.start, min(block.stop, items))
    return csr_matrix((np.ones(own.size, np.int8), own, np.arange(own.size + 1)), shape=(own.size, items))


def _by_blocks(best: Callable[[slice], Candidates], items: int) -> csr_matrix:
    """Items x items of what `best` finds for each block of rows and is > 0; each core has a block."""
    blocks = [slice(start, start + BLOCK) for start in range(0, items, BLOCK)]
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        return vstack([_matrix(found, items) for found in pool.map(best, blocks)], format="csr")


def _matrix(found: Candidates, items: int) -> csr_matrix:
    kept = (found.items != NONE) & (found.scores > 0)
    starts = np.r_[0, np.cumsum(kept.sum(axis=1))]
    matrix = csr_matrix((found.scores[kept], found.items[kept], starts), shape=(len(kept), items))
    matrix.sort_indices()
    return matrix
