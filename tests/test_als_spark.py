"""ALS by MLlib: that its settings mean what we say they mean, and that a night with it is a night like any other."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from pyspark.sql import SparkSession
from scipy.sparse import csr_matrix

from jobs.config import RankSettings
from jobs.dataset import Dataset
from jobs.models import ITEM, USER, R, Training, als, als_spark
from jobs.models._factors import FactorModel
from jobs.run import RunFolder
from tests.commands import nightlist, process
from tests.nights import DAY, Place, checkerboard, place
from tests.test_lists import write_dataset
from tests.test_models import some_world, training_of, users_of

pytestmark = pytest.mark.usefixtures("spark")

COMMUNITIES, SIZE, PAIRS, ALPHA, LAMBDA = 4, 12, 9, 4.0, 0.5
"""The regular world: 4 communities of 12 users and 12 items, and PAIRS pairs in every row and every column."""
USERS = COMMUNITIES * SIZE


def regular_world() -> Training:
    """Each user has 9 of the 12 items of their community, each item 9 of its users, all with different weights.

    Of as many factors as communities one minimum is the best, up to a rotation.
    """
    rows = [
        [SIZE * (user // SIZE) + item for item in range(SIZE) if (item - user) % SIZE not in (0, 3, 7)]
        for user in range(USERS)
    ]
    return training_of(rows, USERS, np.random.default_rng(5).gamma(2.0, 1.0, USERS * PAIRS) + 0.05)


def by_mllib(iterations: int) -> als_spark.Settings:
    return als_spark.Settings(factors=COMMUNITIES, regularization=LAMBDA, alpha=ALPHA, iterations=iterations)


def by_implicit(regularization: float, iterations: int = 10) -> als.Settings:
    return als.Settings(factors=COMMUNITIES, regularization=regularization, alpha=ALPHA, iterations=iterations)


def distance(actual: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """The largest relative error of a row."""
    return float((np.linalg.norm(actual - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


def predicted(model: FactorModel, weights: csr_matrix) -> NDArray[np.float32]:
    """Users x items."""
    return model.fold_in(weights) @ model.item_factors.T


class TestTranslation:
    """lambda here, where every row has n pairs, is n * lambda of `als`; alpha and r are the same."""

    def test_the_world_is_regular(self) -> None:
        """Every user and every item has 9 pairs, with weights from .1 to more than 5."""
        weights = regular_world().weights

        assert {PAIRS} == {*np.diff(weights.indptr).tolist(), *np.bincount(weights.indices).tolist()}
        assert weights.data.min() < 0.2
        assert weights.data.max() > 5

    def test_mllib_s_own_users_are_those_that_als_folds_in(self) -> None:
        """MLlib solves users last, against its final items: `als` with n * lambda solves for the same, and without n does not."""
        training = regular_world()
        settings = by_mllib(iterations=3)
        pairs = als_spark.in_blocks(training.pairs(), settings.blocks)
        with als_spark.workspace(pairs.sparkSession, training.scratch):
            trained = als_spark.solver(settings, training.seed).fit(pairs)
            users, items = (
                np.array([row.features for row in side.orderBy("id").collect()], np.float32)
                for side in (trained.userFactors, trained.itemFactors)
            )
        everything = np.ones(USERS, bool)

        def folded(regularization: float) -> NDArray[np.float32]:
            return als.Model(items, everything, by_implicit(regularization)).fold_in(training.weights)

        assert distance(folded(PAIRS * LAMBDA), users) < 1e-4
        assert distance(als_spark.Model(items, everything, settings).fold_in(training.weights), users) < 1e-4
        assert distance(folded(LAMBDA), users) > 0.05
        assert distance(folded(PAIRS**2 * LAMBDA), users) > 0.05

    def test_both_come_to_the_same_scores_and_lists(self) -> None:
        """Trained until they stand still, both predict the same to .5 % and give the same lists; without n they do not."""
        training = regular_world()
        by_spark = als_spark.Model.fit(training, by_mllib(iterations=20))
        scores = predicted(by_spark, training.weights)
        other = {
            regularization: als.Model.fit(training, by_implicit(regularization, iterations=20))
            for regularization in (LAMBDA, PAIRS * LAMBDA, PAIRS**2 * LAMBDA)
        }
        apart = [distance(predicted(model, training.weights), scores) for model in other.values()]
        users = users_of(training)

        assert apart[1] < 0.005
        assert min(apart[0], apart[2]) > 0.05
        assert_array_equal(other[PAIRS * LAMBDA].candidates(users, 3).items, by_spark.candidates(users, 3).items)

    @pytest.mark.parametrize("exponent", [0.0, 0.5, 2.0])
    def test_other_frequency_exponents_are_refused(self, exponent: float) -> None:
        """MLlib always weighs lambda by the number of pairs: it is told so, rather than quietly trained otherwise."""
        with pytest.raises(ValueError, match=r"als_spark\.frequency_exponent"):
            als_spark.Settings(frequency_exponent=exponent)


class TestFoldIn:
    """Users against fixed items."""

    def test_it_is_the_closed_form_with_n_lambda(self) -> None:
        """x_u = (Y'Y + Y'(C_u - I)Y + lambda n_u I)^-1 Y' C_u p_u for users of 3 to 10 pairs, to 1e-5."""
        training = some_world()
        settings = als_spark.Settings(factors=8, regularization=0.3, alpha=3.0)
        y = np.random.default_rng(2).normal(0, 0.5, (training.items, 8)).astype(np.float32)
        model = als_spark.Model(y, np.ones(training.items, bool), settings)
        solved = []
        for r in training.weights.toarray().astype(np.float64):
            confidence = 1 + settings.alpha * r
            left = y.T.astype(np.float64) @ (confidence[:, None] * y) + 0.3 * (r > 0).sum() * np.eye(8)
            solved.append(np.linalg.solve(left, y.T @ (confidence * (r > 0))))

        assert distance(model.fold_in(training.weights), np.array(solved)) < 1e-5

    @pytest.mark.parametrize("factors", [1, 16, 64])
    def test_it_is_implicit_s_where_lambda_is_not_weighed(self, factors: int) -> None:
        """With v = 0 it equals implicit's recalculate_user on 1 + alpha * r, to 1e-4."""
        training = some_world(users=300, items=200)
        settings = als.Settings(factors=factors, regularization=2.0, alpha=5.0)
        y = np.random.default_rng(2).normal(0, 0.5, (training.items, factors)).astype(np.float32)
        theirs = als._solver(settings, seed=0)
        theirs.item_factors = y
        confidence = als.confidence(training.weights, settings.alpha)
        expected = theirs.recalculate_user(np.arange(300), confidence)

        actual = als.Model(y, np.ones(training.items, bool), settings).fold_in(training.weights)

        assert distance(actual, expected) < 1e-4

    def test_a_user_does_not_depend_on_who_stands_beside(self) -> None:
        """All users at once, and each alone, to the last bit."""
        training = some_world()
        model = als_spark.Model.fit(training, als_spark.Settings(factors=8, iterations=1))
        alone = [model.fold_in(training.weights[[user]])[0] for user in range(training.weights.shape[0])]

        assert_array_equal(np.array(alone), model.fold_in(training.weights))

    def test_broken_factors_are_refused(self) -> None:
        """Factors that are not finite are an error that says what to do."""
        training = some_world()
        y = np.full((training.items, 4), np.nan, np.float32)
        model = als_spark.Model(y, np.ones(training.items, bool), als_spark.Settings(factors=4))

        with pytest.raises(ValueError, match="train again"):
            model.candidates(users_of(training), 3)


