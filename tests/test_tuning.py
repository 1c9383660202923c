"""`nightlist tune` without Spark: the split, the blend against the stage that it stands for, studies that go on, the worker."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.sparse import csr_matrix

from jobs import models
from jobs.candidates import Entries
from jobs.commands.tune import Search
from jobs.config import DatasetSettings, RankSettings, TrainSettings, load_settings
from jobs.models import NONE, Candidates, Training, Users, als
from jobs.progress import Progress
from jobs.search import Between, OneOf
from jobs.stages.rank import fuse
from jobs.tuning.blend import Pool, adds, distances, lean, search, settings_of, shares, study_of
from jobs.tuning.budget import Budget
from jobs.tuning.files import Files
from jobs.tuning.ground import Ground, weighed
from jobs.tuning.plan import Whole, chosen_models, fit_sections, for_good, for_trial, ranges, with_params
from jobs.tuning.split import FEWEST_ITEMS, split
from jobs.tuning.studies import Study, distribution
from jobs.tuning.trials import Models
from jobs.tuning.worker import Failed, Worker
from jobs.units import median_way
from schemas.errors import Busy, ConfigError, InputError
from tests.test_lists import write_dataset

ITEMS = 8
DAY_ONE = datetime(2026, 1, 1, tzinfo=UTC)

pairs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), min_size=1, max_size=80)


def table(rows: list[tuple[int, int]], days: list[float] | None = None) -> pa.Table:
    """Events of text ids, and perhaps their times."""
    columns: dict[str, Any] = {"user_id": [f"u{u}" for u, _ in rows], "item_id": [f"i{i}" for _, i in rows]}
    if days is not None:
        times = [DAY_ONE + timedelta(days=day) for day in days]
        columns["ts"] = pa.array(times, pa.timestamp("us", "UTC"))
    return pa.table(columns)


def as_rows(part: pa.Table) -> list[tuple[Any, ...]]:
    return sorted(tuple(row.values()) for row in part.to_pylist())


class TestSplit:
    """A training file in two."""

    @given(rows=pairs, seed=st.integers(0, 3))
    def test_without_times_a_fifth_of_each_users_items_is_held_out(
        self, rows: list[tuple[int, int]], seed: int
    ) -> None:
        """Of users with five items and more, rounded down; nobody else's; every row is in one part, a pair's rows in the same."""
        sizes = {user: len({item for u, item in rows if u == user}) for user, _ in rows}
        if max(sizes.values()) < FEWEST_ITEMS:
            with pytest.raises(InputError, match="5 items"):
                split(table(rows), seed)
            return
        parts = split(table(rows), seed)
        held = set(as_rows(parts.valid))

        assert sorted(as_rows(parts.train) + as_rows(parts.valid)) == as_rows(table(rows))
        assert not held & set(as_rows(parts.train))
        for user, size in sizes.items():
            expected = size // 5
            assert len({item for u, item in held if u == f"u{user}"}) == expected

    @given(rows=pairs.map(lambda rows: [*rows, *((0, i) for i in range(FEWEST_ITEMS))]), data=st.data())
    def test_the_order_of_rows_does_not_matter(self, rows: list[tuple[int, int]], data: st.DataObject) -> None:
        """Shuffled rows give the same files; another seed holds out something else of the same size."""
        shuffled = data.draw(st.permutations(rows))

        assert split(table(rows), 7)[:2] == split(table(shuffled), 7)[:2]

    def test_another_seed_holds_out_other_items(self) -> None:
        rows = [(u, i) for u in range(6) for i in range(20)]

        assert as_rows(split(table(rows), 1).valid) != as_rows(split(table(rows), 2).valid)

    @given(st.lists(st.floats(0, 40), min_size=30, max_size=60))
    def test_with_times_the_latest_stretch_is_held_out(self, days: list[float]) -> None:
        """Nothing held out is older than what is left to train on, and it is some tenth of the rows, from midnight on."""
        days = [*days, *range(10)]
        rows = [(n % 3, n) for n in range(len(days))]
        parts = split(table(rows, days), 7)

        assert parts.by_time
        assert sorted(as_rows(parts.train) + as_rows(parts.valid)) == as_rows(table(rows, days))
        newest, oldest = max(parts.train["ts"].to_pylist()), min(parts.valid["ts"].to_pylist())
        assert newest < oldest
        assert 0.1 * len(days) - 1 <= parts.valid.num_rows <= 0.5 * len(days)

    def test_times_that_tell_nothing_are_not_gone_by(self) -> None:
        """One time for all, and times of the first nine of a hundred rows, are no order of events."""
        rows = [(0, i) for i in range(100)]
        for times in ([0.0] * 100, [*range(9), *[0.0] * 91]):
            assert not split(table(rows, times), 7).by_time
        assert split(table(rows, [float(n) for n in range(100)]), 7).by_time


def entries_of(found: dict[str, Candidates]) -> Entries:
    """As jobs.stages.retrieve.merge makes them."""
    rows = []
    for code, each in enumerate(found.values()):
        for user, column in zip(*np.nonzero(each.items != NONE), strict=True):
            rows.append((user, code, column + 1, each.items[user, column], each.scores[user, column]))
    rows.sort(key=lambda row: row[:3])
    row, codes, ranks, items, scores = (
        (np.array(each) for each in zip(*rows, strict=True)) if rows else [np.empty(0, int)] * 5
    )
    users = next(iter(found.values())).items.shape[0]
    kinds = np.intp, np.int32, np.float32, np.int32, np.int32
    arrays = (each.astype(kind) for each, kind in zip((row, items, scores, ranks, codes), kinds, strict=True))
    return Entries(users, *arrays, tuple(found))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[str, Candidates], Ground]:
    """Three models' candidates of three users, with scores that all differ, and what was held out."""
    found = {}
    for name in ("als", "popular", "similar"):
        items, scores = np.full((3, 4), NONE, np.int32), np.full((3, 4), -np.inf, np.float32)
        for user in range(3):
            listed = draw(st.lists(st.integers(0, ITEMS - 1), unique=True, max_size=4))
            level = sorted(
                draw(st.lists(st.integers(-50, 50), unique=True, min_size=len(listed), max_size=len(listed)))
            )
            items[user, : len(listed)], scores[user, : len(listed)] = listed, level[::-1]
        found[name] = Candidates(items, scores)
    held = [draw(st.lists(st.integers(0, ITEMS - 1), unique=True, min_size=1, max_size=3)) for _ in range(3)]
    histories = [draw(st.lists(st.integers(0, ITEMS - 1), unique=True, max_size=6)) for _ in range(3)]
    return found, ground(held, histories)


