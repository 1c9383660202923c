"""Vectors of fewer bytes, and approximate search: what they lose is bounded, measured and refused, and no rule of a list is lost."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from jobs import recall
from jobs.buckets import read_bucket, write_bucket
from jobs.config import load_settings
from jobs.dataset import SEGMENT, Dataset
from jobs.models import NONE, als, some
from jobs.models._index import PROPOSED, Index, _blocks
from jobs.models._kept import Scaled, kept
from jobs.models._top import best_of_product
from jobs.run import MANIFEST
from schemas.columns import ITEMS as ITEM_LISTS
from schemas.errors import ConfigError, InputError, Refused
from tests.nights import DAY, Place, event, place
from tests.nights import built as built_lists
from tests.test_lists import write_dataset
from tests.test_models import assert_best_first, listed, some_world, training_of, users_of, worlds

ITEMS = 400
GENEROUS = {
    "Flat": "",
    "SQfp16": "",
    "IVF16,Flat": "nprobe=16",
    "IVF16,SQ8": "nprobe=16",
    "HNSW16": "efSearch=400",
    "HNSW16,SQ8": "efSearch=400",
}
"""Indexes, and searches that leave out next to nothing."""
every_index = pytest.mark.parametrize("index", GENEROUS)

Query = tuple[NDArray[np.float32], NDArray[np.float32], csr_matrix, NDArray[np.bool_]]


def noise(users: int = 60, items: int = ITEMS, seen: int = 20, seed: int = 5) -> Query:
    """Users, items, what each user has seen, and that a fifth of the items is not allowed."""
    rng = np.random.default_rng(seed)
    left, right = (rng.normal(size=(size, 16)).astype(np.float32) for size in (users, items))
    right *= rng.lognormal(0, 0.5, (items, 1)).astype(np.float32)  # trained ones have very different lengths, too
    seen_items = csr_matrix(rng.random((users, items)) < seen / items)
    return left, right, seen_items, rng.random(items) < 0.8


def built(query: Query, index: str, search: str = "") -> Index:
    made = Index.build(query[1], np.ones(len(query[1]), bool), index, search)
    assert made
    return made


def overlap(expected: NDArray[np.int32], actual: NDArray[np.int32]) -> float:
    return float(
        np.mean([np.isin(one[one != NONE], other).mean() for one, other in zip(expected, actual, strict=True)])
    )


class TestKept:
    """float16 and int8."""

    @given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-3, 1.0, 300.0]))
    def test_float16_is_off_by_the_stated_bound(self, seed: int, scale: float) -> None:
        """2 ** -11 of each number, or 2 ** -25."""
        factors = (np.random.default_rng(seed).normal(size=(30, 8)) * scale).astype(np.float32)
        error = np.abs(kept(factors, "float16")[:].astype(np.float64) - factors)

        assert (error <= np.maximum(np.abs(factors) * 2.0**-11, 2.0**-25)).all()

    @given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.0, 3.0, 40.0]))
    def test_int8_is_off_by_the_stated_bound(self, seed: int, spread: float) -> None:
        """1 / 254 of the vector's largest number, whether vectors are all of one length or 40 orders of magnitude apart."""
        rng = np.random.default_rng(seed)
        lengths = np.exp(rng.normal(0, spread, (30, 1))).clip(1e-30, 1e30)
        factors = (rng.normal(size=(30, 8)) * lengths).astype(np.float32)
        error = np.abs(kept(factors, "int8")[:].astype(np.float64) - factors)

        assert (error <= np.abs(factors).max(axis=1, keepdims=True) / 254 * (1 + 1e-4)).all()

    def test_a_vector_of_zeros_stays_one(self) -> None:
        """There is no scale to divide by, and so it is for one whose scale is too small for float32."""
        factors = np.array([[0, 0], [1e-45, -1e-45], [1, -127]], np.float32)

        assert_array_equal(kept(factors, "int8")[:], [[0, 0], [0, 0], [1, -127]])

    @pytest.mark.parametrize("store_as", ["float32", "float16", "int8"])
    def test_what_is_not_finite_is_refused(self, store_as: Any) -> None:
        """int8 would turn NaN into a number."""
        with pytest.raises(InputError, match="not finite"):
            kept(np.array([[1, np.nan]], np.float32), store_as)

    def test_what_float16_can_not_hold_is_refused(self) -> None:
        """70,000 would become infinity; the other choices are named."""
        with pytest.raises(InputError, match="65504: set store_as to float32 or int8"):
            kept(np.array([[70_000]], np.float32), "float16")

    @pytest.mark.parametrize(("store_as", "share"), [("float16", 1 / 2), ("int8", (16 + 4) / 64)])
    def test_files_are_as_small_as_promised(self, store_as: str, share: float, tmp_path: Path) -> None:
        """Half, and a quarter and a scale of 4 bytes a vector."""
        sizes = {}
        for chosen in ("float32", store_as):
            folder = tmp_path / chosen
            folder.mkdir()
            als.Model.fit(some_world(items=500), als.Settings(factors=16, store_as=chosen)).save(folder)
            sizes[chosen] = sum(path.stat().st_size for path in folder.glob("item_*.npy"))

        assert sizes[store_as] == pytest.approx(share * sizes["float32"], abs=300)  # headers of .npy

    @pytest.mark.parametrize("store_as", ["float16", "int8"])
    def test_users_are_folded_in_against_what_is_kept(self, store_as: Any) -> None:
        """The closed form with the kept vectors, to 1e-4, and not with the trained ones."""
        training, plain = some_world(), als.Settings(factors=8, regularization=0.7)
        fine = als.Model.fit(training, plain)
        coarse = als.Model.fit(training, als.Settings(factors=8, regularization=0.7, store_as=store_as))
        by_hand = als.Model(coarse.item_factors[:].astype(np.float32), fine.known, plain).fold_in(training.weights)

        np.testing.assert_allclose(coarse.fold_in(training.weights), by_hand, rtol=1e-4, atol=1e-6)
        assert not np.array_equal(by_hand, fine.fold_in(training.weights))

    def test_the_kernel_scores_int8_by_its_scales(self) -> None:
        """Of two vectors of equal codes the one with the larger scale is first."""
        items = Scaled(np.array([[1, 2], [1, 2], [-1, 2]], np.int8), np.array([0.5, 2, 1], np.float32))
        found = best_of_product(np.ones((1, 2), np.float32), items, csr_matrix((1, 3)), np.ones(3, bool), 3)

        assert found.items.tolist() == [[1, 0, 2]]
        assert found.scores.tolist() == [[6.0, 1.5, 1.0]]


