"""The conformance suite of candidate models, over every model found; then what is each one's alone."""

import json
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from pydantic import BaseModel
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from jobs import models
from jobs.config import TrainSettings, settings_class
from jobs.models import NONE, Before, CandidateModel, Candidates, ItemList, Training, Users, als, popular, similar
from jobs.models._factors import VectorSettings
from jobs.stages.train import fit as train
from jobs.stages.train import in_order
from schemas.lists import ALL, KINDS
from schemas.settings import Section
from tests.test_lists import write_dataset

SMALL: dict[str, dict[str, Any]] = {
    "als": {"factors": 8, "regularization": 1.0, "iterations": 3},
    "als_spark": {"factors": 8, "regularization": 0.1, "iterations": 2},
    "ease": {"regularization": 2.0},
    "segment": {"segments": ("country",)},
    "spectral": {"factors": 2},
}
"""Settings for worlds of a few dozen items, where a model's defaults are for millions."""

pytestmark = pytest.mark.usefixtures("spark")  # for models that train on it

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Variant:
    """A model under one choice of its settings."""

    name: str
    settings: Section

    def fit(self, training: Training) -> CandidateModel:
        """The trained model, after the models that it builds on."""
        sections = {name: models.module(name).Settings(**SMALL.get(name, {})) for name in models.names()}
        sections[self.name] = self.settings
        fitted: dict[str, CandidateModel] = {}
        for name in in_order([self.name], sections):
            fitted[name] = models.module(name).Model.fit(training, sections[name], fitted)
        return fitted[self.name]


def variants() -> Iterator[Any]:
    """Every model with its defaults, and once more for every other choice that a setting of it offers."""
    for name in models.names():
        cls = models.module(name).Settings
        yield pytest.param(Variant(name, cls(**SMALL.get(name, {}))), id=name)
        for key, field in cls.model_fields.items():
            if getattr(models.module(name), "NEEDS_SPARK", False) and key in VectorSettings.model_fields:
                continue  # how vectors are kept is als's code too, and a fit by Spark takes a second
            choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            for choice in choices:
                if choice != field.default:
                    yield pytest.param(Variant(name, cls(**SMALL.get(name, {}) | {key: choice})), id=f"{name}-{choice}")


every_model = pytest.mark.parametrize("variant", list(variants()))
taste = pytest.mark.parametrize("variant", [v for v in variants() if models.personal(v.values[0].name)])


def matrix(rows: Rows, items: int, values: Any = 1.0) -> csr_matrix:
    """Rows of ascending item numbers as CSR, float32; `values` are one for all, or one an entry."""
    indices = np.array([item for row in rows for item in row], np.int32)
    data = np.broadcast_to(np.asarray(values, np.float32), indices.shape).copy()
    return csr_matrix((data, indices, np.cumsum([0, *map(len, rows)])), shape=(len(rows), items))


def training_of(
    rows: Rows, items: int, weights: Any = 1.0, ages: Any = 0.0, **segments: Sequence[str | None]
) -> Training:
    """Users come in turn from GB, from DE and from nowhere, unless told otherwise."""
    given = segments or {"country": [("GB", "DE", None)[user % 3] for user in range(len(rows))]}
    labels = {name: np.array(values, dtype=object) for name, values in given.items()}
    return Training(matrix(rows, items, weights), matrix(rows, items, ages), labels, seed=7)


def users_of(training: Training, excluded: Rows | None = None, eligible: Sequence[bool] | None = None) -> Users:
    """The users trained on; unless told otherwise they have seen their history, and everything may be shown."""
    size = training.weights.shape[1]
    seen = training.weights.copy() if excluded is None else matrix(excluded, size)
    shown = np.ones(size, bool) if eligible is None else np.array(eligible)
    return Users(training.weights, training.ages, seen, shown, training.segments)


def some_world(users: int = 40, items: int = 30, seed: int = 1) -> Training:
    """Random histories of 3 to 10 items, random weights and ages."""
    rng = np.random.default_rng(seed)
    rows = [
        sorted(rng.choice(items, rng.integers(3, min(11, items + 1)), replace=False).tolist()) for _ in range(users)
    ]
    pairs = sum(map(len, rows))
    return training_of(rows, items, rng.random(pairs) * 5 + 0.01, rng.random(pairs) * 60)


