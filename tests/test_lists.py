"""From candidates to lists: merging models, blending their ranks, and what never passes the last stage."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy.sparse import csr_matrix

from jobs.buckets import read_bucket, write_bucket
from jobs.candidates import Entries, rank_within
from jobs.config import RankSettings
from jobs.dataset import ITEMS_FILE, Dataset, users_schema
from jobs.models import NONE, Training, Users, popular, similar
from jobs.stages.rank import bucket_ranked, fuse
from jobs.stages.rerank import allowed, bucket_lists, shorten
from jobs.stages.retrieve import bucket_candidates, merge
from schemas.columns import ITEM_ID, ITEMS, RANKS, SCORES, SOURCES, USER_ID

MODELS = ("als", "popular", "similar")
ITEM_COUNT = 8

Flat = list[list[tuple[int, float, str, int]]]
"""Per user, entries of (item, score, source, rank)."""


def write_dataset(folder: Path, buckets: Sequence[Sequence[Any]], eligible: Sequence[bool]) -> Path:
    """What stage 2 writes: users are (user_id, items, seen, blocked), without the last two as if they had seen their items."""
    folder.mkdir(parents=True)
    ids = [f"i{number:03d}" for number in range(len(eligible))]
    pq.write_table(pa.table({"item": range(len(ids)), ITEM_ID: ids, "eligible": eligible}), folder / ITEMS_FILE)
    for number, users in enumerate(buckets):
        rows = [(user, items, *(rest or (items, []))) for user, items, *rest in users]
        named = [
            {
                USER_ID: user,
                ITEMS: items,
                "weights": [1.0] * len(items),
                "ages": [0.0] * len(items),
                "seen": seen,
                "blocked": blocked,
            }
            for user, items, seen, blocked in rows
        ]
        write_bucket(folder, "digest", number, pa.Table.from_pylist(named, schema=users_schema(())), 0.0)
    return folder


def write_lists(folder: Path, bucket: int, lists: Mapping[str, Sequence[int]], source: str = "als") -> Path:
    """What stages 4 to 6 write, in falling scores."""
    folder.mkdir(parents=True, exist_ok=True)
    scored = [
        [(item, 1 / (place + 1), source, place + 1) for place, item in enumerate(items)] for items in lists.values()
    ]
    write_bucket(folder, "digest", bucket, entries_of(scored, (source,)).table(pa.array(list(lists))), 0.0)
    return folder


def entries_of(users: Flat, names: tuple[str, ...]) -> Entries:
    """Flat entries of (item, score, source, rank) lists."""
    flat = [(row, *entry) for row, entries in enumerate(users) for entry in entries]
    columns = list(zip(*flat, strict=True)) if flat else [()] * 5
    sources = [names.index(name) for name in columns[3]]
    row, items, scores, codes, ranks = (
        np.array(values, kind)
        for values, kind in zip(
            (columns[0], columns[1], columns[2], sources, columns[4]),
            (np.intp, np.int32, np.float32, np.int32, np.int32),
            strict=True,
        )
    )
    return Entries(len(users), row, items, scores, ranks, codes, names)


def flat_of(entries: Entries) -> Flat:
    """The inverse of `entries_of`."""
    found: Flat = [[] for _ in range(entries.users)]
    for row, item, score, rank, source in zip(
        entries.row, entries.items, entries.scores, entries.ranks, entries.sources, strict=True
    ):
        found[row].append((int(item), float(score), entries.names[source], int(rank)))
    return found


def matrix(rows: Sequence[Sequence[int]], items: int = ITEM_COUNT) -> csr_matrix:
    indices = np.array([item for row in rows for item in row], np.int32)
    offsets = np.cumsum([0, *map(len, rows)])
    return csr_matrix((np.ones(indices.size, np.float32), indices, offsets), shape=(len(rows), items))


def ordered_items(max_size: int = ITEM_COUNT) -> st.SearchStrategy[list[int]]:
    """Some items in some order, each once."""
    return st.lists(st.integers(0, ITEM_COUNT - 1), unique=True, max_size=max_size)


scores = st.floats(-1e6, 1e6, width=32)
entry = st.tuples(st.integers(0, ITEM_COUNT - 1), scores, st.sampled_from(MODELS), st.integers(1, 300))
flat_entries = st.lists(st.lists(entry, max_size=6), max_size=5)
proposals = st.lists(st.fixed_dictionaries({name: ordered_items(5) for name in MODELS}), min_size=1, max_size=4)
"""Per user and model, the items that it proposes, best first."""


def proposed(users: Sequence[Mapping[str, Sequence[int]]], names: tuple[str, ...] = MODELS) -> Entries:
    """What retrieve makes of proposals."""
    return entries_of(
        [
            [(item, 1.0, name, rank) for name in names for rank, item in enumerate(user.get(name, ()), 1)]
            for user in users
        ],
        names,
    )


class TestEntries:
    """One row a user, and the same flat."""

    @given(users=flat_entries)
    def test_a_table_and_back_is_the_same(self, users: Flat) -> None:
        """Users without entries, at the end too, and sources by name survive the way to Parquet's columns and back."""
        user_ids = pa.array([f"u{row}" for row in range(len(users))], pa.string())
        table = entries_of(users, MODELS).table(user_ids)

        assert user_ids.to_pylist() == table[USER_ID].to_pylist()
        assert users == flat_of(Entries.of(table))

    @given(users=flat_entries)
    @settings(max_examples=10)
    def test_a_file_and_back_is_the_same(self, users: Flat) -> None:
        """So does the way through a Parquet file."""
        sink = pa.BufferOutputStream()
        pq.write_table(entries_of(users, MODELS).table(pa.array(map(str, range(len(users))), pa.string())), sink)
        read = pq.read_table(pa.BufferReader(sink.getvalue()))

        assert users == flat_of(Entries.of(read.combine_chunks()))

    def test_the_arrays_of_a_row_are_parallel(self) -> None:
        """items, scores, sources and ranks of a user are as long as each other, and hold the entry at each place."""
        table = entries_of([[(3, 0.5, "als", 1), (1, 0.25, "popular", 2)], []], MODELS).table(pa.array(["a", "b"]))

        assert table.to_pylist() == [
            {USER_ID: "a", ITEMS: [3, 1], SCORES: [0.5, 0.25], SOURCES: ["als", "popular"], RANKS: [1, 2]},
            {USER_ID: "b", ITEMS: [], SCORES: [], SOURCES: [], RANKS: []},
        ]

    @given(lengths=st.lists(st.integers(0, 4), max_size=6))
    def test_ranks_count_from_one_in_each_row(self, lengths: list[int]) -> None:
        """Whatever rows are empty, each row's ranks are 1, 2, 3, ..."""
        row = np.repeat(np.arange(len(lengths)), lengths)
        expected = [rank for length in lengths for rank in range(1, length + 1)]

        assert expected == rank_within(row).tolist()


