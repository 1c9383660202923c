"""The best n of each row of a product of two sparse matrices, which is never there as a whole: item-to-item by users in
common, and what is similar to a history.

The rule is that of `_top`: higher score first, then the lower item number. A row costs its own multiplications and no more.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from jobs.models import Candidates
from jobs.models._top import NOTHING, compiled, decoded, key_of, replace_worst


def best_of_sparse_product(
    left: csr_matrix,
    right: csr_matrix,
    excluded: csr_matrix,
    allowed: NDArray[np.bool_],
    n: int,
    scale: NDArray[np.float32] | None = None,
    shrinkage: float = 0.0,
) -> Candidates:
    """The n items with the largest score > 0 of each row: c * scale(item) * c / (c + shrinkage), where c = left @ right.

    Args:
        left: rows x anything, float32, all values > 0.
        right: anything x items, float32, all values > 0.
        excluded: rows x items; every stored entry counts, in any order.
        allowed: per item, whether any row may get it.
        scale: per item, > 0; None: 1.
    """
    items = right.shape[1]
    keys = np.full((left.shape[0], min(n, items)), NOTHING, np.int64)
    if keys.size:
        matrices = [array for matrix in (left, right) for array in (matrix.indptr, matrix.indices, matrix.data)]
        scales = np.ones(items, np.float32) if scale is None else scale.astype(np.float32)
        _keep_best(*matrices, excluded.indptr, excluded.indices, allowed, scales, np.float32(shrinkage), keys)
    return decoded(keys)


@compiled
def _keep_best(
    left_starts,
    left_places,
    left,
    right_starts,
    right_places,
    right,
    excluded_starts,
    excluded,
    allowed,
    scales,
    shrinkage,
    keys,
):
    """Fill each row's heap of keys."""
    sums, met = np.zeros(allowed.size, np.float32), np.full(allowed.size, -1, np.int64)
    touched = np.empty(allowed.size, np.int64)
    for row in range(keys.shape[0]):
        count = 0
        for at in range(left_starts[row], left_starts[row + 1]):
            middle, weight = left_places[at], left[at]
            for place in range(right_starts[middle], right_starts[middle + 1]):
                item = right_places[place]
                if met[item] != row:
                    met[item] = row
                    sums[item] = 0
                    touched[count] = item
                    count += 1
                sums[item] += weight * right[place]
        for at in range(excluded_starts[row], excluded_starts[row + 1]):
            sums[excluded[at]] = 0
        for item in touched[:count]:
            common = sums[item]
            if common > 0 and allowed[item]:
                key = key_of(common * scales[item] * (common / (common + shrinkage)), item)
                if key > keys[row, 0]:
                    replace_worst(keys[row], key)