def binary(rows: list[list[int]]) -> csr_matrix:
    dense = np.zeros((len(rows), ITEMS), np.float32)
    for row, items in enumerate(rows):
        dense[row, items] = 1
    return csr_matrix(dense)


def ground(held: list[list[int]], histories: list[list[int]]) -> Ground:
    weights = binary(histories)
    users = Users(weights, weights, weights, np.ones(ITEMS, bool))
    sizes = np.array([len(items) for items in held])
    return Ground(Training(weights, weights, {}, 7), users, users, binary(held), sizes, len(held))


def pool_of(found: dict[str, Candidates], known: Ground, k: int) -> Pool:
    return Pool(found, {name: median_way(each) for name, each in found.items()}, known, k)


def ndcg(listed: list[int], held: list[int], k: int) -> float:
    found = sum(1 / np.log2(place + 2) for place, item in enumerate(listed[:k]) if item in held)
    return float(found / sum(1 / np.log2(place + 2) for place in range(min(k, len(held)))))


class TestBlend:
    """The blend as the search judges it is the blend as the night makes it."""

    @given(
        world=worlds(),
        weights=st.dictionaries(
            st.sampled_from(["als", "popular", "similar"]), st.sampled_from([0.31415926, 0.57721566, 1.0]), min_size=1
        ),
        method=st.sampled_from(["ranks", "scores", "distances"]),
        short_history=st.sampled_from([0.0, 5.0]),
    )
    def test_it_judges_what_the_stage_makes(
        self, world: tuple[dict[str, Candidates], Ground], weights: dict[str, float], method: str, short_history: float
    ) -> None:
        """Each user's NDCG equals that of the list by jobs.stages.rank.fuse over the models that have a weight."""
        found, known = world
        chosen = RankSettings(weights=weights, method=method, smoothing=7.3, short_history=short_history)
        units = {name: median_way(each) for name, each in found.items()}
        entries = entries_of({name: found[name] for name in weights})
        fused = fuse(entries, np.diff(known.users.weights.indptr), chosen, units)
        held = [known.truth[user].indices.tolist() for user in range(3)]
        expected = [ndcg(fused.items[fused.row == user].tolist(), held[user], ITEMS) for user in range(3)]
        actual = pool_of(found, known, ITEMS).gains(chosen)

        assert pytest.approx(expected, abs=1e-6) == actual.tolist()

    def test_shares_go_from_the_last_to_the_first(self) -> None:
        """By hand; a list of one, and one of equal scores, counts 1."""
        items = np.array([[1, 2, 3], [4, NONE, NONE], [5, 6, NONE]], np.int32)
        scores = np.array([[6, 3, 2], [9, -np.inf, -np.inf], [4, 4, -np.inf]], np.float32)

        assert shares(Candidates(items, scores)).tolist() == [[1, 0.25, 0], [1, 0, 0], [1, 1, 0]]
        assert distances(Candidates(items, scores)).tolist() == [[4, 1, 0], [0, 0, 0], [0, 0, 0]]

    def test_who_is_surer_decides_only_by_distances(self) -> None:
        """`als` is sure of its first item for the first user, and of nothing for the second; `similar` is as sure of its for both.
        Its scores are a thousand times as large, and weights of equal say make up for that: also in the settings."""
        items = {"als": [[0, 1, 2]] * 2, "similar": [[3, 4, 5]] * 2}
        scores = {"als": [[5, 1, 0], [1, 0.2, 0]], "similar": [[3000, 1, 0], [3000, 1, 0]]}
        found = {
            name: Candidates(np.array(items[name], np.int32), np.array(scores[name], np.float32)) for name in items
        }
        pool = pool_of(found, ground([[0], [3]], [[7]] * 2), 1)
        alike: dict[str, Any] = {"weight.als": 1.0, "weight.similar": 1.0, "smoothing": 10.0, "short_history": 0.0}
        chosen = {method: settings_of(alike | {"method": method}, RankSettings()) for method in ("scores", "distances")}

        assert {name: median_way(each) for name, each in found.items()} == {"als": 3, "similar": 3000}
        assert chosen["distances"].weights == {"als": 1.0, "similar": 1.0}
        assert {method: pool.gains(each).tolist() for method, each in chosen.items()} == {
            "scores": [1, 0],
            "distances": [1, 1],
        }

    def test_a_model_that_adds_nothing_goes(self) -> None:
        """One that proposes what nobody wanted is dropped, one that finds what the other can't stays."""
        users = 40
        held, histories = [[u % 4, 4 + u % 3] for u in range(users)], [[7]] * users
        good = Candidates(np.array([[u % 4] for u in range(users)], np.int32), np.ones((users, 1), np.float32))
        other = Candidates(np.array([[4 + u % 3] for u in range(users)], np.int32), np.ones((users, 1), np.float32))
        noise = Candidates(np.array([[(u + 1) % 4] for u in range(users)], np.int32), np.ones((users, 1), np.float32))
        pool = pool_of({"als": good, "popular": other, "similar": noise}, ground(held, histories), 2)
        chosen = RankSettings(weights={"als": 1.0, "popular": 0.9, "similar": 0.1}, short_history=0)

        assert set(lean(pool, chosen).weights) == {"als", "popular"}
        assert adds(pool, lean(pool, chosen))["popular"] > 0.2

    def test_a_model_that_adds_next_to_nothing_goes(self) -> None:
        """Who is right about one user of 4,000 goes, about four stays; both gains are certain."""
        users = 4_000
        held, histories = [[u % 4] for u in range(users)], [[7]] * users
        good = Candidates(np.array([[u % 4] for u in range(users)], np.int32), np.ones((users, 1), np.float32))
        for right, kept in (1, {"als"}), (4, {"als", "similar"}):
            good.items[:right] = 5
            other = Candidates(np.full((users, 1), NONE, np.int32), np.zeros((users, 1), np.float32))
            other.items[:right, 0] = np.arange(right) % 4
            pool = pool_of({"als": good, "similar": other}, ground(held, histories), 1)

            found = lean(pool, RankSettings(weights={"als": 0.9, "similar": 1.0}, method="ranks", short_history=0))

            assert set(found.weights) == kept, right

    def test_models_that_stand_in_for_each_other_do_not_all_go(self) -> None:
        """Two that give the same lists: one goes, and the other stays with what only it can find."""
        users = 40
        held, histories = [[u % 4, 4 + u % 3] for u in range(users)], [[7]] * users
        one, other = (
            Candidates(np.array([[item(u)] for u in range(users)], np.int32), np.ones((users, 1), np.float32))
            for item in (lambda u: u % 4, lambda u: 4 + u % 3)
        )
        pool = pool_of({"als": one, "similar": other, "popular": other}, ground(held, histories), 2)
        found = lean(pool, RankSettings(weights={"als": 1.0, "similar": 0.5, "popular": 0.5}, short_history=0))

        assert len(found.weights) == 2
        assert "als" in found.weights
        assert pool.gains(found).mean() == 1.0

    def test_the_search_finds_the_blend_that_is_there(self, tmp_path: Path) -> None:
        """Whoever is right about the first item of odd users, and who about the even ones': together they are, alone neither is.
        It ends with its time, and even without any it looks at each model alone."""
        users = 60
        held, histories = [[u % 2] for u in range(users)], [[7]] * users
        always = {name: np.array([[item, item + 3]] * users, np.int32) for name, item in (("als", 0), ("popular", 1))}
        found = {name: Candidates(items, np.ones(items.shape, np.float32)) for name, items in always.items()}
        pool = pool_of(found, ground(held, histories), 2)
        before = RankSettings(short_history=0)
        for name, go_on in ("long", lambda: True), ("short", lambda: False):
            study = study_of(partial(Study, tmp_path / name, "blend", seed=7), pool, before)
            study.most = 30
            blend = search(pool, study, before, go_on)

            assert set(blend.settings.weights) == {"als", "popular"}
            assert blend.alone == pytest.approx({"als": 0.5, "popular": 0.5})
            assert blend.value > 0.8
            assert min(blend.adds.values()) > 0.3
        assert len(study.finished()) == len(study.first)


