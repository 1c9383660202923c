"""One list for many users, each without what they may not get: what all models of popularity hand out."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from jobs.models import Candidates
from jobs.models._top import top_n

FAINTEST = 1e-30
"""A decayed count stops here: one that underflows to 0 would come to mean that nobody had the item."""


def decayed_counts(ages: csr_matrix, half_life_days: float) -> csr_matrix:
    """0.5 ** (age / half-life) in place of each age, float64, never 0; 1 where there is no half-life."""
    decay = -np.log(2.0) / half_life_days if half_life_days else 0.0
    counts = np.maximum(np.exp(decay * ages.data.astype(np.float64)), FAINTEST)
    return csr_matrix((counts, ages.indices, ages.indptr), ages.shape)


def best_of(scores: NDArray[np.float32], eligible: NDArray[np.bool_], n: int) -> Candidates:
    """The best n eligible items of one score an item, both arrays one-dimensional and not padded; 0: nobody had it."""
    best = top_n(np.where(eligible & (scores > 0), scores, np.float32(-np.inf))[None, :], n)
    size = int((best.items[0] >= 0).sum())
    return Candidates(best.items[0, :size], best.scores[0, :size])


def hand_out(best: Candidates, excluded: csr_matrix, found: Candidates, rows: NDArray[np.intp]) -> None:
    """Fill these rows of `found` with the head of `best` that each row of `excluded` leaves."""
    n = found.items.shape[1]
    for row in rows:
        out = excluded.indices[excluded.indptr[row] : excluded.indptr[row + 1]]
        head = best.items[: n + out.size]
        kept = ~np.isin(head, out)
        size = min(n, int(kept.sum()))
        found.items[row, :size] = head[kept][:size]
        found.scores[row, :size] = best.scores[: head.size][kept][:size]


def longest(excluded: csr_matrix) -> int:
    """The most that any row excludes: a list for all has to be longer by as much."""
    return int(np.diff(excluded.indptr).max(initial=0))
