"""The scoring kernel: held to plain numpy on all shapes, its rule for ties, what it refuses, and what memory it takes."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from jobs.models import NONE, _top, _top_reference
from jobs.models._top import STRIPE, best_of_product, top_n

FEW_USERS, FEW_ITEMS = 3, 2 * STRIPE
"""A small tile."""
VALUES = st.sampled_from([-np.inf, -1.5, -1.0, -0.0, 0.0, 1e-30, 1.0, 3e38])


@st.composite
def products(draw: st.DrawFn, dtype: Any = np.float32) -> tuple[Any, ...]:
    """Factors of small whole numbers, so that products are exact and many scores equal; some excluded, some not allowed."""
    users, items, factors = draw(st.integers(0, 8)), draw(st.integers(0, 3 * FEW_ITEMS)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    left, right = rng.integers(-3, 4, (users, factors)), rng.integers(-3, 4, (items, factors))
    excluded = csr_matrix(rng.random((users, items)) < draw(st.sampled_from([0.0, 0.1, 0.9, 1.0])))
    allowed = rng.random(items) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    return left.astype(np.float32), right.astype(dtype), excluded, allowed


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tiles of few items."""
    monkeypatch.setattr(_top, "USERS", FEW_USERS)
    monkeypatch.setattr(_top, "ITEMS", FEW_ITEMS)


class TestBestOfProduct:
    """Scores and selection together."""

    @pytest.mark.usefixtures("small_tiles")
    @pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
    @given(data=st.data(), n=st.sampled_from([0, 1, 2, 7, STRIPE, 100, 1_000]))
    def test_it_is_plain_numpy(self, dtype: Any, data: st.DataObject, n: int) -> None:
        """Items, their order and their scores are equal, ties and all, whatever the shapes, and whatever n."""
        product = data.draw(products(dtype))
        expected, actual = _top_reference.best_of_product(*product, n), best_of_product(*product, n)

        assert_array_equal(expected.items, actual.items)
        assert_array_equal(expected.scores, actual.scores)

    def test_tiles_of_the_real_size_are_put_together(self) -> None:
        """More users and items than a tile has, one user with a history of almost everything."""
        rng = np.random.default_rng(3)
        left, right = (rng.normal(size=(size, 8)).astype(np.float32) for size in (_top.USERS + 9, 2 * _top.ITEMS + 70))
        seen = rng.random((len(left), len(right))) < 0.05
        seen[5, : len(right) - 3] = True
        product = left, right, csr_matrix(seen), rng.random(len(right)) < 0.8
        expected, actual = _top_reference.best_of_product(*product, 100), best_of_product(*product, 100)

        assert_array_equal(expected.items, actual.items)
        np.testing.assert_allclose(expected.scores, actual.scores, rtol=1e-4)

    def test_unsorted_histories_are_read_too(self) -> None:
        """Entries of a row in any order, and there twice, are all excluded."""
        excluded = csr_matrix((np.ones(4), np.array([5, 0, 3, 0]), np.array([0, 4])), shape=(1, 6))
        found = best_of_product(np.ones((1, 1), np.float32), np.ones((6, 1), np.float32), excluded, np.ones(6, bool), 6)

        assert_array_equal([[1, 2, 4, NONE, NONE, NONE]], found.items)

    @pytest.mark.parametrize("side", [0, 1])
    def test_nan_is_refused(self, side: int) -> None:
        """Of either side's factors, and wherever it stands."""
        factors: list[NDArray[np.float32]] = [np.ones((4, 2), np.float32), np.ones((700, 2), np.float32)]
        factors[side][-1, 1] = np.nan

        with pytest.raises(ValueError, match="NaN"):
            best_of_product(*factors, csr_matrix((4, 700)), np.ones(700, bool), 3)

    def test_memory_is_bounded_by_the_tile(self) -> None:
        """1,000 users and 100,000 items take a hundredth of what their scores would."""
        left, right = np.ones((1_000, 4), np.float32), np.ones((100_000, 4), np.float16)
        product = left, right, csr_matrix((1_000, 100_000)), np.arange(100_000) % 7 > 0
        best_of_product(*product, 10)
        tracemalloc.start()
        best_of_product(*product, 10)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        assert peak < 4 * 1_000 * 100_000 / 100


class TestTopN:
    """Selection alone."""

    @given(rows=st.integers(0, 3), columns=st.integers(0, 2 * STRIPE + 5), n=st.integers(0, 200), data=st.data())
    def test_it_is_plain_numpy(self, rows: int, columns: int, n: int, data: st.DataObject) -> None:
        """On few different scores, so that most are equal; -0.0 equals 0.0, and -inf is never taken."""
        flat = data.draw(st.lists(VALUES, min_size=rows * columns, max_size=rows * columns))
        scores = np.array(flat, np.float32).reshape(rows, columns)
        expected, actual = _top_reference.top_n(scores, n), top_n(scores, n)

        assert_array_equal(expected.items, actual.items)
        assert_array_equal(expected.scores, actual.scores)

    @given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 300))
    def test_any_float_has_its_place(self, seed: int, n: int) -> None:
        """Scores of every size and sign, subnormal ones among them."""
        bits = np.random.default_rng(seed).integers(-(2**31), 2**31, (2, 200)).astype(np.int32)
        scores = bits.view(np.float32)
        scores = np.where(np.isfinite(scores), scores, np.float32(0))
        expected, actual = _top_reference.top_n(scores, n), top_n(scores, n)

        assert_array_equal(expected.items, actual.items)
        assert_array_equal(expected.scores, actual.scores)

    @pytest.mark.parametrize("column", [0, STRIPE, 2 * STRIPE + 3])
    def test_nan_is_refused(self, column: int) -> None:
        """In a whole stripe and in the rest, and although n better ones were found before."""
        scores = np.ones((2, 2 * STRIPE + 4), np.float32)
        scores[1, column] = np.nan

        with pytest.raises(ValueError, match="NaN"):
            top_n(scores, 1)