class TestGround:
    """What trials are fitted and judged on."""

    @given(
        st.lists(st.lists(st.integers(0, ITEMS - 1), unique=True, max_size=6), min_size=2, max_size=2),
        st.integers(1, 4),
    )
    def test_gains_are_the_ndcg_of_the_metrics(self, lists: list[list[int]], k: int) -> None:
        held = [[0, 1, 2], [3]]
        items = np.full((2, 6), NONE, np.int32)
        for row, listed in enumerate(lists):
            items[row, : len(listed)] = listed
        found = ground(held, [[], []]).gains(items, slice(0, 2), k)

        assert (
            pytest.approx([ndcg(listed, wanted, k) for listed, wanted in zip(lists, held, strict=True)])
            == found.tolist()
        )

    def test_users_and_items_that_training_lacks(self, tmp_path: Path) -> None:
        """A user without a row is not judged; an item without a number can't be found, and counts among those to find."""
        data = write_dataset(tmp_path / "dataset", [[("a", [0, 1]), ("b", [2])]], [True] * 3)
        held = pa.table({"user_id": ["a", "a", "stranger"], "item_id": ["i002", "nowhere", "i001"]})
        pq.write_table(held, tmp_path / "pairs.parquet")
        found = Ground.load(data, tmp_path / "pairs.parquet", 7, TrainSettings())

        assert (found.sizes.tolist(), found.everybody) == ([2], 2)
        assert found.truth.indices.tolist() == [2]

    @given(
        r=st.lists(st.floats(0.001, 1000), min_size=1, max_size=5),
        age=st.floats(0, 20_000),
        scale=st.sampled_from(["linear", "log"]),
        half_life=st.sampled_from([0.0, 7.0, 30.0]),
    )
    def test_weights_are_scaled_and_decayed(self, r: list[float], age: float, scale: str, half_life: float) -> None:
        """By the formula of [dataset], and never down to "not seen"."""
        matrix = csr_matrix(np.array([r], np.float32))
        ages = csr_matrix((np.full(len(r), age, np.float32), matrix.indices, matrix.indptr), matrix.shape)
        found = weighed(matrix, ages, DatasetSettings(scale=scale, half_life_days=half_life)).data
        level = np.log1p(matrix.data.astype(float)) if scale == "log" else matrix.data.astype(float)
        decay = 0.5 ** (age / half_life) if half_life else 1.0

        assert (found > 0).all()
        assert np.allclose(found, np.maximum(level * decay, 1e-30), rtol=1e-3)


