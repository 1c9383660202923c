"""EASE, spectral, segment and fresh: what is each one's alone. The conformance suite in test_models.py is over them too."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from jobs import models
from jobs.config import TrainSettings
from jobs.models import Training, Users, _inverse, ease, fresh, popular, segment, spectral
from jobs.stages.train import fit as train
from schemas.errors import InputError
from tests.test_lists import write_dataset
from tests.test_models import listed, matrix, some_world, training_of, users_of


def symmetric(size: int) -> NDArray[np.float32]:
    """Positive definite; garbage above the diagonal is for the caller to put there."""
    rows = np.random.default_rng(5).standard_normal((size, 40), np.float32)
    return rows @ rows.T + 20 * np.eye(size, dtype=np.float32)


class TestInverse:
    """A large symmetric matrix, inverted in its place."""

    @pytest.mark.parametrize("size", [1, 7, _inverse.BLOCK, 2 * _inverse.BLOCK + 100])
    def test_it_is_the_inverse(self, size: int) -> None:
        """It equals numpy's in float64 to 1e-5 of its largest entry, in one block, on a block's edge, and over several."""
        found = symmetric(size)
        expected = np.linalg.inv(found.astype(np.float64))
        _inverse.invert(found)

        assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        assert_allclose(found, found.T, rtol=0, atol=1e-6 * np.abs(expected).max())

    def test_the_number_of_cores_changes_no_bit(self) -> None:
        """One, two and five threads leave the same float32, and so does one whose BLAS was told to use two."""
        results = []
        for cores in (1, 2, 5):
            found = symmetric(1_300)
            with threadpool_limits(2, "blas"):
                _inverse.invert(found, cores)
            results.append(found)

        assert_array_equal(results[0], results[1])
        assert_array_equal(results[0], results[2])

    def test_what_is_above_the_diagonal_blocks_is_not_read(self) -> None:
        """Only the lower half counts: the upper one may hold anything, NaN included."""
        found, expected = symmetric(700), symmetric(700)
        found[: _inverse.BLOCK, _inverse.BLOCK :] = np.nan
        _inverse.invert(found)
        _inverse.invert(expected)

        assert_array_equal(expected, found)

    @pytest.mark.parametrize("place", [0, 650])
    def test_a_matrix_that_is_not_positive_definite_is_refused(self, place: int) -> None:
        """In the first block or in a later one: an error, not numbers that mean nothing."""
        wrong = symmetric(700)
        wrong[place, place] = -1

        with pytest.raises(ValueError, match="not positive definite"):
            _inverse.invert(wrong)


def reference_ease(
    training: Training, settings: ease.Settings, items: NDArray[np.int32] | None = None
) -> NDArray[np.float64]:
    """B of EASE by numpy's inverse in float64, of some of the items under the penalty that they have among all."""
    r = training.weights.toarray().astype(np.float64)
    n, lengths = (r > 0).sum(axis=0), (r > 0).sum(axis=1)
    x = np.where(r > 0, r**settings.weight_exponent, 0) / lengths[:, None] ** settings.user_exponent
    x *= np.sqrt(n.sum() / (x**2).sum())
    g = x.T @ x
    p = settings.dropout
    penalty = settings.regularization * (n / n.mean()) ** settings.frequency_exponent + p / (1 - p) * np.diag(g)
    kept = slice(None) if items is None else items
    inverse = np.linalg.inv((g + np.diag(penalty))[kept][:, kept])
    between = inverse / -np.diag(inverse)
    np.fill_diagonal(between, 0)
    return between


