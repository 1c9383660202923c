"""The best of each row of a sparse product, held to numpy."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_matrix

from jobs.models import _top_reference
from jobs.models._sparse_top import best_of_sparse_product


def some(rng: np.random.Generator, rows: int, columns: int, share: float) -> csr_matrix:
    """Small whole numbers, so that sums are exact and many equal."""
    values = rng.integers(1, 4, (rows, columns)) * (rng.random((rows, columns)) < share)
    return csr_matrix(values.astype(np.float32))


@given(
    shape=st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 90)),
    share=st.sampled_from([0.1, 0.5, 1.0]),
    n=st.integers(0, 100),
    shrinkage=st.sampled_from([0.0, 3.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_is_plain_numpy(shape: tuple[int, int, int], share: float, n: int, shrinkage: float, seed: int) -> None:
    """Items, their order and their scores, whatever the shapes; only scores above 0, and nothing excluded or not allowed."""
    rows, middle, items = shape
    rng = np.random.default_rng(seed)
    left, right = some(rng, rows, middle, share), some(rng, middle, items, share)
    excluded, allowed = some(rng, rows, items, 0.2), rng.random(items) < 0.8
    scale: Any = rng.choice(np.float32([0.5, 1, 2]), items)
    common = (left @ right).toarray()
    shrunk = np.divide(common, common + np.float32(shrinkage), out=np.zeros_like(common), where=common > 0)
    scores = common * scale * shrunk
    scores[(scores <= 0) | ~allowed | (excluded.toarray() > 0)] = -np.inf
    expected = _top_reference.top_n(scores.astype(np.float32), n)
    actual = best_of_sparse_product(left, right, excluded, allowed, n, scale, shrinkage)

    assert_array_equal(expected.items, actual.items)
    assert_allclose(expected.scores, actual.scores, rtol=1e-6)