RANGES = {"als.factors": CategoricalDistribution((8, 16)), "als.alpha": FloatDistribution(1, 100, log=True)}
OWN = {"als.factors": 8, "als.alpha": 10.0}


def tried(study: Study, times: int) -> list[dict[str, Any]]:
    """Parameters of so many trials, judged by their alpha alone."""
    for _ in range(times):
        trial, params = study.ask()
        study.tell(trial, -abs(params["als.alpha"] - 40))
    return [trial.params for trial in study.finished()]


class TestStudies:
    """Optuna's studies as the search uses them."""

    def test_the_configuration_comes_first_then_what_the_model_proposes(self, tmp_path: Path) -> None:
        first = [OWN, {"als.factors": 16, "als.alpha": 1.0}]
        found = tried(Study(tmp_path / "journal", "als", RANGES, first, 7), 4)

        assert found[:2] == first
        assert len({str(params) for params in found}) == 4

    def test_a_seed_decides_what_is_tried(self, tmp_path: Path) -> None:
        runs = [tried(Study(tmp_path / f"{n}", "als", RANGES, [OWN], seed), 16) for n, seed in enumerate((7, 7, 8))]

        assert runs[0] == runs[1] != runs[2]

    def test_a_search_goes_on_as_it_would_have(self, tmp_path: Path) -> None:
        """Opened anew after every few trials, one of them left running by who was killed, it tries the same."""
        whole = tried(Study(tmp_path / "whole", "als", RANGES, [OWN], 7), 16)
        for _ in range(4):
            found = tried(Study(tmp_path / "parts", "als", RANGES, [OWN], 7), 4)
            Study(tmp_path / "parts", "als", RANGES, [OWN], 7).ask()

        assert whole == found

    def test_few_combinations_are_all_tried_once(self, tmp_path: Path) -> None:
        ranges = {"a": CategoricalDistribution((1, 2, 3)), "b": CategoricalDistribution(("x", "y"))}
        study = Study(tmp_path / "journal", "m", ranges, [{"a": 2, "b": "y"}], 7)
        while not study.done:
            study.tell(study.ask()[0], 0.0)

        assert study.finished()[0].params == {"a": 2, "b": "y"}
        assert {(trial.params["a"], trial.params["b"]) for trial in study.finished()} == {
            (a, b) for a in (1, 2, 3) for b in "xy"
        }
        assert len(study.finished()) == 6

    def test_ranges_hold_the_configurations_value(self) -> None:
        """Also where it lies outside of what the annotation says; whole settings stay whole."""
        assert distribution(Between(1, 100), 500.0) == FloatDistribution(1, 500, log=True)
        assert distribution(Between(1, 100), 20) == IntDistribution(1, 100, log=True)
        assert distribution(Between(0, 1), 0.5) == FloatDistribution(0, 1)
        assert distribution(OneOf((1, 2)), 5) == CategoricalDistribution((1, 2, 5))