class TestEase:
    """EASE."""

    @pytest.mark.parametrize(
        "chosen",
        [
            {},
            {"dropout": 0.6},
            {"frequency_exponent": 1.0, "user_exponent": 0.5},
            {"frequency_exponent": 0.0, "user_exponent": 0.0, "weight_exponent": 1.0},
        ],
    )
    def test_it_is_the_closed_form(self, chosen: dict[str, float]) -> None:
        """Weights equal the formula in float64 to 1e-4, under each of its settings."""
        training, settings = some_world(items=300, users=400), ease.Settings(regularization=5, **chosen)
        found = ease.Model.fit(training, settings)

        assert_array_equal(np.flatnonzero(np.diff(training.weights.tocsc().indptr)), found.items)
        assert_allclose(found.between, reference_ease(training, settings), atol=1e-4 * np.abs(found.between).max())

    def test_no_item_speaks_for_itself(self) -> None:
        """The diagonal is 0 to the last bit: otherwise a history would predict itself, and nothing else."""
        assert_array_equal(ease.Model.fit(some_world(), ease.Settings()).between.diagonal(), 0)

    @pytest.mark.parametrize("exponent", [0.5, 0.3])
    def test_normalised_columns_are_a_frequency_exponent_twice_as_large(self, exponent: float) -> None:
        """EASE of X / n ** b with one lambda for all, put right after, is EASE of X with lambda * n ** 2b."""
        training = some_world()
        x = (training.weights.toarray() > 0).astype(np.float64)
        scale = x.sum(axis=0) ** exponent
        inverse = np.linalg.inv((x / scale).T @ (x / scale) + 0.7 * np.eye(len(scale)))
        expected = (inverse / -np.diag(inverse)) / scale[:, None] * scale
        np.fill_diagonal(expected, 0)
        plain = {"user_exponent": 0.0, "weight_exponent": 0.0}
        regularization = 0.7 * x.sum(axis=0).mean() ** (2 * exponent)
        settings = ease.Settings(regularization=regularization, frequency_exponent=2 * exponent, **plain)
        found = ease.Model.fit(training, settings).between

        assert_allclose(found, expected, rtol=1e-3, atol=1e-5)

    def test_candidates_are_the_history_times_the_weights(self) -> None:
        """A user's scores are the sums of r ** q times B's rows, also where an item of the middle was never had."""
        training = training_of([[0, 1, 4], [0, 1], [1, 4], [0, 3]], 5)
        settings = ease.Settings(regularization=1, weight_exponent=0.5)
        model = ease.Model.fit(training, settings)
        user = training_of([[0, 4]], 5, weights=[4, 9])
        found = model.candidates(users_of(user), 5)
        row = dict(zip(model.items.tolist(), range(4), strict=True))
        expected = {
            item: 2 * model.between[row[0], row[item]] + 3 * model.between[row[4], row[item]] for item in (1, 3)
        }

        assert sorted(expected, key=lambda item: -expected[item]) == listed(found, 0)
        assert_allclose(found.scores[0, :2], sorted(expected.values(), reverse=True), rtol=1e-5)

    def test_a_too_large_catalogue_is_cut_to_the_items_with_most_users_and_says_so(self, tmp_path: Path) -> None:
        """Of items with 3, 1, 2 and 1 users, max_items = 3 keeps those of 3, 2 and the lower number of 1; the record counts 1."""
        rows = [[0, 1, 2], [0, 2], [0, 3]]
        training = training_of(rows, 5)
        model = ease.Model.fit(training, ease.Settings(regularization=1, max_items=3))
        users = training_of([[0], [3]], 5)
        found = model.candidates(users_of(users), 5)
        write_dataset(tmp_path / "dataset", [[(f"u{place}", row) for place, row in enumerate(rows)]], [True] * 5)
        sections = {"ease": ease.Settings(max_items=3)}
        counts = train(tmp_path / "train", tmp_path / "dataset", ("ease",), sections, (), TrainSettings())

        assert model.items.tolist() == [0, 1, 2]
        assert sorted(listed(found, 0)) == [1, 2]
        assert listed(found, 1) == []
        assert counts["ease_items_left_out"] == 1

    def test_lambda_means_the_same_for_a_part_of_the_items(self) -> None:
        """200 of 300 items have the closed form's weights under the penalties that they have among all: `tune` tries it on a part."""
        settings = ease.Settings(regularization=5, frequency_exponent=0.8, user_exponent=0.4, max_items=200)
        training = some_world(items=300, users=400)
        found = ease.Model.fit(training, settings)

        assert_allclose(found.between, reference_ease(training, settings, found.items), atol=1e-4)

    def test_a_hopeless_regularization_is_named(self) -> None:
        """Where lambda is too small for float32 the error names the setting to change."""
        training = training_of([[0, 1]] * 50, 2)
        settings = ease.Settings(regularization=1e-7, frequency_exponent=0)

        with pytest.raises(InputError, match=r"larger ease\.regularization"):
            ease.Model.fit(training, settings)

    def test_loaded_weights_are_mapped(self, tmp_path: Path) -> None:
        """Workers of a node share B: it is a memory map, not a copy."""
        ease.Model.fit(some_world(), ease.Settings()).save(tmp_path)

        assert isinstance(ease.Model.load(tmp_path).between, np.memmap)