def checkerboard(size: int = 20) -> Training:
    """User u has every item of u's parity but item u, which is what u should be given."""
    return training_of([[i for i in range(size) if i % 2 == u % 2 and i != u] for u in range(size)], size)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Training, Users]:
    """A few users and items, among them users without history, seen and blocked items, items that nobody may be shown."""
    items = draw(st.integers(1, 8))
    some_items = st.sets(st.integers(0, items - 1)).map(sorted)
    rows = draw(st.lists(some_items, min_size=1, max_size=6).filter(any))
    excluded = [sorted({*row, *draw(some_items)}) for row in rows]
    eligible = draw(st.lists(st.booleans(), min_size=items, max_size=items))
    pairs = sum(map(len, rows))
    weights = draw(st.lists(st.sampled_from([1e-30, 0.25, 1.0, 40.0]), min_size=pairs, max_size=pairs))
    ages = draw(st.lists(st.sampled_from([0.0, 0.5, 14.0, 400.0, 9000.0]), min_size=pairs, max_size=pairs))
    country = np.array(
        draw(st.lists(st.sampled_from(["GB", "DE", None]), min_size=len(rows), max_size=len(rows))), dtype=object
    )
    stored = (matrix(rows, items, weights), matrix(rows, items, ages), matrix(excluded, items), np.array(eligible))
    everyone = Users(*stored, {"country": country})
    active = [user for user, row in enumerate(rows) if row]
    return Training(everyone.weights[active], everyone.ages[active], {"country": country[active]}, seed=7), everyone


def listed(found: Candidates, row: int) -> list[int]:
    """A user's items without the padding."""
    items: list[int] = found.items[row][found.items[row] != NONE].tolist()
    return items


def assert_best_first(items: NDArray[np.int32], scores: NDArray[np.float32]) -> None:
    order = list(zip((-scores.astype(np.float64)).tolist(), items.tolist(), strict=True))

    assert sorted(order) == order


def assert_same_lists(expected: Iterator[ItemList], actual: Iterator[ItemList]) -> None:
    left, right = list(expected), list(actual)

    assert [(one.kind, one.key) for one in left] == [(one.kind, one.key) for one in right]
    for one, other in zip(left, right, strict=True):
        assert_array_equal(one.items, other.items)
        assert_array_equal(one.scores, other.scores)


