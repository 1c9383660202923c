"""What a pair weighs in models that have no confidence: r to a power."""

import numpy as np
from scipy.sparse import csr_matrix


def powered(weights: csr_matrix, exponent: float) -> csr_matrix:
    """r ** exponent in place of each r, float32; all 1 with an exponent of 0."""
    data = (weights.data**exponent).astype(np.float32)
    return csr_matrix((data, weights.indices, weights.indptr), weights.shape)