class TestSpectral:
    """Truncated SVD."""

    @pytest.mark.parametrize("value_exponent", [0.0, 1.0, 2.0])
    @pytest.mark.parametrize("item_exponent", [0.0, 0.5])
    def test_it_is_the_truncated_svd(self, value_exponent: float, item_exponent: float) -> None:
        """Scores equal those of numpy's SVD in float64 to 1e-3, as PureSVD, as filters, and between."""
        training = some_world(users=80)
        settings = spectral.Settings(
            factors=5,
            iterations=30,
            user_exponent=0.5,
            item_exponent=item_exponent,
            value_exponent=value_exponent,
            weight_exponent=1,
        )
        model = spectral.Model.fit(training, settings)
        x = training.weights.toarray().astype(np.float64)
        n, lengths = (x > 0).sum(axis=0), (x > 0).sum(axis=1)
        _, s, vt = np.linalg.svd(x / lengths[:, None] ** 0.5 / n**item_exponent)
        kept = (vt[:5].T * (s[:5] / s[0]) ** value_exponent) @ vt[:5]
        expected = (x / n**item_exponent) @ kept * n**item_exponent
        found = model.fold_in(training.weights) @ model.item_factors.T

        assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())

    def test_what_has_no_rank_adds_no_factors(self) -> None:
        """Two kinds of users are two directions, however many factors are asked for: the others would be accidents."""
        training = training_of([[0, 1]] * 5 + [[2, 3]] * 4, 4)

        assert spectral.Model.fit(training, spectral.Settings(factors=4)).item_factors.shape == (4, 2)

    def test_threads_change_no_bit(self) -> None:
        """Factors are the same whatever the number of threads that BLAS was given."""
        training, factors = some_world(users=900, items=400), []
        for threads in (1, 2, 4):
            with threadpool_limits(threads, "blas"):
                factors.append(spectral.Model.fit(training, spectral.Settings(factors=50)).item_factors)

        assert_array_equal(factors[0], factors[1])
        assert_array_equal(factors[0], factors[2])

    def test_loaded_factors_are_mapped(self, tmp_path: Path) -> None:
        """Workers of a node share the factors: they are a memory map, not a copy."""
        spectral.Model.fit(some_world(), spectral.Settings(factors=3)).save(tmp_path)

        assert isinstance(spectral.Model.load(tmp_path).item_factors, np.memmap)


class TestSegment:
    """Popularity among people like the user."""

    rows = ([0], [0], [1], [1], [1])
    countries = ("GB", "GB", "DE", "DE", None)

    def candidates(self, prior_users: float, *countries: str | None) -> list[list[int]]:
        """Lists of new users from these countries who have seen nothing."""
        training = training_of(self.rows, 2, country=self.countries)
        model = segment.Model.fit(training, segment.Settings(segments=("country",), prior_users=prior_users))
        nobody = matrix([[]] * len(countries), 2)
        users = Users(nobody, nobody, nobody, np.ones(2, bool), {"country": np.array(countries, dtype=object)})
        found = model.candidates(users, 2)
        return [listed(found, row) for row in range(len(countries))]

    def test_each_segment_gets_what_its_users_have(self) -> None:
        """Item 1 is the more popular one, but not in GB; a user from nowhere, or from where nobody was, gets everybody's."""
        assert self.candidates(0.1, "GB", "DE", None, "FR") == [[0, 1], [1, 0], [1, 0], [1, 0]]

    def test_a_small_segment_is_pulled_to_everybody(self) -> None:
        """Two users of GB say little against a prior of 100."""
        assert self.candidates(100, "GB") == [[1, 0]]

    def test_scores_by_hand(self) -> None:
        """(n_cj + m * share_j) / (n_c + m) for GB and item 0: (2 + 2 * 2/5) / (2 + 2), summed over two columns of one value."""
        training = training_of(self.rows, 2, country=self.countries, town=self.countries)
        model = segment.Model.fit(training, segment.Settings(segments=("country", "town"), prior_users=2))
        found = model.candidates(users_of(training, excluded=[[]] * 5), 2)

        assert_allclose(found.scores[0], [2 * 2.8 / 4, 2 * 1.2 / 4], rtol=1e-6)

    def test_its_columns_are_asked_for_once(self) -> None:
        """The dataset is told the columns of all models, each once, in the order of the models."""
        sections = {
            "popular": popular.Settings(segments=("country",)),
            "segment": segment.Settings(segments=("age", "country")),
            "ease": ease.Settings(),
        }

        assert models.columns(("popular", "ease", "segment"), sections) == ("country", "age")
        assert models.columns(("ease",), sections) == ()


class TestFresh:
    """Popularity among new items."""

    def test_scores_by_hand(self) -> None:
        """Item 0 has users 8 and 0 days ago, item 1 one of 1 day ago: with half-lives of 4 and 8 days, 1.5 / 4 and 0.5 ** (3 / 8)."""
        training = training_of([[0], [0, 1]], 3, ages=[8, 0, 1])
        model = fresh.Model.fit(training, fresh.Settings(new_days=4, half_life_days=8))
        found = model.candidates(users_of(training, excluded=[[], []]), 3)

        assert listed(found, 0) == [1, 0]
        assert_allclose(found.scores[0, :2], [0.5 ** (1 / 4 + 1 / 8), 1.5 / 4], rtol=1e-6)

    def test_without_times_it_is_what_is_popular(self) -> None:
        """Where all pairs are equally old, the order is that of all-time popularity."""
        training = some_world()
        training.ages.data[:] = 3.0
        users = users_of(training)
        expected = popular.Model.fit(training, popular.Settings(half_life_days=0)).candidates(users, 20)

        assert_array_equal(expected.items, fresh.Model.fit(training, fresh.Settings()).candidates(users, 20).items)