class TestEveryModel:
    """What the protocol promises, of every model under every choice of its settings."""

    @every_model
    @given(world=worlds(), n=st.integers(1, 12))
    @settings(max_examples=50)
    def test_candidates_keep_the_rules(self, variant: Variant, world: tuple[Training, Users], n: int) -> None:
        """Whatever the world, no candidate is excluded, ineligible or there twice, at most n are found, best first."""
        training, users = world
        found = variant.fit(training).candidates(users, n)

        assert (np.int32, np.float32) == (found.items.dtype, found.scores.dtype)
        assert found.items.shape == found.scores.shape
        assert found.items.shape[0] == users.weights.shape[0]
        assert found.items.shape[1] <= n
        for row in range(found.items.shape[0]):
            items = listed(found, row)
            assert len(set(items)) == len(items)
            assert set() == set(items) & set(users.excluded[[row]].indices.tolist())
            assert users.eligible[items].all()
            assert_array_equal(found.items[row, len(items) :], NONE)
            assert_array_equal(found.scores[row, len(items) :], -np.inf)
            assert np.isfinite(found.scores[row, : len(items)]).all()
            assert_best_first(found.items[row, : len(items)], found.scores[row, : len(items)])

    @every_model
    @given(world=worlds(), n=st.integers(1, 4))
    @settings(max_examples=20)
    def test_fewer_candidates_are_the_head_of_more(
        self, variant: Variant, world: tuple[Training, Users], n: int
    ) -> None:
        """n candidates are the first n of all: the selection is exact."""
        training, users = world
        model = variant.fit(training)
        everything = model.candidates(users, users.eligible.size)
        head = model.candidates(users, n)
        width = head.items.shape[1]

        assert_array_equal(everything.items[:, :width], head.items)
        assert_array_equal(everything.scores[:, :width], head.scores)

    @every_model
    def test_all_that_is_left_is_found(self, variant: Variant) -> None:
        """Who has seen all but three of the items that go together gets exactly those three, however many are asked for."""
        rows = [[item for item in range(12) if item != user] for user in range(12)]
        training = training_of(rows, 12)
        left = {1, 5, 9}
        excluded = [[item for item in range(12) if item not in left], *rows[1:]]
        found = variant.fit(training).candidates(users_of(training, excluded), 100)

        assert left == set(listed(found, 0))

    @every_model
    def test_nothing_is_left(self, variant: Variant) -> None:
        """Who has seen everything gets nothing, and so does everybody when no item may be shown."""
        training = some_world()
        users, items = training.weights.shape
        everything = [range(items)] * users
        model = variant.fit(training)
        all_seen = model.candidates(users_of(training, excluded=everything), 10)
        none_eligible = model.candidates(users_of(training, eligible=[False] * items), 10)

        assert [[]] * users == [listed(all_seen, row) for row in range(users)]
        assert [[]] * users == [listed(none_eligible, row) for row in range(users)]

    @every_model
    def test_an_item_that_nobody_had_is_no_candidate(self, variant: Variant) -> None:
        """The model knows nothing of it: whatever its number, it is in no list."""
        training = training_of([[1, 2], [1, 3], [2, 3], [1, 2, 3]], 5)
        model = variant.fit(training)
        found = model.candidates(users_of(training, excluded=[[]] * 4), 5)
        shared = [item for one in model.lists(np.ones(5, bool), 5) for item in one.items.tolist()]

        assert set() == {0, 4} & {*found.items.ravel().tolist(), *shared}

    @every_model
    def test_a_loaded_model_is_the_saved_one(self, variant: Variant, tmp_path: Path) -> None:
        """After save and load, candidates and lists are equal to the last bit."""
        training = some_world()
        users, eligible = users_of(training), np.arange(training.weights.shape[1]) % 5 > 0
        model = variant.fit(training)
        model.save(tmp_path)
        loaded = models.module(variant.name).Model.load(tmp_path)
        expected, actual = model.candidates(users, 7), loaded.candidates(users, 7)

        assert_array_equal(expected.items, actual.items)
        assert_array_equal(expected.scores, actual.scores)
        assert_same_lists(model.lists(eligible, 7), loaded.lists(eligible, 7))

    @every_model
    def test_nothing_saved_is_a_pickle(self, variant: Variant, tmp_path: Path) -> None:
        """Every file is JSON or an array that numpy reads without pickle."""
        variant.fit(some_world()).save(tmp_path)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]

        assert files
        for path in files:
            assert path.suffix in {".npy", ".json"}
            if path.suffix == ".npy":
                np.load(path, allow_pickle=False)
            else:
                json.loads(path.read_text(encoding="utf-8"))

    @every_model
    def test_the_same_seed_gives_the_same_model(self, variant: Variant) -> None:
        """Two fits on the same data give equal candidates and lists, to the last bit."""
        training = some_world()
        users, eligible = users_of(training), np.ones(training.weights.shape[1], bool)
        one, other = variant.fit(training), variant.fit(training)
        expected, actual = one.candidates(users, 10), other.candidates(users, 10)

        assert_array_equal(expected.items, actual.items)
        assert_array_equal(expected.scores, actual.scores)
        assert_same_lists(one.lists(eligible, 10), other.lists(eligible, 10))

    @every_model
    def test_users_of_later_blocks_are_scored_like_those_of_the_first(self, variant: Variant) -> None:
        """Scoring goes by blocks of users: 600 users with one history between them get one list between them."""
        training = some_world()
        model = variant.fit(training)
        alike = np.zeros(600, int)
        users = Users(training.weights[alike], training.ages[alike], training.weights[alike], np.ones(30, bool))
        found = model.candidates(users, 5)

        assert listed(found, 0)
        assert_array_equal(np.tile(found.items[0], (600, 1)), found.items)
        assert_allclose(found.scores, np.tile(found.scores[0], (600, 1)), rtol=1e-5)

    @every_model
    def test_without_a_history_there_is_no_taste(self, variant: Variant) -> None:
        """Who has no history gets nothing from a model of taste, whoever stands beside, and the same as all from popularity."""
        training = training_of([[0, 1], [0, 2], [1, 2], [0, 1, 2]], 4)
        histories = matrix([[], [0], []], 4)
        users = Users(histories, histories, matrix([[], [0], [2]], 4), np.ones(4, bool))
        found = variant.fit(training).candidates(users, 4)
        expected = ([0, 1, 2], [0, 1]) if not models.personal(variant.name) else ([], [])

        assert expected == (listed(found, 0), listed(found, 2))
        assert listed(found, 1)

    @taste
    def test_the_checkerboard_is_solved(self, variant: Variant) -> None:
        """Each user's first candidate is the one item of their parity that they lack."""
        training = checkerboard()
        found = variant.fit(training).candidates(users_of(training), 3)

        assert list(range(20)) == found.items[:, 0].tolist()

    @every_model
    @given(world=worlds(), n=st.integers(1, 12))
    @settings(max_examples=25)
    def test_shared_lists_keep_the_rules(self, variant: Variant, world: tuple[Training, Users], n: int) -> None:
        """Lists that are nobody's own hold eligible items, each once, at most n, best first, and an item never itself."""
        training, users = world
        found = list(variant.fit(training).lists(users.eligible, n))
        names = [(one.kind, one.key) for one in found]

        assert len(set(names)) == len(names)
        for one in found:
            assert one.kind in set(KINDS) - {"user"}
            assert isinstance(one.key, int if one.kind == "similar" else str)
            assert (np.int32, np.float32) == (one.items.dtype, one.scores.dtype)
            assert one.items.size == one.scores.size <= n
            assert len(set(one.items.tolist())) == one.items.size
            assert users.eligible[one.items].all()
            assert one.key not in one.items.tolist()
            assert np.isfinite(one.scores).all()
            assert_best_first(one.items, one.scores)