class TestIndex:
    """What an index proposes becomes a list under the same rules."""

    @every_index
    def test_generous_searches_find_what_is_exact(self, index: str) -> None:
        """Recall is 1, items are in the same order, and scores are those of the vectors, not of the index."""
        query = noise()
        found, short = built(query, index, GENEROUS[index]).best(*query, 10)
        exact = best_of_product(*query, 10)

        assert_array_equal(exact.items, found.items)
        np.testing.assert_allclose(exact.scores, found.scores, rtol=1e-5)
        assert not short.any()

    @every_index
    def test_lists_stay_full_however_much_was_seen(self, index: str) -> None:
        """With nine tenths seen, the best ones among them, everybody has ten, or all that is left, and nobody has a seen item."""
        left, right, _, allowed = noise()
        seen = (left @ right.T) >= np.quantile(left @ right.T, 0.1, axis=1, keepdims=True)
        seen[0] = True
        seen[0, np.flatnonzero(allowed)[:3]] = False
        query = left, right, csr_matrix(seen), allowed
        found, short = built(query, index, GENEROUS[index]).best(*query, 10)

        assert_array_equal(best_of_product(*query, 10).items[~short], found.items[~short])
        assert (found.items[0] != NONE).sum() == 3
        assert short.mean() < 0.2

    def test_who_comes_out_short_is_named(self) -> None:
        """One cell of 16 holds no 100 items: its users have fewer, although there are more."""
        query = noise()
        found, short = built(query, "IVF16,Flat", "nprobe=1").best(*query, 100)

        assert_array_equal(short, (found.items != NONE).sum(axis=1) < 100)
        assert short.any()

    def test_equal_scores_are_ordered_by_number(self) -> None:
        """Ten equal items come in the order of their numbers, and so do the two best behind a better one."""
        items = np.ones((10, 2), np.float32)
        items[7] = 2
        query = np.ones((1, 2), np.float32), items, csr_matrix((1, 10)), np.ones(10, bool)
        found, _ = built(query, "Flat").best(*query, 10)

        assert found.items.tolist() == [[7, 0, 1, 2, 3, 4, 5, 6, 8, 9]]

    def test_an_item_excluded_twice_counts_once(self) -> None:
        """Of four items, two of them excluded by three entries, two are left, and nobody is short."""
        excluded = csr_matrix((np.ones(3), np.array([1, 0, 1]), np.array([0, 3])), shape=(1, 4))
        query = np.ones((1, 2), np.float32), np.ones((4, 2), np.float32), excluded, np.ones(4, bool)
        found, short = built(query, "Flat").best(*query, 4)

        assert found.items.tolist() == [[2, 3, NONE, NONE]]
        assert not short[0]

    def test_nan_is_refused(self) -> None:
        """Of a user's factors."""
        query = noise()
        query[0][3, 1] = np.nan

        with pytest.raises(ValueError, match="not finite"):
            built(query, "Flat").best(*query, 5)

    @every_index
    def test_cores_change_nothing(self, index: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """The file of an index is the same to the last byte whether it was built on one core or on four."""
        query, files = noise(items=3_000), []
        for cores in (1, 4, 4):
            monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
            built(query, index, GENEROUS[index]).save(tmp_path)
            files.append((tmp_path / "items.faiss").read_bytes())

        assert files[0] == files[1] == files[2]

    @given(asked=st.lists(st.integers(1, 5_000), max_size=50), most=st.integers(1, 6_000))
    def test_blocks_hold_each_user_once_and_not_too_many_proposals(self, asked: list[int], most: int) -> None:
        """Whatever users ask for, each gets as many (or all there are), and a block is one user or small enough."""
        blocks = list(_blocks(np.array(asked, np.int64), most))

        assert sorted(row for rows, _ in blocks for row in rows.tolist()) == list(range(len(asked)))
        assert all(min(asked[row], most) == k for rows, k in blocks for row in rows.tolist())
        assert all(rows.size == 1 or rows.size * k <= PROPOSED for rows, k in blocks)

    def test_searches_have_one_thread(self) -> None:
        """Spark has a worker a core: whatever FAISS was told before, a search is done by one."""
        query = noise()
        index = built(query, "Flat")
        faiss.omp_set_num_threads(2)
        index.best(*query, 5)

        assert faiss.omp_get_max_threads() == 1


class TestModel:
    """A model with an index."""

    narrow = als.Settings(factors=8, regularization=1.0, iterations=3, index="IVF4,Flat", index_search="nprobe=1")

    @given(
        world=worlds(), n=st.integers(1, 12), index=st.sampled_from(["Flat", "SQ8", "HNSW4", "IVF2,Flat", "IVF99,Flat"])
    )
    @settings(max_examples=60)
    def test_candidates_keep_the_rules(self, world: Any, n: int, index: str) -> None:
        """Whatever the world and the index: nothing excluded, nothing that is not eligible, nothing twice, best first, full lists."""
        training, users = world
        plain = als.Settings(factors=4, iterations=2)
        exact = als.Model.fit(training, plain).candidates(users, n)
        found = als.Model.fit(training, als.Settings(factors=4, iterations=2, index=index)).candidates(users, n)

        for row in range(found.items.shape[0]):
            items = listed(found, row)
            assert len(set(items)) == len(items) == len(listed(exact, row))
            assert set() == set(items) & set(users.excluded[[row]].indices.tolist())
            assert users.eligible[items].all()
            assert_best_first(found.items[row, : len(items)], found.scores[row, : len(items)])

    @pytest.mark.parametrize("store_as", ["float32", "int8"])
    @pytest.mark.parametrize("index", ["IVF4,SQ8", "HNSW8"])
    def test_a_loaded_model_is_the_saved_one(self, index: str, store_as: Any, tmp_path: Path) -> None:
        """Lists are equal to the last bit, the index is there, and how far it looks is kept."""
        training = some_world(users=80, items=200)
        search = "nprobe=2" if "IVF" in index else "efSearch=32"
        chosen = als.Settings(factors=8, store_as=store_as, index=index, index_search=search)
        model = als.Model.fit(training, chosen)
        model.save(tmp_path)
        loaded = als.Model.load(tmp_path)
        expected, actual = model.candidates(users_of(training), 20), loaded.candidates(users_of(training), 20)

        assert loaded.index
        assert_array_equal(expected.items, actual.items)
        assert_array_equal(expected.scores, actual.scores)

    def test_who_comes_out_short_is_searched_exactly(self) -> None:
        """With one cell of four and a list of everything, all lists are full and exact after all, and it is counted."""
        training = some_world(users=80, items=60)
        model = als.Model.fit(training, self.narrow)
        exact = als.Model(model.item_factors, model.known, model.settings)
        users = users_of(training)

        assert_array_equal(exact.candidates(users, 60).items, model.candidates(users, 60).items)
        assert model.recall(users, 60) == {"recall": 1.0, "users": 80, "searched_exactly": 1.0}

    def test_recall_is_the_share_found(self) -> None:
        """By hand, from the lists with the index and without; it is not all with one cell of four."""
        training = some_world(users=200, items=400)
        model = als.Model.fit(training, self.narrow)
        users = users_of(training)
        exact = als.Model(model.item_factors, model.known, model.settings).candidates(users, 10)
        found = model.recall(users, 10)

        assert found["recall"] == pytest.approx(overlap(exact.items, model.candidates(users, 10).items))
        assert 0.1 < found["recall"] < 0.95

    def test_a_generous_search_has_a_recall_of_one(self) -> None:
        """All four cells are looked through."""
        training = some_world(users=100, items=400)
        model = als.Model.fit(training, self.narrow.model_copy(update={"index_search": "nprobe=4"}))

        assert model.recall(users_of(training), 10) == {"recall": 1.0, "users": 100, "searched_exactly": 0.0}

    def test_too_few_items_are_searched_exactly(self, tmp_path: Path) -> None:
        """An index of 1,000 cells over 30 items is not built, which is noted, and survives saving."""
        training = some_world()
        model = als.Model.fit(training, als.Settings(factors=8, index="IVF1000,Flat"))
        model.save(tmp_path)

        assert model.notes == als.Model.load(tmp_path).notes == {"indexed_items": 0}
        assert listed(als.Model.load(tmp_path).candidates(users_of(training), 5), 0)

    def test_without_an_index_faiss_is_not_loaded(self) -> None:
        """A night with exact search needs no FAISS: neither settings nor a fit import it."""
        program = (
            "import sys\n"
            "from tests.test_models import some_world, users_of\n"
            "from jobs.models import als\n"
            "als.Model.fit(some_world(), als.Settings(factors=4)).candidates(users_of(some_world()), 5)\n"
            "assert 'faiss' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1], timeout=120)


class TestSettings:
    """What FAISS can't use is said before a long job starts."""

    @pytest.mark.parametrize(
        ("chosen", "said"),
        [
            (("als.index=IVFx,Flat",), "als.index = 'IVFx,Flat': Value error, could not parse index string IVFx,Flat"),
            (("spectral.index=Flot",), "spectral.index = 'Flot': Value error, could not parse"),
            (("als.factors=30", "als.index=IVF4,PQ8"), "multiple of the number of subquantizers"),
            (("als.index=PQ8",), "IndexPQ can't leave items out here: use Flat, SQ8, HNSW32, IVF4096,SQ8 or the like"),
            (
                ("als.index=HNSW32", "als.index_search=nprobe=4"),
                "als.index_search = 'nprobe=4': Value error, could not set",
            ),
            (("als.index_search=nprobe=4",), "als.index_search = 'nprobe=4': Value error, there is no index to search"),
        ],
        ids=["cells", "spectral", "dimensions", "kind", "parameter", "nothing to search"],
    )
    def test_a_bad_index_is_named(self, chosen: tuple[str, ...], said: str) -> None:
        """With its section, its key, its value, and why."""
        with pytest.raises(ConfigError) as caught:
            load_settings(None, chosen)

        assert said in str(caught.value)


class TestFloor:
    """A recall below the floor is refused."""

    useless = als.Settings(factors=16, regularization=0.1, index="IVF64,Flat", index_search="nprobe=1", min_recall=0.9)

    def test_a_useless_index_is_refused(self, tmp_path: Path) -> None:
        """One cell of 64 over noise: the refusal names model, index, recall, floor and what to change, and ends with 3."""
        data, fitted = self.made(tmp_path)
        measured = recall.measure(data, fitted, 3, seed=7)

        with pytest.raises(Refused) as caught:
            recall.refuse_low(measured, fitted, 3)

        assert caught.value.exit_code == 3
        for said in (
            "als.index = 'IVF64,Flat'",
            f"finds {measured['als']['recall']:.3f} of the 3 best",
            "als.min_recall is 0.9",
            "als.index_search = 'nprobe=1'",
            "leave it empty",
        ):
            assert said in str(caught.value)

    def test_a_floor_that_is_reached_refuses_nothing(self, tmp_path: Path) -> None:
        """The same index under a floor of 0, and exactly at its recall."""
        data, fitted = self.made(tmp_path)
        measured = recall.measure(data, fitted, 3, seed=7)
        for floor in (0.0, measured["als"]["recall"]):
            fitted["als"].settings = self.useless.model_copy(update={"min_recall": floor})
            recall.refuse_low(measured, fitted, 3)

    def test_the_sample_is_seeded_and_has_a_history(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ten of 400 users, the same for a seed and others for another one; who has no history is not among them."""
        data, _ = self.made(tmp_path)
        monkeypatch.setattr(recall, "SAMPLE", 10)
        one, same, other = (recall.sample(data, seed).weights for seed in (1, 1, 2))

        assert one.shape == (10, ITEMS)
        assert (np.diff(one.indptr) > 0).all()
        assert (one != same).nnz == 0
        assert (one != other).nnz > 0

    def test_the_sample_has_its_segments(self, tmp_path: Path) -> None:
        """Each user their own, here the number of their first item: a model of segments would else be judged by everybody's list."""
        data, _ = self.made(tmp_path)
        for bucket in range(data.parts):
            rows = read_bucket(data.folder, bucket)
            firsts = [str(min(items, default="")) for items in rows[ITEM_LISTS].to_pylist()]
            write_bucket(data.folder, "digest", bucket, rows.append_column(f"{SEGMENT}first", pa.array(firsts)), 0.0)
        users = recall.sample(data, 7)

        assert users.segments["first"].tolist() == [str(row.indices.min()) for row in users.weights]
        half = some(users, np.arange(0, users.weights.shape[0], 2))
        assert half.segments["first"].tolist() == [str(row.indices.min()) for row in half.weights]

    def test_exact_models_are_not_measured(self, tmp_path: Path) -> None:
        """They miss nothing."""
        data, _ = self.made(tmp_path)
        exact = als.Model.fit(some_world(), als.Settings(factors=4))

        assert recall.measure(data, {"als": exact}, 3, seed=7) == {}

    def made(self, folder: Path) -> tuple[Dataset, dict[str, Any]]:
        """400 users with random histories, one of them with none, in two buckets; and the model of them."""
        rng = np.random.default_rng(3)
        rows = [sorted(rng.choice(ITEMS, 8, replace=False).tolist()) for _ in range(400)]
        rows[5] = []
        named = [(f"u{number:03d}", row) for number, row in enumerate(rows)]
        write_dataset(folder / "dataset", [named[:200], named[200:]], [True] * ITEMS)
        return Dataset(folder / "dataset"), {"als": als.Model.fit(training_of(rows, ITEMS), self.useless)}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, spark: object) -> Place:
    """40 users with 6 of 80 items each, by chance, and an index of 8 cells, all of which are looked through."""
    rng = np.random.default_rng(3)
    watched = [
        event(f"u{user}", f"i{item}") for user in range(40) for item in rng.choice(80, 6, replace=False).tolist()
    ]
    return place(
        tmp_path_factory.mktemp("ann"),
        watched,
        als={"index": "IVF8,Flat", "index_search": "nprobe=8", "store_as": "int8"},
        retrieve={"candidates": 5},
        rerank={"n": 5},
        holdout={"users": 0},
    )


def test_a_night_with_an_index_says_what_it_misses(site: Place) -> None:
    """Its manifest holds the recall, of how many users, and how large the index is; all lists are full."""
    run = site.run(site.night())
    stages = (run.read(MANIFEST) or {})["stages"]

    assert stages["retrieve"]["recall"] == {"als": {"recall": 1.0, "users": 40, "searched_exactly": 0.0}}
    assert stages["train"]["als_indexed_items"] == stages["dataset"]["items"]
    assert {len(row.items) for (kind, _), row in built_lists(run).items() if kind == "user"} == {5}


def test_a_night_below_its_floor_is_refused(site: Place) -> None:
    """With one cell of eight: before anybody's candidates are looked for, and what was live stays live."""
    live = site.live()
    error, report = site.failing_night(DAY, "als.index_search=nprobe=1", "als.min_recall=0.95")

    assert error.exit_code == 3
    assert "als.min_recall is 0.95" in str(error)
    assert not list((site.run(report).folder / "retrieve").glob("*.parquet"))
    assert site.live() == live