class TestPlan:
    """Which models and which settings are searched."""

    def test_every_model_is_found_but_those_that_need_spark(self) -> None:
        """The first of [retrieve] comes first: the dataset's settings are tuned with it. Then what every night trains: a model that gives
        the same lists is left out for it, not the other way round."""
        found = chosen_models(load_settings(None), ())

        assert set(found) == set(models.names()) - {"als_spark"}
        assert found[:2] == ("als", "popular")
        assert chosen_models(load_settings(None), ("popular", "similar")) == ("popular", "similar")

    def test_every_annotated_setting_is_searched(self) -> None:
        """Those of days, and the dataset's, only where the data makes a difference of them."""
        settings, none = load_settings(None), {"times": False, "weights": False}
        assert {"als.factors", "als.alpha", "als.regularization"} <= set(ranges(settings, "als", True, none))
        assert not any(key.startswith("dataset.") for key in ranges(settings, "als", True, none))
        assert "dataset.half_life_days" in ranges(settings, "als", True, none | {"times": True})
        assert "dataset.scale" in ranges(settings, "als", True, none | {"weights": True})
        assert "dataset.scale" not in ranges(settings, "als", False, none | {"weights": True})

    def test_powers_of_a_weight_that_all_pairs_share_are_not_searched(self) -> None:
        """Only where pairs differ in weight, or by their age in r."""
        settings = load_settings(None)
        for about, searched in ((False, False), False), ((True, False), True), ((False, True), True):
            found = ranges(settings, "ease", False, dict(zip(("times", "weights"), about, strict=True)))
            assert ("ease.weight_exponent" in found) == searched, about

    def test_a_model_that_says_so_is_tried_on_fewer_items(self) -> None:
        """EASE on 10,000 at most; for good on as many as the configuration asks for."""
        settings = load_settings(None)

        assert for_trial(settings, "ease").ease.max_items == 10_000
        assert for_trial(with_params(settings, {"ease.max_items": 300}), "ease").ease.max_items == 300
        assert for_trial(settings, "als") == settings
        assert for_good(settings, "als", 50_000, 100, 1) == Whole({}, 1, 1)
        assert for_good(settings, "ease", 2_000, 100, 1) == Whole({}, 1, 1), "a trial has all of them"

    @pytest.mark.parametrize(
        ("allowed", "changed", "times"),
        [(640, {}, 4), (639, {"ease.max_items": 39_979}, 3.9979), (1, {"ease.max_items": 10_000}, 1)],
    )
    def test_for_good_is_what_there_is_time_for(self, allowed: float, changed: dict[str, int], times: float) -> None:
        """A trial of 10,000 items in 10 s: 40,000 take 64 times as long, and not one item is left out where that is allowed."""
        found = for_good(load_settings(None), "ease", 90_000, 10, allowed)

        assert found.changed == changed
        assert (found.fit, found.judge) == pytest.approx((times**3, times))

    def test_values_are_set_by_their_full_name(self) -> None:
        """Numbers are cut to four digits, and go through the section's own checks."""
        found = with_params(load_settings(None), {"als.factors": 256, "als.alpha": 1.23456, "dataset.scale": "linear"})

        assert (found.als.factors, found.als.alpha, found.dataset.scale) == (256, 1.235, "linear")
        assert found.als.regularization == load_settings(None).als.regularization
        with pytest.raises(ValueError, match="greater than 0"):
            with_params(load_settings(None), {"als.alpha": -1.0})

    def test_a_fit_goes_without_the_users_table(self) -> None:
        """A training file has no segments; the file that is written keeps them."""
        settings = load_settings(None, ['popular.segments=["country"]'])

        assert fit_sections(settings, "popular")["popular"]["segments"] == ()
        assert settings.popular.segments == ("country",)

    @pytest.mark.parametrize(("name", "message"), [("svd", "no model 'svd'; known: als"), ("als_spark", "by Spark")])
    def test_models_that_cannot_be_tuned_are_refused(self, name: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            chosen_models(load_settings(None), (name,))


@pytest.fixture
def site(tmp_path: Path) -> tuple[Path, Path]:
    """A dataset of twelve users who like items of their own parity, and one item of each held out."""
    users = [(f"u{u:02d}", [i for i in range(u % 2, 12, 2) if i != u]) for u in range(12)]
    data = write_dataset(tmp_path / "dataset", [users[:6], users[6:]], [True] * 12)
    held = pa.table({"user_id": [user for user, _ in users], "item_id": [f"i{u:03d}" for u in range(12)]})
    pq.write_table(held, tmp_path / "pairs.parquet")
    return data, tmp_path / "pairs.parquet"


@pytest.fixture
def worker(site: tuple[Path, Path]) -> Iterator[Worker]:
    found = Worker(*site, 3, TrainSettings())
    yield found
    found.end()


SMALL = {"als.factors": 8, "als.regularization": 0.1, "dataset.half_life_days": 0.0, "dataset.scale": "linear"}


def fit(name: str = "als", **values: Any) -> dict[str, Any]:
    settings = with_params(load_settings(None), SMALL | values)
    return {"do": "fit", "with": {"name": name, "sections": fit_sections(settings, name)}}


ENDLESS = fit(**{"als.iterations": 100_000_000})


class TestWorker:
    """The process in which models are fitted and judged."""

    def test_it_fits_judges_and_writes_lists(self, site: tuple[Path, Path], worker: Worker, tmp_path: Path) -> None:
        """Part by part what the model gives that is fitted here, and its lists."""
        about = worker.ask({"do": "about", "with": {}}, 60)
        worker.ask(fit(), 60)
        halves = [
            worker.ask({"do": "judge", "with": {"start": a, "stop": b, "k": 1}}, 60) for a, b in ((0, 5), (5, 12))
        ]
        worker.ask({"do": "lists", "with": {"n": 3, "path": str(tmp_path / "lists.npz")}}, 60)
        here = Ground.load(*site, 3, TrainSettings())
        expected = als.Model.fit(here.training, with_params(load_settings(None), SMALL).als).candidates(here.users, 3)
        with np.load(tmp_path / "lists.npz") as found:
            assert found["items"].tolist() == expected.items.tolist()
            assert found["scores"].tolist() == expected.scores.tolist()

        assert (about["users"], about["items"], about["pairs"], about["times"]) == (12, 12, 60, False)
        assert pytest.approx(
            [here.gains(expected.items[rows], rows, 1).sum() for rows in (slice(0, 5), slice(5, 12))]
        ) == [half["sum"] for half in halves]
        assert sum(half["sum"] for half in halves) > 8, "of 12 whose one item comes first"

    def test_an_error_is_an_answer(self, worker: Worker) -> None:
        """It says what went wrong, and answers the next question."""
        with pytest.raises(Failed, match="TypeError"):
            worker.ask({"do": "judge", "with": {}}, 60)
        assert worker.ask({"do": "about", "with": {}}, 60)["users"] == 12

    def test_too_much_memory_is_an_answer_too(self, worker: Worker) -> None:
        """Factors that no machine holds end the trial, not the search."""
        with pytest.raises(Failed, match="memory"):
            worker.ask(fit(**{"als.factors": 2_000_000_000}), 60)
        assert worker.ask(fit(), 60)

    def test_who_takes_too_long_is_ended(self, worker: Worker) -> None:
        """A fit for hours is stopped when its time is over, and the next question starts a new process."""
        start = time.monotonic()
        with pytest.raises(Failed, match="ended after 2 s"):
            worker.ask(ENDLESS, 2)
        assert time.monotonic() - start < 40
        assert worker.ask({"do": "about", "with": {}}, 60)["users"] == 12

    def test_a_package_of_the_same_name_is_not_taken_for_ours(
        self, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Many a folder from which one works has jobs in it."""
        (tmp_path / "jobs").mkdir()
        (tmp_path / "jobs" / "__init__.py").write_text("raise RuntimeError('not ours')")
        monkeypatch.chdir(tmp_path)

        assert worker.ask({"do": "about", "with": {}}, 60)["users"] == 12

    def test_one_that_can_not_begin_says_with_what_it_ended(self, site: tuple[Path, Path]) -> None:
        """Memory is no longer what is blamed for an error of another kind."""
        with pytest.raises(Failed, match="ended with code 1"):
            Worker(site[0] / "nowhere", site[1], 3, TrainSettings()).ask({"do": "about", "with": {}}, 60)

    def test_one_that_was_killed_is_said_to_be_dead(self, worker: Worker) -> None:
        worker.ask({"do": "about", "with": {}}, 60)
        worker._process.kill()
        worker._process.wait()
        with pytest.raises(Failed, match="died"):
            worker.ask({"do": "about", "with": {}}, 60)
        assert worker.ask({"do": "about", "with": {}}, 60)["users"] == 12

    def test_it_ends_with_who_started_it(self, site: tuple[Path, Path]) -> None:
        """Also where that was killed while it worked."""
        program = (
            "import json, sys; from pathlib import Path; from jobs.tuning.worker import Worker; from jobs.config import TrainSettings\n"
            "worker = Worker(Path(sys.argv[1]), Path(sys.argv[2]), 3, TrainSettings()); worker.ask({'do': 'about', 'with': {}}, 60)\n"
            "print(worker._process.pid, flush=True); worker.ask(json.loads(sys.argv[3]), 600)"
        )
        arguments = [*map(str, site), json.dumps(ENDLESS)]
        with subprocess.Popen(
            [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True
        ) as starter:
            child = int(starter.stdout.readline())
            time.sleep(0.5)
            starter.kill()
            starter.wait()
        deadline = time.monotonic() + 30
        while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture
def searching(site: tuple[Path, Path], worker: Worker, tmp_path: Path) -> Callable[..., Models]:
    """A search over the twelve users, with an hour."""

    def begin(
        minutes: float = 60,
        by: Worker = worker,
        reserved: float = 0.0,
        names: tuple[str, ...] = ("als", "popular"),
        weights: bool = False,
    ) -> Models:
        about = {"users": 12, "everybody": 12, "items": 12, "times": False, "weights": weights}
        settings = with_params(load_settings(None), SMALL)
        budget = Budget(tmp_path / "clock.json", minutes)
        journal = tmp_path / f"journal-{weights}"
        return Models(settings, names, by, budget, Progress(), journal, 7, 1, about, lambda _: reserved)

    return begin


class TestTrials:
    """Who is tried next, and what is not."""

    def test_it_ends_when_all_is_tried(self, searching: Callable[..., Models]) -> None:
        """Each model as it is configured before anything else; the best of each is what is found; the clock is on disk."""
        found = searching()
        found.studies["als"].most = 4
        found.search()
        trials = found.studies["als"].finished()
        begun = sorted(
            (each.datetime_start, name) for name, study in found.studies.items() for each in study.finished()
        )

        assert [name for _, name in begun[:2]] == ["als", "popular"]
        assert len(trials) == 4
        assert trials[0].params["als.factors"] == SMALL["als.factors"]
        assert found.best()["als"].value == max(trial.value for trial in trials)
        assert found.found().als.factors == found.best()["als"].params["als.factors"]
        assert list(found.best()) == ["als", "popular"], "better ones first"
        assert json.loads(found.budget.path.read_text())["seconds"] > 0

    @pytest.mark.parametrize(("minutes", "reserved"), [(10, 0), (600, 35_500)])
    def test_what_would_not_end_in_time_is_not_started(
        self, searching: Callable[..., Models], worker: Worker, minutes: float, reserved: float
    ) -> None:
        """After a trial of 200 s none of many times the factors is started with 10 minutes, or 500 s, to go: it may take a fifth
        of the budget, and has to end before what is kept for the blend. After three of those it is enough."""
        found = searching(minutes=minutes, reserved=reserved)
        study = found.studies["als"]
        trial, _ = study.ask()
        trial.set_user_attr("whole", 200.0)
        study.tell(trial, 0.5)
        study.first[1:] = [trial.params | {"als.factors": 512, "als.alpha": float(n)} for n in (1, 2, 3)]
        for _ in range(3):
            found.one("als")

        assert [each.user_attrs.get("why") for each in study.finished()[1:]] == ["would take too long"] * 3
        assert study.done
        assert worker._process is None

    @pytest.mark.parametrize(("weights", "expected"), [(True, "als"), (False, "similar")])
    def test_the_first_model_has_a_share_of_its_own_where_the_dataset_goes_by_it(
        self, searching: Callable[..., Models], weights: bool, expected: str
    ) -> None:
        """After one trial of 100 s and one of 1 s that are as good as each other; without weights and times [dataset] has nothing
        to tune."""
        found = searching(names=("als", "similar"), weights=weights)
        for name, seconds in ("als", 100.0), ("similar", 1.0):
            found.studies[name].tell(found.studies[name].ask()[0], 0.5)
            found.spent[name] = seconds

        assert found._next() == expected

    def test_without_time_nothing_is_begun(self, searching: Callable[..., Models]) -> None:
        found = searching(minutes=1e-6)
        found.search()

        assert [study.finished() for study in found.studies.values()] == [[], []]
        assert found.found() == found.settings

    def test_a_model_that_comes_to_nothing_is_left_out(self, searching: Callable[..., Models], tmp_path: Path) -> None:
        """After three trials without a result, with the reason; a search that goes on knows."""
        found = searching(by=Worker(tmp_path / "nowhere", tmp_path / "nowhere", 3, TrainSettings()))
        for _ in range(3):
            found.one("als")

        assert "ended with code 1" in found.left_out["als"]
        assert "ended with code 1" in searching().left_out["als"]
        assert searching(minutes=600).left_out == {}, "it may have been the time"

    def test_the_lists_of_the_best_trial_are_kept(self, searching: Callable[..., Models], worker: Worker) -> None:
        """So that the blend need not fit it again; those of earlier bests go."""
        found = searching()
        for _ in range(4):
            found.one("als")
        (kept,) = found.journal.parent.glob("lists-als-*.npz")
        best = found.best()["als"]

        assert kept == found.lists_of("als")
        worker.ask({"do": "fit", "with": {"name": "als", "sections": fit_sections(found.found(), "als")}}, 60)
        worker.ask(
            {"do": "lists", "with": {"n": found.settings.retrieve.candidates, "path": str(kept) + ".again.npz"}}, 60
        )
        with np.load(kept) as ours, np.load(str(kept) + ".again.npz") as again:
            assert_array_equal(ours["items"], again["items"])
        assert best.value == max(trial.value for trial in found.studies["als"].finished())

    def test_equal_parameters_are_fitted_once(self, searching: Callable[..., Models], worker: Worker) -> None:
        found = searching()
        found.one("als")
        found.studies["als"].first[1] = found.studies["als"].first[0]
        worker.end()
        found.one("als")

        assert worker._process is None
        assert [trial.value for trial in found.studies["als"].finished()] == [found.best()["als"].value] * 2


class TestSearch:
    """What comes after the trials."""

    @pytest.fixture
    def search(self, tmp_path: Path) -> Search:
        """Of ease, which takes 100 s to fit, and als, which takes 200, with 250 s to go; both are as good as fitted at once."""
        best = {name: SimpleNamespace(value=value) for name, value in (("ease", 0.3), ("als", 0.2))}
        deadlines: list[float] = []

        def asked(what: str, arguments: dict[str, Any], deadline: float) -> None:
            deadlines.append(deadline)
            if what == "lists":
                found = Candidates(np.zeros((1, 1), np.int32), np.zeros((1, 1), np.float32))
                np.savez(arguments["path"], **found._asdict(), unit=1.0)

        models: Any = SimpleNamespace(
            best=lambda: best,
            found=lambda: load_settings(None),
            costs=lambda name: (100.0 if name == "ease" else 200.0, 0.0),
            lists_of=lambda name: tmp_path / f"{name}.npz",
            about={"users": 1, "everybody": 1},
            asked=asked,
            deadlines=deadlines,
        )
        files = Files(tmp_path / "F.toml")
        files.work.mkdir()
        budget = Budget(tmp_path / "clock.json", 250 / 60)
        return Search(files, load_settings(None), ("ease", "als"), 1, 7, budget, Progress(), models)

    def test_a_model_that_there_is_no_time_for_leaves_the_better_ones_theirs(self, search: Search) -> None:
        """The best one has the time that is left beside its own measurement, the next would need more."""
        search.blended()

        assert search.fitted == ("ease",)
        assert search.models.deadlines == [pytest.approx(130, abs=5)] * 2

    def test_the_best_model_gets_what_it_takes(self, search: Search) -> None:
        search.budget.seconds = 60

        assert search.lists("ease", ("ease",)) is not None
        assert search.models.deadlines == [pytest.approx(130, abs=5)] * 2

    def test_what_was_measured_stays_where_going_on_is_stopped(self, search: Search) -> None:
        """By Ctrl-C before there is a blend again; models are not even looked at."""
        search.result.write_text("{}")
        search.stopped()

        assert not search.files.out.exists()


class TestFiles:
    """What stands beside F.toml, and who may go on with it."""

    ARGUMENTS = {"train": "a", "seed": 7}

    def test_the_same_arguments_go_on(self, tmp_path: Path) -> None:
        files = Files(tmp_path / "F.toml")
        with files.claimed(self.ARGUMENTS):
            files.out.write_text("")
        with files.claimed(self.ARGUMENTS):
            pass

    def test_other_arguments_are_refused_by_name(self, tmp_path: Path) -> None:
        files = Files(tmp_path / "F.toml")
        with files.claimed(self.ARGUMENTS):
            pass
        with (
            pytest.raises(ConfigError, match=r"another seed \(7, now 8\).*another --out, or delete"),
            files.claimed(self.ARGUMENTS | {"seed": 8}),
        ):
            pass

    def test_somebody_elses_file_is_not_written_over(self, tmp_path: Path) -> None:
        (tmp_path / "nightlist.toml").write_text("[als]\n")
        with (
            pytest.raises(ConfigError, match="exists already"),
            Files(tmp_path / "nightlist.toml").claimed(self.ARGUMENTS),
        ):
            pass
        with pytest.raises(ConfigError, match=r"ends with \.toml"), Files(tmp_path / "F").claimed(self.ARGUMENTS):
            pass
        (tmp_path / "ml.train.parquet").write_text("what is to be trained on")
        with (
            pytest.raises(ConfigError, match=r"ml\.train\.parquet exists already"),
            Files(tmp_path / "ml.toml").claimed(self.ARGUMENTS),
        ):
            pass

    def test_two_at_once_are_refused(self, tmp_path: Path) -> None:
        files = Files(tmp_path / "F.toml")
        with files.claimed(self.ARGUMENTS), pytest.raises(Busy, match="at work"), files.claimed(self.ARGUMENTS):
            pass

    def test_the_budget_counts_over_starts(self, tmp_path: Path) -> None:
        (tmp_path / "clock.json").write_text(json.dumps({"seconds": 90}))
        budget = Budget(tmp_path / "clock.json", 2)
        assert 25 < budget.left <= 30
        budget.save()
        assert 90 <= json.loads((tmp_path / "clock.json").read_text())["seconds"] < 95