def documented(cls: type[BaseModel], path: str) -> Iterator[tuple[str, str | None]]:
    """Every field at or below `cls`, with its description."""
    for name, field in cls.model_fields.items():
        yield f"{path}.{name}", field.description
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from documented(inner, f"{path}.{name}")


@pytest.mark.parametrize("section", settings_class().model_fields)
def test_every_setting_is_documented(section: str) -> None:
    """No section is without a title, and no field in it without a description."""
    cls = settings_class().model_fields[section].annotation
    assert isinstance(cls, type)
    assert issubclass(cls, Section)

    assert cls.__doc__
    assert [name for name, description in documented(cls, section) if not description] == []


def test_models_and_stages_share_no_section() -> None:
    """A model is a section by its file's name, so no model may be called like a section of the root."""
    base = set(settings_class().__base__.model_fields)

    assert set() == base & set(models.names())


class TestAls:
    """ALS."""

    settings = als.Settings(factors=8, regularization=0.7, alpha=3.0, iterations=4)

    def fitted(self) -> tuple[als.Model, Training]:
        training = some_world()
        return als.Model.fit(training, self.settings), training

    def closed_form(self, item_factors: NDArray[np.float32], weights: csr_matrix) -> NDArray[np.float64]:
        """x_u = (Y'Y + Y'(C_u - I)Y + lambda I)^-1 Y' C_u p_u (Hu et al., eq. 4), with C = 1 + alpha r, in float64."""
        y = item_factors.astype(np.float64)
        r = weights.toarray().astype(np.float64)
        stored = matrix(np.split(weights.indices, weights.indptr[1:-1]), weights.shape[1]).toarray() > 0
        solved = []
        for preference, confidence in zip(stored, 1 + self.settings.alpha * r, strict=True):
            left = y.T @ (confidence[:, None] * y) + self.settings.regularization * np.eye(y.shape[1])
            solved.append(np.linalg.solve(left, y.T @ (confidence * preference)))
        return np.array(solved)

    def test_fold_in_is_the_closed_form(self) -> None:
        """Folded-in users are the exact minimum with confidence 1 + alpha * r, to 1e-4 of their length."""
        model, training = self.fitted()
        expected = self.closed_form(model.item_factors, training.weights)
        actual = model.fold_in(training.weights)
        errors = np.linalg.norm(actual - expected, axis=1) / np.linalg.norm(expected, axis=1)

        assert errors.max() < 1e-4

    def test_a_user_with_a_million_items_is_folded_in_within_some_megabytes(self) -> None:
        """Their factors are never held together, and the solution is that of all of them: -1 and 1 by turns, each with
        confidence 1 + alpha, cancel out in all but the last one's direction."""
        size = 1_000_001
        factors = np.where(np.arange(size) % 2, 1, -1).astype(np.float32)[:, None] * np.eye(1, 8, dtype=np.float32)
        factors[-1] = np.eye(8, dtype=np.float32)[7]
        model = als.Model(factors, np.ones(size, bool), self.settings)
        assert model._gram[0, 0] == size - 1
        weights = csr_matrix((np.ones(size, np.float32), np.arange(size), [0, size]), shape=(1, size))
        tracemalloc.start()
        folded = model.fold_in(weights)[0]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        taste = (1 + self.settings.alpha) / (1 + self.settings.alpha + self.settings.regularization)
        assert_allclose(folded, np.r_[np.zeros(7), taste], atol=1e-6)
        assert peak < 40 * 2**20

    def test_candidates_are_the_best_of_the_closed_form(self) -> None:
        """Scores are the products of the folded-in users with the items, and nobody misses a better item."""
        model, training = self.fitted()
        scores = self.closed_form(model.item_factors, training.weights) @ model.item_factors.T.astype(np.float64)
        found = model.candidates(users_of(training), 5)
        scores[training.weights.toarray() > 0] = -np.inf
        expected = -np.sort(-scores, axis=1)[:, :5]

        assert_allclose(found.scores, expected, rtol=1e-3, atol=1e-5)
        assert_allclose(np.take_along_axis(scores, found.items, axis=1), expected, rtol=1e-3, atol=1e-5)

    def test_a_faded_pair_is_still_more_than_no_pair(self) -> None:
        """A weight decayed to 1e-30 is stored with confidence 1 or more, and its user still likes that item best."""
        model, training = self.fitted()
        faded = matrix([[11], []], training.weights.shape[1], 1e-30)
        pairs = als.confidence(faded, self.settings.alpha)
        scores = model.fold_in(faded) @ model.item_factors.T

        assert pairs.data.tolist() == [1.0]
        assert scores[0, 11] > 0
        assert_array_equal(scores[1], 0)

    def test_confidence_is_one_plus_alpha_r(self) -> None:
        """r = 0.5 and r = 4 at alpha = 3 are confidences of 2.5 and 13; what is not stored stays so."""
        pairs = als.confidence(matrix([[0, 2]], 3, [0.5, 4.0]), alpha=3.0)

        assert pairs.toarray().tolist() == [[2.5, 0.0, 13.0]]

    def test_item_factors_do_not_depend_on_threads(self) -> None:
        """The same solver gives the same item factors, to the last bit, with 1, 2, 3 and 7 threads, and so does fit."""
        training = some_world(users=400, items=120)
        factors = []
        for threads in (1, 2, 3, 7):
            with threadpool_limits(1, "blas"):
                solver = als._solver(self.settings, training.seed)
                solver.num_threads = threads
                solver.fit(als.confidence(training.weights, self.settings.alpha), show_progress=False)
            factors.append(solver.item_factors)
        expected = als.Model.fit(training, self.settings).item_factors

        for actual in factors:
            assert_array_equal(expected, actual)

    def objective(self, model: als.Model, weights: csr_matrix) -> float:
        """What is minimized, at the best users for these items (Hu et al., eq. 3)."""
        users, items = model.fold_in(weights).astype(np.float64), model.item_factors.astype(np.float64)
        r = weights.toarray().astype(np.float64)
        errors = (1 + self.settings.alpha * r) * ((r > 0) - users @ items.T) ** 2
        return float(errors.sum() + self.settings.regularization * ((users**2).sum() + (items**2).sum()))

    def test_it_begins_from_last_nights_factors(self, tmp_path: Path) -> None:
        """One sweep from where thirty had come ends below four from nothing, though items have other numbers since; an item
        that last night did not know learns with the others, and where vectors have another length nothing is begun from."""
        training, warm = some_world(), self.settings.model_copy(update={"warm_iterations": 1})
        moved = np.roll(np.arange(training.items, dtype=np.int32), 3)
        numbers = np.where(moved == 0, np.int32(NONE), moved)
        last = Training(training.weights[:, np.argsort(moved)], training.ages[:, np.argsort(moved)], {}, seed=7)
        (tmp_path / "als").mkdir()
        als.Model.fit(last, self.settings.model_copy(update={"iterations": 30})).save(tmp_path / "als")
        tonight = replace(training, before=Before(tmp_path, numbers))

        begun, cold = als.Model.fit(tonight, warm), als.Model.fit(training, self.settings)
        other = als.Model.fit(tonight, warm.model_copy(update={"factors": 7}))
        alone = als.Model.fit(training, warm.model_copy(update={"factors": 7}))

        known = int(cold.known[moved != 0].sum())
        assert self.objective(begun, training.weights) < self.objective(cold, training.weights)
        assert begun.item_factors[moved == 0].any()
        assert (begun.notes["begun_from"], other.notes["begun_from"], cold.notes) == (known, 0, {})
        assert_array_equal(other.item_factors, alone.item_factors)

    def test_the_seed_is_used(self) -> None:
        """Another seed gives other factors."""
        training = some_world()
        other = Training(training.weights, training.ages, {}, seed=8)
        factors = [als.Model.fit(world, self.settings).item_factors for world in (training, other)]

        assert not np.array_equal(*factors)

    @pytest.mark.parametrize("exponent", [1.0, 0.5, -1.0])
    def test_other_frequency_exponents_are_refused(self, exponent: float) -> None:
        """implicit scales lambda by nothing: it is told so, rather than quietly trained otherwise."""
        with pytest.raises(ValueError, match=r"als\.frequency_exponent"):
            als.Settings(frequency_exponent=exponent)

    def test_loaded_factors_are_mapped(self, tmp_path: Path) -> None:
        """Workers of a node share the factors: they are a memory map, not a copy."""
        model, _ = self.fitted()
        model.save(tmp_path)
        loaded = als.Model.load(tmp_path)

        assert isinstance(loaded.item_factors, np.memmap)


