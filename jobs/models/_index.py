"""Approximate search: a FAISS index over the item vectors, where a catalogue is too large to be looked through.

The index only proposes. What it found is scored with the model's own vectors, freed of what the user may not get, and
ordered by the rule of `_top.py`; who comes out short is told apart, to be searched exactly. FAISS's own scores are never seen.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from jobs.models import NONE, Candidates, rows_of
from jobs.models._kept import Factors
from jobs.models._top import empty

if TYPE_CHECKING:
    import faiss

FILE = "items.faiss"
PROPOSED = 65_536
"""Proposals looked at together: their vectors bound the memory."""
STEP = 64
"""A user asks for n and as many more as may be dropped, rounded up to this."""


class Index:
    """Proposes items to users by inner product."""

    def __init__(self, items: "faiss.Index", numbers: NDArray[np.int32]) -> None:
        """`items`: over the vectors of the items with these numbers, in this order."""
        self.items, self.numbers = items, numbers

    @classmethod
    def build(cls, factors: Factors, known: NDArray[np.bool_], spec: str, search: str) -> Self | None:
        """Of the known items; None where they are too few to train it. The same on any number of cores."""
        import faiss

        numbers = np.flatnonzero(known).astype(np.int32)
        if not numbers.size:
            return None
        vectors = np.ascontiguousarray(factors[numbers], np.float32)
        items = described(spec, search, vectors.shape[1])
        # A graph may depend on which thread comes first.
        faiss.omp_set_num_threads(1 if isinstance(items, faiss.IndexHNSW) else os.cpu_count() or 1)
        with threadpool_limits(1, "blas"):
            try:
                items.train(vectors)
            except RuntimeError as error:
                if "Number of training points" in str(error):
                    return None
                raise
            items.add(vectors)
        return cls(items, numbers)

    def best(
        self,
        tastes: NDArray[np.float32],
        factors: Factors,
        excluded: csr_matrix,
        allowed: NDArray[np.bool_],
        n: int,
    ) -> tuple[Candidates, NDArray[np.bool_]]:
        """The best n of what the index proposes to each user, by the vectors' exact products, and who comes out short.

        Arguments as of `_top.best_of_product`. Who is short has fewer than n although there are more to have.
        """
        if not np.isfinite(tastes).all():
            raise ValueError("users' factors are not finite: train again")
        if not excluded.has_canonical_format:
            excluded = excluded.copy()
            excluded.sum_duplicates()
        found, short = empty(len(tastes), min(n, allowed.size)), np.zeros(len(tastes), bool)
        dropped = np.bincount(rows_of(excluded)[allowed[excluded.indices]], minlength=len(tastes))
        wanted = np.minimum(n, np.count_nonzero(allowed) - dropped)
        parameters = _parameters(self.items, allowed[self.numbers])
        for rows, k in _blocks(n + -(-dropped // STEP) * STEP, self.items.ntotal):
            items = self._proposed(tastes[rows], k, parameters)
            items[_stored(excluded[rows], items)] = NONE
            best = _ordered(items, tastes[rows], factors, n)
            found.items[rows, : best.items.shape[1]], found.scores[rows, : best.items.shape[1]] = best
            short[rows] = (best.items != NONE).sum(axis=1) < wanted[rows]
        return found, short

    def save(self, folder: Path) -> None:
        """One file of FAISS's own format."""
        import faiss

        faiss.write_index(self.items, str(folder / FILE))

    @classmethod
    def load(cls, folder: Path, known: NDArray[np.bool_]) -> Self | None:
        """What `save` wrote, or None; memory-mapped, so that the workers of a node share it."""
        if not (folder / FILE).exists():
            return None
        import faiss

        items = faiss.read_index(str(folder / FILE), faiss.IO_FLAG_MMAP_IFC)
        return cls(items, np.flatnonzero(known).astype(np.int32))

    def _proposed(self, tastes: NDArray[np.float32], k: int, parameters: Any) -> NDArray[np.int32]:
        """Users x k items, NONE where there are fewer. One thread: Spark has a worker a core."""
        import faiss

        faiss.omp_set_num_threads(1)
        _, places = self.items.search(np.ascontiguousarray(tastes), k, params=parameters)
        return np.where(places >= 0, self.numbers[places], NONE).astype(np.int32)


def described(spec: str, search: str, factors: int) -> "faiss.Index":
    """An empty index of this description. Raises ValueError, which says what FAISS, or we, can't use of it."""
    try:
        import faiss
    except ImportError:
        raise ValueError("an index needs the package faiss-cpu, which nightlist[jobs] names") from None
    try:
        items = faiss.index_factory(factors, spec, faiss.METRIC_INNER_PRODUCT)
        if search:
            faiss.ParameterSpace().set_index_parameters(items, search)
    except RuntimeError as error:
        raise ValueError(str(error).rpartition(":")[2].strip()) from None
    _parameters(items, np.zeros(0, bool))
    return items


def _parameters(items: "faiss.Index", allowed: NDArray[np.bool_]) -> Any:
    """How to search this index so that it proposes only what is allowed. Raises ValueError for a kind that can't."""
    import faiss

    chosen = {} if allowed.all() else {"sel": faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))}
    if isinstance(items, faiss.IndexIVFFlat | faiss.IndexIVFScalarQuantizer | faiss.IndexIVFPQ):
        return faiss.SearchParametersIVF(nprobe=items.nprobe, **chosen)
    if isinstance(items, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=items.hnsw.efSearch, **chosen)
    if isinstance(items, faiss.IndexFlat | faiss.IndexScalarQuantizer):
        return faiss.SearchParameters(**chosen)
    raise ValueError(
        f"{type(items).__name__} can't leave items out here: use Flat, SQ8, HNSW32, IVF4096,SQ8 or the like"
    )


def _blocks(asked: NDArray[np.integer], most: int) -> Iterator[tuple[NDArray[np.intp], int]]:
    """Users who ask for equally many, not too many together: a long history costs its own user only."""
    asked = np.minimum(asked, most)
    for k in np.unique(asked).tolist():
        rows = np.flatnonzero(asked == k)
        size = max(1, PROPOSED // k)
        for start in range(0, rows.size, size):
            yield rows[start : start + size], k


def _stored(matrix: csr_matrix, items: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which of each row's items have an entry in the row."""
    width = np.int64(matrix.shape[1])
    return np.isin(np.arange(len(items))[:, None] * width + items, rows_of(matrix) * width + matrix.indices)


def _ordered(items: NDArray[np.int32], tastes: NDArray[np.float32], factors: Factors, n: int) -> Candidates:
    """At most n of each user's items, the higher product first, then the lower number; NONE is none."""
    vectors = factors[items].astype(np.float32, copy=False)
    scores = np.where(items == NONE, np.float32(-np.inf), np.einsum("uf,ukf->uk", tastes, vectors))
    order = np.lexsort((items, -scores), axis=1)[:, :n]
    return Candidates(np.take_along_axis(items, order, 1), np.take_along_axis(scores, order, 1))