class TestMerge:
    """Stage 4: several models' candidates in one table."""

    def world(self) -> tuple[Users, dict[str, Any]]:
        rows = [[0, 1], [0, 1, 2], [2, 3], [4]]
        training = Training(matrix(rows), matrix(rows), {}, 7)
        fitted = {
            "similar": similar.Model.fit(training, similar.Settings()),
            "popular": popular.Model.fit(training, popular.Settings()),
        }
        return Users(training.weights, training.ages, training.weights, np.ones(ITEM_COUNT, bool)), fitted

    def test_each_model_keeps_its_own_candidates(self) -> None:
        """By user, then by model in the order asked for, then by rank from 1, with the model's own scores."""
        users, fitted = self.world()
        expected: Flat = [[] for _ in range(4)]
        for name, model in fitted.items():
            found = model.candidates(users, 3)
            for row in range(4):
                for place, item in enumerate(found.items[row].tolist()):
                    if item != NONE:
                        expected[row].append((item, float(found.scores[row, place]), name, place + 1))
        actual = merge(users, fitted, 3)

        assert actual.names == ("similar", "popular")
        assert expected == flat_of(actual)
        assert [item for item, _, name, _ in expected[3] if name == "similar"] == []  # one item: nothing goes with it

    def test_a_bucket_holds_neither_seen_nor_blocked_nor_unavailable_items(self, tmp_path: Path) -> None:
        """From dataset and model on disk: `a` saw 0 without liking it, 1 is blocked for her, 2 is unavailable."""
        users = [("a", [3], [0, 3], [1]), ("b", [0, 1, 2, 3, 4])]
        data = write_dataset(tmp_path / "dataset", [users], [True, True, False, True, True])
        folder = tmp_path / "train" / "popular"
        folder.mkdir(parents=True)
        popular.Model.fit(Dataset(data).training((), 7), popular.Settings()).save(folder)
        found = bucket_candidates(data, tmp_path / "train", ("popular",), 10, 0)

        assert dict(zip(found[USER_ID].to_pylist(), found[ITEMS].to_pylist(), strict=True)) == {"a": [4], "b": []}