class TestPopular:
    """Popularity."""

    world = training_of([[0, 1], [0, 1, 2], [2, 3]], 5, ages=[0, 0, 2, 0, 4, 0, 2])

    def test_decayed_by_hand(self) -> None:
        """At a half-life of 2 days: item 0 is 1 + 1/2, item 1 is 1 + 1, item 2 is 1/4 + 1, item 3 is 1/2."""
        model = popular.Model.fit(self.world, popular.Settings(half_life_days=2))
        (everybody,) = model.lists(np.ones(5, bool), 10)

        assert (everybody.kind, everybody.key) == ("popular", ALL)
        assert everybody.items.tolist() == [1, 0, 2, 3]
        assert everybody.scores.tolist() == [2.0, 1.5, 1.25, 0.5]

    def test_all_time_by_hand(self) -> None:
        """Without a half-life each user counts 1, and the three items with two users come in the order of their numbers."""
        model = popular.Model.fit(self.world, popular.Settings(half_life_days=0))
        (everybody,) = model.lists(np.ones(5, bool), 10)

        assert everybody.items.tolist() == [0, 1, 2, 3]
        assert everybody.scores.tolist() == [2.0, 2.0, 2.0, 1.0]

    def test_a_user_counts_once_however_often_they_watched(self) -> None:
        """Weights don't enter: one fan with a weight of 1,000 is one user."""
        training = training_of([[0], [1], [1]], 2, weights=[1000, 1, 1])
        (everybody,) = popular.Model.fit(training, popular.Settings()).lists(np.ones(2, bool), 2)

        assert everybody.items.tolist() == [1, 0]

    def test_an_old_item_is_not_forgotten(self) -> None:
        """However long ago its users were, an item that somebody had comes after the others, and not never."""
        training = training_of([[0, 1, 2]], 4, ages=[9000, 0, 40_000])
        (everybody,) = popular.Model.fit(training, popular.Settings(half_life_days=2)).lists(np.ones(4, bool), 10)

        assert everybody.items.tolist() == [1, 0, 2]

    def test_segments_have_lists_of_their_own(self) -> None:
        """A value with min_users users has a list of what they had; a smaller one, and no value at all, have none."""
        rows = [[0], [0, 1], [1, 2], [2], [2], [3]]
        countries = ["GB", "GB", "DE", "DE", None, "FR"]
        training = training_of(rows, 4, country=countries)
        model = popular.Model.fit(training, popular.Settings(segments=("country",), min_users=2))
        found = {one.key: one.items.tolist() for one in model.lists(np.ones(4, bool), 10)}

        assert found == {ALL: [2, 0, 1, 3], "country=DE": [2, 1], "country=GB": [0, 1]}

    def test_a_long_seen_list_does_not_shorten_the_list(self) -> None:
        """One user has seen the 20 most popular items; they and everybody else still get 5."""
        rows = [list(range(user % 25 + 1)) for user in range(50)]
        training = training_of(rows, 25)
        seen: list[list[int]] = [list(range(20)), *([[]] * 49)]
        found = popular.Model.fit(training, popular.Settings()).candidates(users_of(training, seen), 5)

        assert listed(found, 0) == [20, 21, 22, 23, 24]
        assert listed(found, 1) == [0, 1, 2, 3, 4]