class TestTraining:
    """From pairs to item factors."""

    settings = als_spark.Settings(factors=4, regularization=0.1, iterations=2)

    def test_items_without_a_pair_are_zero_and_unknown(self) -> None:
        """Factors are float32, items x factors and finite; what nobody had is 0."""
        model = als_spark.Model.fit(training_of([[1, 2], [1, 4], [2, 4]], 6), self.settings)

        assert model.known.tolist() == [False, True, True, False, True, False]
        assert (model.item_factors.shape, model.item_factors.dtype) == ((6, 4), np.float32)
        assert np.isfinite(model.item_factors).all()
        assert_array_equal(model.item_factors.any(axis=1), model.known)

    def test_the_seed_is_used(self) -> None:
        """Another seed gives other factors."""
        world = some_world()
        other = Training(world.weights, world.ages, {}, seed=8)
        factors = [als_spark.Model.fit(training, self.settings).item_factors for training in (world, other)]

        assert not np.array_equal(*factors)

    def test_more_blocks_than_users(self) -> None:
        """Empty blocks are no error."""
        model = als_spark.Model.fit(training_of([[0, 1], [1, 2]], 3), self.settings.model_copy(update={"blocks": 7}))

        assert model.known.all()

    def test_nothing_is_left_behind(self, spark: SparkSession, tmp_path: Path) -> None:
        """What MLlib cached and checkpointed is gone, and what was cached before stays."""
        mine = spark.range(5).cache()
        mine.count()
        before = set(spark.sparkContext._jsc.getPersistentRDDs())
        world = some_world()
        training = Training(world.weights, world.ages, {}, seed=7, scratch=tmp_path)
        als_spark.Model.fit(training, self.settings.model_copy(update={"iterations": als_spark.CHECKPOINT}))

        assert before == set(spark.sparkContext._jsc.getPersistentRDDs())
        assert [] == list(tmp_path.iterdir())
        assert spark.sparkContext.getCheckpointDir() is None
        mine.unpersist()


