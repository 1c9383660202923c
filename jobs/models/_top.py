"""The best n of a row of scores, by one stated rule: higher score first, then the lower item number."""

import numpy as np
from numpy.typing import NDArray

from jobs.models import NONE, Candidates


def top_n(scores: NDArray[np.float32], n: int) -> Candidates:
    """The best n of each row; -inf marks what may not be taken.

    Args:
        scores: rows x items, float32; NaN is refused with ValueError, since it would order by accident.
    """
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN: the factors they come from are broken; train again")
    n = min(n, scores.shape[1])
    found = empty(scores.shape[0], n)
    for row, values in enumerate(scores):
        best = _best_of(values, n)
        found.items[row, : best.size], found.scores[row, : best.size] = best, values[best]
    return found


def empty(rows: int, n: int) -> Candidates:
    """No candidates for so many users."""
    return Candidates(np.full((rows, n), NONE, np.int32), np.full((rows, n), -np.inf, np.float32))


def _best_of(values: NDArray[np.float32], n: int) -> NDArray[np.intp]:
    """Numbers of the n best finite values of one row, best first."""
    if n == 0:
        return np.empty(0, np.intp)
    threshold = np.partition(values, values.size - n)[values.size - n]
    above = np.flatnonzero(values > threshold)
    level = np.flatnonzero(values == threshold)[: n - above.size] if np.isfinite(threshold) else above[:0]
    best = np.concatenate([above, level])
    return best[np.lexsort((best, -values[best]))]