def fused(
    users: Sequence[Mapping[str, Sequence[int]]], history: Sequence[int], chosen: RankSettings
) -> list[list[tuple[int, float, str]]]:
    """Weighted reciprocal rank fusion with dicts: per user (item, score, sources), best first."""
    lists = []
    for user, h in zip(users, history, strict=True):
        score: dict[int, float] = {}
        sources: dict[int, list[str]] = {}
        for name in MODELS:
            trust = 1.0 if name == "popular" or not chosen.short_history else h / (h + chosen.short_history)
            for rank, item in enumerate(user[name], 1):
                part = chosen.weights.get(name, 1.0) * trust / (chosen.smoothing + rank)
                score[item] = score.get(item, 0.0) + part
                sources.setdefault(item, []).append(name)
        rows = [(item, float(np.float32(total)), "+".join(sorted(sources[item]))) for item, total in score.items()]
        lists.append(sorted(rows, key=lambda row: (-row[1], row[0])))
    return lists


class TestFuse:
    """Stage 5: one score a user and item."""

    @given(
        users=proposals,
        history=st.lists(st.integers(0, 50), min_size=4, max_size=4),
        weights=st.dictionaries(st.sampled_from(MODELS), st.sampled_from([0.0, 0.5, 0.75, 1.0, 2.0])),
        smoothing=st.sampled_from([0.0, 10.0, 60.0]),
        short_history=st.sampled_from([0.0, 5.0]),
    )
    def test_it_is_weighted_reciprocal_rank_fusion(
        self,
        users: list[dict[str, list[int]]],
        history: list[int],
        weights: dict[str, float],
        smoothing: float,
        short_history: float,
    ) -> None:
        """It equals the formula written with dicts: items, scores, sources joined by `+`, order and ranks."""
        chosen = RankSettings(weights=weights, smoothing=smoothing, short_history=short_history)
        history = history[: len(users)]
        expected = [[(*row, rank) for rank, row in enumerate(rows, 1)] for rows in fused(users, history, chosen)]
        actual = fuse(proposed(users), np.array(history), chosen)

        assert expected == flat_of(actual)

    def test_two_models_agreeing_beat_one_alone(self) -> None:
        """By hand, k = 10: item 5 is 1/12 + 1/11, item 6 is 1/11, item 7 is 1/12; each once, with all its sources."""
        users = [{"als": [6, 5], "similar": [5, 7]}]
        chosen = RankSettings(weights={"als": 1, "similar": 1}, smoothing=10, short_history=0)
        (found,) = flat_of(fuse(proposed(users), np.array([3]), chosen))

        assert [(i, s, r) for i, _, s, r in found] == [(5, "als+similar", 1), (6, "als", 2), (7, "similar", 3)]
        assert pytest.approx([score for _, score, _, _ in found]) == [1 / 12 + 1 / 11, 1 / 11, 1 / 12]

    @pytest.mark.parametrize(
        ("method", "expected"), [("scores", {1: 1, 2: 0.25, 3: 2, 4: 0}), ("distances", {1: 2, 2: 0.5, 3: 2, 4: 0})]
    )
    def test_scores_count_from_the_last_of_their_list(self, method: str, expected: dict[int, float]) -> None:
        """By hand: `als` goes from 6 by 3 to 2, `popular` from .3 to .2 at weight 2; as shares of the way, or as the way in units of 2
        and .1."""
        users: Flat = [
            [(1, 6, "als", 1), (2, 3, "als", 2), (4, 2, "als", 3), (3, 0.3, "popular", 1), (4, 0.2, "popular", 2)]
        ]
        chosen = RankSettings(weights={"als": 1, "popular": 2}, method=method, short_history=0)
        units = {"als": 2.0, "popular": 0.1}
        (found,) = flat_of(fuse(entries_of(users, ("als", "popular")), np.array([3]), chosen, units))

        assert {item: score for item, score, *_ in found} == pytest.approx(expected)

    def test_taste_has_to_show_first(self) -> None:
        """With short_history 5, one item of history leaves popular ahead of als, and twenty put als ahead."""
        users = [{"als": [1], "popular": [2]}] * 2
        chosen = RankSettings(weights={"als": 1.5, "popular": 1}, short_history=5)
        short, long = flat_of(fuse(proposed(users), np.array([1, 20]), chosen))

        assert [item for item, *_ in short] == [2, 1]
        assert [item for item, *_ in long] == [1, 2]

    def test_a_model_without_weight_counts_nothing(self) -> None:
        """What only a model of weight 0 proposes comes last, at a score of 0, and moves nothing else."""
        users = [{"als": [1, 2], "similar": [3, 2]}]
        chosen = RankSettings(weights={"als": 1, "similar": 0}, smoothing=10, short_history=0)
        (found,) = flat_of(fuse(proposed(users), np.array([9]), chosen))

        assert [(item, source) for item, _, source, _ in found] == [(1, "als"), (2, "als+similar"), (3, "similar")]
        assert pytest.approx([score for _, score, _, _ in found]) == [1 / 11, 1 / 12, 0]

    def test_an_equal_score_is_decided_by_the_lower_number(self) -> None:
        """Two models that propose each other's reverse make ties; the lower number comes first."""
        users = [{"als": [4, 2], "popular": [2, 4]}]
        chosen = RankSettings(weights={"als": 1, "popular": 1}, short_history=0)
        (found,) = flat_of(fuse(proposed(users), np.array([1]), chosen))

        assert [item for item, *_ in found] == [2, 4]

    @given(users=proposals)
    def test_the_order_of_models_does_not_matter(self, users: list[dict[str, list[int]]]) -> None:
        """Two models named the other way round give the same lists."""
        history = np.full(len(users), 4)
        one = fuse(proposed(users, ("als", "popular")), history, RankSettings())
        other = fuse(proposed(users, ("popular", "als")), history, RankSettings())

        assert flat_of(one) == flat_of(other)

    def test_one_model_keeps_its_order_and_scores(self, tmp_path: Path) -> None:
        """Without settings to blend by, a bucket's candidates pass as they are."""
        data = write_dataset(tmp_path / "dataset", [[("a", [0]), ("b", [1])]], [True] * 4)
        found = write_lists(tmp_path / "candidates", 0, {"a": [3, 1], "b": []})

        assert read_bucket(found, 0).to_pylist() == bucket_ranked(data, found, None, {}, 0).to_pylist()

    def test_trust_goes_by_the_users_own_history(self, tmp_path: Path) -> None:
        """In a bucket from disk, `a` with 1 item and `b` with 4 get scores of 1/6 and 4/9 of the full weight."""
        data = write_dataset(tmp_path / "dataset", [[("a", [0]), ("b", [0, 1, 2, 3])]], [True] * 6)
        found = write_lists(tmp_path / "candidates", 0, {"a": [5], "b": [5]})
        chosen = RankSettings(weights={"als": 1}, smoothing=0, short_history=5)
        ranked = bucket_ranked(data, found, chosen, {}, 0)

        assert pytest.approx([score for (score,) in ranked[SCORES].to_pylist()]) == [1 / 6, 4 / 9]