def dense_similarities(training: Training, settings: similar.Settings) -> NDArray[np.float64]:
    """The formula that the module's docstring gives, in float64, by loops over users and pairs of their items."""
    items = training.ages.shape[1]
    common = np.zeros((items, items))
    for user in range(training.ages.shape[0]):
        row = training.ages[[user]]
        recent = sorted(zip(row.data.tolist(), row.indices.tolist(), strict=True))[: settings.max_history]
        half_life = settings.half_life_days
        shared = len(recent) ** settings.user_exponent
        b = {item: np.sqrt((0.5 ** (age / half_life) if half_life else 1.0) / shared) for age, item in recent}
        for i in b:
            for j in b:
                common[i, j] += b[i] * b[j]
    n = common.diagonal().copy()
    np.fill_diagonal(common, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        close = common / np.outer(n**settings.history_exponent, n**settings.popularity_exponent)
        return np.where(common > 0, (close * common / (common + settings.shrinkage)) ** settings.exponent, 0.0)


class TestSimilar:
    """Item-to-item."""

    def test_cooccurrence_by_hand(self) -> None:
        """Three users with {0, 1}, {0, 1, 2} and {2, 3}: e.g. c(0, 1) = 1/2 + 1/3 = n(0) = n(1), so s(0, 1) = c / (c + 1)."""
        training = training_of([[0, 1], [0, 1, 2], [2, 3]], 4)
        model = similar.Model.fit(training, similar.Settings(shrinkage=1, half_life_days=0))
        close, loose, rare = 5 / 11, (1 / 3) / (5 / 6) * (1 / 4), (1 / 2) / np.sqrt(5 / 6 * 1 / 2) * (1 / 3)
        expected = [[0, close, loose, 0], [close, 0, loose, 0], [loose, loose, 0, rare], [0, 0, rare, 0]]

        assert_allclose(model.similarities.toarray(), expected, rtol=1e-6)

    @pytest.mark.parametrize("half_life", [0.0, 14.0])
    @pytest.mark.parametrize("max_history", [4, 500])
    @pytest.mark.parametrize("shrinkage", [0.0, 2.0])
    def test_cooccurrence_is_the_documented_formula(self, half_life: float, max_history: int, shrinkage: float) -> None:
        """It equals the formula written as loops, with and without decay, shrinkage and a cut history."""
        training = some_world(users=60, items=300)  # more items than one block holds
        chosen = similar.Settings(
            half_life_days=half_life, max_history=max_history, shrinkage=shrinkage, neighbours=300
        )
        model = similar.Model.fit(training, chosen)

        assert_allclose(model.similarities.toarray(), dense_similarities(training, chosen), rtol=1e-4, atol=1e-7)

    @pytest.mark.parametrize(
        "chosen",
        [
            {"user_exponent": 0.3},
            {"history_exponent": 1.0},
            {"popularity_exponent": 0.1},
            {"exponent": 2.0, "popularity_exponent": 0.9},
        ],
    )
    def test_each_exponent_is_the_one_of_the_formula(self, chosen: dict[str, float]) -> None:
        """Each exponent alone changes similarities as the formula says."""
        training, settings = some_world(users=60), similar.Settings(neighbours=100, shrinkage=2, **chosen)
        plain = similar.Model.fit(training, similar.Settings(neighbours=100, shrinkage=2)).similarities.toarray()
        found = similar.Model.fit(training, settings).similarities.toarray()

        assert_allclose(found, dense_similarities(training, settings), rtol=1e-4, atol=1e-7)
        assert not np.allclose(plain, found, rtol=1e-2)

    def test_a_random_walk_by_hand(self) -> None:
        """x = a = 1, y = beta and no shrinkage are RP3beta: mean over i's users of 1 / length, divided by n_j ** beta.

        n is the diagonal, in which a user counts 1 / length too.
        """
        training = training_of([[0, 1], [0, 1, 2], [2, 3]], 4)
        walk = similar.Settings(shrinkage=0, half_life_days=0, history_exponent=1, popularity_exponent=0.4)
        found = similar.Model.fit(training, walk).similarities

        assert_allclose(found[2, 3], (1 / 2) / (1 / 3 + 1 / 2) / (1 / 2) ** 0.4, rtol=1e-6)
        assert_allclose(found[3, 2], (1 / 2) / (1 / 2) / (1 / 3 + 1 / 2) ** 0.4, rtol=1e-6)

    def test_similarities_of_faded_items_stay_finite(self) -> None:
        """With x = y = 1, items of years ago would be infinitely similar: they are only very."""
        training = training_of([[0, 1], [2, 3]], 4, ages=[0, 0, 1500, 1500])
        extreme = similar.Settings(shrinkage=0, history_exponent=1, popularity_exponent=1, exponent=3)
        model = similar.Model.fit(training, extreme)
        found = model.candidates(users_of(training, excluded=[[], []]), 4)

        assert np.isfinite(model.similarities.data).all()
        assert np.isfinite(found.scores[found.items != NONE]).all()

    def test_the_strongest_neighbours_are_kept(self) -> None:
        """With 3 neighbours a row holds the 3 largest similarities of the item, and none is the item itself."""
        training = some_world(users=60)
        chosen = similar.Settings(neighbours=3)
        found = similar.Model.fit(training, chosen).similarities.toarray()
        best = -np.sort(-dense_similarities(training, chosen), axis=1)[:, :3]

        assert_allclose(-np.sort(-found, axis=1)[:, :3], best, rtol=1e-4)
        assert ((found > 0).sum(axis=1) <= 3).all()
        assert_array_equal(found.diagonal(), 0)

    def test_of_equal_neighbours_the_lower_numbers_are_kept(self) -> None:
        """Six items that everybody has are equally similar: each keeps the two lowest others."""
        training = training_of([list(range(6))] * 3, 6)
        model = similar.Model.fit(training, similar.Settings(neighbours=2))
        found = {one.key: one.items.tolist() for one in model.lists(np.ones(6, bool), 5)}

        assert found == {0: [1, 2], 1: [0, 2], 2: [0, 1], 3: [0, 1], 4: [0, 1], 5: [0, 1]}

    def test_items_of_years_ago_are_still_similar(self) -> None:
        """Two items that were only ever had together, years before the others, are finite neighbours; nothing overflows."""
        training = training_of([[0, 1], [2, 3], [3, 4]], 5, ages=[0, 0, 1200, 1200, 1600, 1600])
        model = similar.Model.fit(training, similar.Settings(shrinkage=0))
        found = model.similarities.toarray()
        candidates = model.candidates(users_of(training, excluded=[[]] * 3), 5)

        assert np.isfinite(found).all()
        assert found.max() <= 1 + 1e-6
        assert found[2, 3] > 0
        assert 3 in listed(candidates, 1)

    def test_a_history_of_50_000_is_cut(self) -> None:
        """A bot with 5,000 items makes as many pairs as a user with max_history; the items kept are its latest ones."""
        ages = np.random.default_rng(3).permutation(5_000).astype(np.float32)
        training = training_of([range(5_000), [0, 1]], 5_000, ages=np.r_[ages, 0, 0])
        cut = similar.latest(training.ages, 100, 7)
        model = similar.Model.fit(training, similar.Settings(max_history=100, neighbours=5_000))

        assert np.diff(cut.indptr).tolist() == [100, 2]
        assert_array_equal(np.sort(np.argsort(ages)[:100]), cut.indices[:100])
        assert model.similarities.nnz <= 100 * 99 + 2

    def test_of_equally_old_items_it_is_drawn_who_is_kept(self) -> None:
        """By the seed alone, younger ones first; without times the items of low numbers are not the ones that everybody has."""
        cuts = [similar.latest(matrix([[0, 1, 2, 3], [1, 2]], 4, [5, 1, 5, 5, 0, 9]), 2, seed) for seed in range(20)]
        kept = [sorted(set(cut[[0]].indices.tolist()) - {1}) for cut in cuts]
        alike = similar.latest(matrix([range(900)], 900, np.zeros(900)), 100, 7)

        assert {len(others) for others in kept} == {1}
        assert {others[0] for others in kept} == {0, 2, 3}
        assert all(cut[[1]].indices.tolist() == [1, 2] for cut in cuts)
        assert all(cut.data.tolist() == [1, 5, 0, 9] or cut.data.tolist() == [5, 1, 0, 9] for cut in cuts)
        assert alike.indices.mean() > 300
        assert_array_equal(alike.indices, similar.latest(matrix([range(900)], 900, np.zeros(900)), 100, 7).indices)

    def test_candidates_are_the_decayed_history_times_similarities(self) -> None:
        """score(u, j) = sum over the history of 0.5 ** (age / half-life) * s(i, j), by hand for a user with two items."""
        world = training_of([[0, 1], [0, 1, 2], [2, 3]], 4)
        model = similar.Model.fit(world, similar.Settings(shrinkage=1, half_life_days=0, history_half_life_days=10))
        s = dense_similarities(world, similar.Settings(shrinkage=1, half_life_days=0))
        user = training_of([[0, 2]], 4, ages=[10, 20])
        found = model.candidates(users_of(user), 4)

        assert listed(found, 0) == [1, 3]
        assert_allclose(found.scores[0, :2], [s[0, 1] / 2 + s[2, 1] / 4, s[2, 3] / 4], rtol=1e-5)

    def test_factors_are_cosines_of_als(self) -> None:
        """With method `factors`, s(i, j) is the positive part of the cosine of ALS's item factors."""
        training = some_world()
        trained = als.Model.fit(training, als.Settings(factors=8))
        model = similar.Model.fit(training, similar.Settings(method="factors", neighbours=30), {"als": trained})
        unit = trained.item_factors / np.linalg.norm(trained.item_factors, axis=1, keepdims=True)
        expected = np.maximum(unit @ unit.T, 0)
        np.fill_diagonal(expected, 0)

        assert_allclose(model.similarities.toarray(), expected, rtol=1e-4, atol=1e-5)

    def test_only_factors_need_als(self) -> None:
        """Co-occurrence stands alone; `factors` is trained after als, asked for or not, and als once."""
        alone, built = similar.Settings(), similar.Settings(method="factors")
        sections = {"als": als.Settings(), "popular": popular.Settings(), "similar": built}

        assert models.requires("similar", alone) == ()
        assert models.requires("similar", built) == ("als",)
        assert in_order(["similar"], sections) == ["als", "similar"]
        assert in_order(["popular", "similar", "als"], sections) == ["popular", "als", "similar"]

    def test_the_stage_trains_what_is_required(self, tmp_path: Path) -> None:
        """Training `similar` by factors from a dataset on disk saves als beside it, and both can be loaded."""
        write_dataset(tmp_path / "dataset", [[("a", [0, 1]), ("b", [])], [("c", [1, 2])]], [True] * 3)
        sections = {"als": als.Settings(factors=2), "similar": similar.Settings(method="factors")}
        counts = train(tmp_path / "train", tmp_path / "dataset", ("similar",), sections, (), TrainSettings())

        assert counts == {"rows": 2, "items": 3, "pairs": 4, "models": ["als", "similar"]}
        assert als.Model.load(tmp_path / "train" / "als").item_factors.shape == (3, 2)
        assert similar.Model.load(tmp_path / "train" / "similar").similarities.shape == (3, 3)
