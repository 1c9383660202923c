"""How good lists are, by what users did next: recall, NDCG, hit rate and coverage at k."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.dataset import column
from schemas.columns import ITEM_ID, ITEMS, USER_ID

Metrics = dict[str, float | int | None]


def measure(lists: Iterable[pa.Table], test: pa.Table, fallback: list[str], catalogue: int, k: int) -> Metrics:
    """Means over all users of `test`; a user without a list is measured on `fallback`.

    recall@k: hits / |test items of the user|; ndcg@k: binary gains, discount 1 / log2(rank + 1), ideal cut at
    min(k, |test items|) (Jaervelin and Kekaelaeinen, TOIS 2002); hit@k: share of users with a hit; coverage@k: distinct
    items in the measured lists / `catalogue`. All None when nobody is left to measure.

    Args:
        lists: tables with `user_id` and `items` (ids, best first), each user once.
        test: table with `user_id`, `item_id`, each pair once.
        fallback: item ids of the popular list, best first.
        catalogue: items that could be listed.
    """
    names = [f"{name}@{k}" for name in ("recall", "ndcg", "hit", "coverage")]
    if not test.num_rows:
        return dict.fromkeys(names) | {"users": 0, "users_known": 0}
    truth = Truth(test)
    dcg, hits = np.zeros(truth.users), np.zeros(truth.users)
    listed, known = set[str](), np.zeros(truth.users, bool)
    for user, items, rank in [
        *truth.entries_of(lists, k, known),
        truth.entries_for(np.flatnonzero(~known), fallback[:k]),
    ]:
        hit = truth.holds(user, items)
        np.add.at(hits, user[hit], 1)
        np.add.at(dcg, user[hit], 1 / np.log2(rank[hit] + 1))
        listed.update(items.unique().to_pylist())
    ideal = np.cumsum(1 / np.log2(np.arange(1, k + 1) + 1))[np.minimum(truth.sizes, k) - 1]
    found = (hits / truth.sizes).mean(), (dcg / ideal).mean(), (hits > 0).mean(), len(listed) / max(catalogue, 1)
    return dict(zip(names, map(float, found), strict=True)) | {"users": truth.users, "users_known": int(known.sum())}


class Truth:
    """The test pairs, by user number."""

    def __init__(self, test: pa.Table) -> None:
        users = column(test, USER_ID).cast(pa.string()).dictionary_encode()
        items = column(test, ITEM_ID).cast(pa.string()).dictionary_encode()
        self.user_ids, self.item_ids = users.dictionary, items.dictionary
        self.users = len(self.user_ids)
        user, item = (codes.indices.to_numpy(zero_copy_only=False).astype(np.int64) for codes in (users, items))
        self._keys = user * len(self.item_ids) + item
        self.sizes = np.bincount(user, minlength=self.users)

    def holds(self, user: NDArray[np.int64], items: pa.StringArray) -> NDArray[np.bool_]:
        """Per entry, whether it is a test pair."""
        item = pc.fill_null(pc.index_in(items, self.item_ids), -1).to_numpy(zero_copy_only=False)
        return (item >= 0) & np.isin(user * len(self.item_ids) + item, self._keys)

    def entries_of(
        self, lists: Iterable[pa.Table], k: int, known: NDArray[np.bool_]
    ) -> Iterable[tuple[NDArray[np.int64], pa.StringArray, NDArray[np.int64]]]:
        """Flat (user number, item id, rank) of the first k of each test user's list; ticks the user off in `known`."""
        for table in lists:
            user = pc.index_in(column(table, USER_ID).cast(pa.string()), self.user_ids)
            chosen = table.filter(user.is_valid())
            user = user.drop_null().to_numpy(zero_copy_only=False).astype(np.int64)
            known[user] = True
            heads = pc.list_slice(column(chosen, ITEMS), 0, k)
            lengths = pc.list_value_length(heads).to_numpy(zero_copy_only=False).astype(np.int64)
            rank = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1
            yield np.repeat(user, lengths), heads.flatten(), rank

    def entries_for(
        self, users: NDArray[np.int64], items: list[str]
    ) -> tuple[NDArray[np.int64], pa.StringArray, NDArray[np.int64]]:
        """The same list for all these users."""
        repeated = pa.array(items, pa.string()).take(pa.array(np.tile(np.arange(len(items)), users.size)))
        return np.repeat(users, len(items)), repeated, np.tile(np.arange(1, len(items) + 1), users.size)