rerank_worlds = st.lists(
    st.tuples(ordered_items(), st.sets(st.integers(0, ITEM_COUNT - 1)).map(sorted)), min_size=1, max_size=5
)
"""Per user, the ranked items and the excluded ones."""


class TestRerank:
    """Stage 6: what may be shown."""

    @given(
        world=rerank_worlds,
        eligible=st.lists(st.booleans(), min_size=ITEM_COUNT, max_size=ITEM_COUNT),
        n=st.integers(1, ITEM_COUNT + 2),
    )
    def test_only_what_may_be_shown_passes(
        self, world: list[tuple[list[int], list[int]]], eligible: list[bool], n: int
    ) -> None:
        """Lists are the ranked items in their order, without the excluded and ineligible ones, cut at n, ranked anew."""
        ranked: Flat = [
            [(item, 0.5**place, "als", place + 1) for place, item in enumerate(items)] for items, _ in world
        ]
        excluded = matrix([items for _, items in world])
        users = Users(excluded, excluded, excluded, np.array(eligible))
        expected = [
            [item for item in items if eligible[item] and item not in forbidden][:n] for items, forbidden in world
        ]
        actual = flat_of(shorten(allowed(entries_of(ranked, MODELS), users), n))

        assert expected == [[item for item, *_ in rows] for rows in actual]
        assert [list(range(1, len(items) + 1)) for items in expected] == [
            [rank for *_, rank in rows] for rows in actual
        ]
        assert all(
            (item, score) in {row[:2] for row in ranked[user]}
            for user, rows in enumerate(actual)
            for item, score, *_ in rows
        )

    def test_another_users_seen_item_passes(self) -> None:
        """Exclusion goes by user: item 1 is seen by the first and free for the second."""
        users = Users(matrix([[1], []]), matrix([[1], []]), matrix([[1], []]), np.ones(ITEM_COUNT, bool))
        entries = entries_of([[(1, 1.0, "als", 1)], [(1, 1.0, "als", 1)]], MODELS)

        assert_array_equal([False, True], users.may_get(entries.row, entries.items))

    def test_a_planted_item_is_taken_out_and_the_list_filled(self, tmp_path: Path) -> None:
        """Ranked lists on disk in which a seen, a blocked and an unavailable item come first still become full lists of 2."""
        users = [("a", [0], [0, 1], [2]), ("b", [5])]
        data = write_dataset(tmp_path / "dataset", [users], [True, True, True, False, True, True, True])
        ranked = write_lists(tmp_path / "ranked", 0, {"a": [0, 1, 2, 3, 6, 4, 5], "b": [3, 0]})
        found = bucket_lists(data, ranked, 2, 0).to_pylist()

        assert [(row[USER_ID], row[ITEMS], row[RANKS]) for row in found] == [("a", [6, 4], [1, 2]), ("b", [0], [1])]