class TestFromDisk:
    """Training from a dataset's folder."""

    users = [[("a", [0, 2]), ("b", []), ("c", [1])], [], [("d", [3, 1, 0][::-1]), ("e", [2])]]

    def stored(self, folder: Path) -> Dataset:
        return Dataset(write_dataset(folder / "dataset", self.users, [True] * 4))

    def test_pairs_are_those_of_the_matrix(self, tmp_path: Path) -> None:
        """Whether Spark reads them or they come from the matrix: one number a user with a pair, and the same pairs."""
        training = self.stored(tmp_path).training((), 7)
        in_memory = Training(training.weights, training.ages, {}, 7)
        found = []
        for one in (training, in_memory):
            histories: dict[int, list[tuple[int, float]]] = {}
            for row in one.pairs().collect():
                histories.setdefault(row[USER], []).append((row[ITEM], row[R]))
            found.append(sorted(sorted(history) for history in histories.values()))

        assert found[0] == found[1] == sorted([[(0, 1), (2, 1)], [(1, 1)], [(0, 1), (1, 1), (3, 1)], [(2, 1)]])
        assert training.pairs().schema == in_memory.pairs().schema

    def test_a_user_s_number_does_not_depend_on_how_files_are_split(self, tmp_path: Path, spark: SparkSession) -> None:
        """Read in many splits or in one, each pair has the same user number."""
        rng = np.random.default_rng(1)
        users = [
            [(f"{bucket}-{u:04d}", sorted(rng.choice(50, 5, replace=False).tolist())) for u in range(300)]
            for bucket in range(2)
        ]
        data = Dataset(write_dataset(tmp_path / "dataset", users, [True] * 50))
        found = []
        for size in ("4k", "128m"):
            spark.conf.set("spark.sql.files.maxPartitionBytes", size)
            found.append(sorted(data.training((), 7).pairs().collect()))
        spark.conf.unset("spark.sql.files.maxPartitionBytes")

        assert found[0] == found[1]
        assert len({row[USER] for row in found[0]}) == 600

    def test_users_are_not_read_by_the_driver(self, tmp_path: Path) -> None:
        """Fitting als_spark leaves the matrices unread; touching them reads them once."""
        training = self.stored(tmp_path).training((), 7)
        model = als_spark.Model.fit(training, TestTraining.settings)

        assert "_read" not in vars(training)
        assert model.known.tolist() == [True] * 4
        assert training.weights is training.weights


@dataclass(frozen=True)
class Night:
    """A night that was made, and where."""

    there: Place
    run: RunFolder


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, spark: SparkSession) -> Night:
    """A night of the checkerboard with als_spark alone, on two cores."""
    there = place(
        tmp_path_factory.mktemp("night"),
        checkerboard(),
        retrieve={"models": ["als_spark"]},
        als_spark={"factors": 8, "regularization": 0.02, "iterations": 5},
        holdout={"users": 0},
    )
    return Night(there, there.run(there.night()))


class TestNight:
    """retrieve.models = ["als_spark"]."""

    def test_the_checkerboard_is_served(self, night: Night) -> None:
        """Each user's first item is the one of their parity that they lack, and als_spark proposed it."""
        served = [night.there.served(f"u{user:03d}") for user in range(20)]

        assert [f"i{user:03d}" for user in range(20)] == [one.items[0] for one in served if one]
        assert {"als_spark"} == {source for one in served if one for source in one.sources}

    def test_one_core_makes_the_same(self, night: Night, tmp_path: Path) -> None:
        """In a process of its own, on one core, the item factors and all lists are equal; stderr knows no native library."""
        ended = process(
            *("nightly", "--config", night.there.config, "--date", DAY, "--json"),
            *("--set", f"paths.runs={tmp_path / 'runs'}", "--set", f"store.path={tmp_path / 'store'}"),
            *("--set", "spark.master=local[1]"),
        )
        (other,) = (tmp_path / "runs").iterdir()

        assert ended.code == 0, ended.stderr
        assert "netlib" not in ended.stderr
        for name in ("train/als_spark/item_factors.npy", "train/als_spark/known.npy"):
            assert (night.run.folder / name).read_bytes() == (other / name).read_bytes()
        for path in sorted((night.run.folder / "rerank").glob("bucket-*.parquet")):
            assert pq.read_table(path).equals(pq.read_table(other / "rerank" / path.name))

    def test_it_counts_in_the_blend(self) -> None:
        """als_spark in place of als has als's weight in the default blend."""
        weights = RankSettings().weights

        assert weights["als_spark"] == weights["als"] > 0

    def test_evaluate_knows_it(self, night: Night) -> None:
        """`nightlist evaluate --model als_spark` prints its metrics."""
        events = night.there.folder / "events.parquet"
        ended = nightlist(
            *("evaluate", "--train", events, "--test", events, "--model", "als_spark", "--json"),
            *("--set", "als_spark.factors=4", "--set", "als_spark.iterations=1"),
        )

        assert ended.code == 0, ended.stderr
        assert ended.json["model"] == "als_spark"
