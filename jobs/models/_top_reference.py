"""What `_top.py` computes, in plain numpy: for reading, and for tests to hold the fast one to."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from jobs.models import Candidates
from jobs.models._top import empty


def best_of_product(
    users: NDArray[np.float32],
    items: NDArray[np.floating],
    excluded: csr_matrix,
    allowed: NDArray[np.bool_],
    n: int,
) -> Candidates:
    """The n items with the largest inner product for each user: higher score first, then the lower item number."""
    scores = users @ np.asarray(items, np.float32).T
    scores[:, ~allowed] = -np.inf
    scores[excluded.nonzero()] = -np.inf
    return top_n(scores, n)


def top_n(scores: NDArray[np.float32], n: int) -> Candidates:
    """The best n of each row; -inf is never taken, NaN is refused with ValueError."""
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN")
    found = empty(scores.shape[0], min(n, scores.shape[1]))
    for row, values in enumerate(scores):
        best = np.lexsort((np.arange(values.size), -values))[:n]
        best = best[values[best] > -np.inf]
        found.items[row, : best.size], found.scores[row, : best.size] = best, values[best]
    return found
