"""Before stage 4: whose list is made anew tonight. The others' are carried from last night's run.

Two nights are compared by ids and by each user's `history`, since item numbers are one night's own. A list is carried
only where nothing that is known without scoring speaks against it; that a newly eligible item would enter is not known.
"""

import shutil
from collections import Counter
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.buckets import Buckets, read_all, read_bucket
from jobs.config import IncrementalSettings
from jobs.dataset import AGES, HISTORY, ITEMS_FILE, Dataset, column, values
from jobs.origin import Origin
from jobs.run import Counts
from schemas.columns import ITEMS, USER_ID

REASON = "reason"
REASONS = ("new", "changed", "active", "turn", "short", "touched")
"""Why a list is made anew; of several reasons the first counts."""


def select(
    out: Path, buckets: Buckets, dataset: Path, origin: Origin, settings: IncrementalSettings, n: int, day: date
) -> Counts:
    """Write the dataset of the users to score, with the reason of each; without an origin nothing, for these are all.

    `n` is the length of a full list. Counts: `scored` and `carried` are the users with a history, `reasons` sum to `scored`.
    """
    everybody = Dataset(dataset).size()["rows"]
    if origin.folder is None:
        return {"rows": everybody, "scored": everybody, "carried": 0, "reasons": {origin.why: everybody}}
    shutil.copy(dataset / ITEMS_FILE, out)
    scored = buckets.each(out, partial(bucket_due, dataset, origin, settings, n, day))
    reasons = Counter(reason for table in read_all(out, [REASON]) for reason in table[REASON].to_pylist())
    return {"rows": scored, "scored": scored, "carried": everybody - scored, "reasons": dict(sorted(reasons.items()))}


def bucket_due(
    dataset: Path, origin: Origin, settings: IncrementalSettings, n: int, day: date, bucket: int
) -> pa.Table:
    """The rows of one bucket's users to score; who has no history gets no list, and is not among them."""
    assert origin.folder
    rows = read_bucket(dataset, bucket)
    rows = rows.filter(pc.greater(pc.list_value_length(rows[ITEMS]), 0)).combine_chunks()
    was = _matched(rows, read_bucket(origin.folder / "dataset", bucket, [USER_ID, HISTORY]), USER_ID)
    had = _matched(rows, read_bucket(origin.folder / "build", bucket, ["key", ITEMS]), "key")
    history, lists = _numbers(rows, HISTORY), column(had, ITEMS)
    holds = [
        _mask(pc.is_null(lists)),
        _mask(pc.not_equal(column(was, HISTORY), column(rows, HISTORY)).fill_null(True)),
        _youngest(rows) < settings.active_days,
        has_turn(history, settings.max_age, day, origin.nights(day)),
        _mask(pc.less(pc.list_value_length(lists), n).fill_null(False)),
        touched(Dataset(dataset), rows, lists),
    ]
    reasons = pa.array(np.select(holds, REASONS, ""), pa.string())
    return rows.append_column(REASON, reasons).filter(pc.not_equal(reasons, ""))


def has_turn(history: NDArray[np.int64], max_age: int, day: date, nights: int) -> NDArray[np.bool_]:
    """Whether it was the user's turn on one of the last `nights` days up to `day`; it is every `max_age` days.

    The turn is drawn from the history: that stays the same while a list is carried, so no list is carried past one.
    """
    return (history % max_age + day.toordinal()) % max_age < nights


def touched(data: Dataset, rows: pa.Table, lists: pa.ListArray) -> NDArray[np.bool_]:
    """Per user whether the list (of ids, null where there is none) holds an item that may not be shown to them tonight.

    An item that tonight's dataset does not know may not.
    """
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    owners = np.repeat(np.arange(len(lists)), lengths)
    items = pc.index_in(lists.flatten(), data.item_ids()).fill_null(-1).to_numpy(zero_copy_only=False)
    known = items >= 0
    fine = known.copy()
    fine[known] = data.users(rows).may_get(owners[known], items[known].astype(np.int64))
    return np.bincount(owners[~fine], minlength=len(lists)) > 0


def _matched(rows: pa.Table, others: pa.Table, key: str) -> pa.Table:
    """For each user the other table's row, all null where it has none."""
    found = pc.index_in(column(rows, USER_ID).cast(pa.string()), column(others, key).cast(pa.string()))
    return others.take(found)


def _youngest(rows: pa.Table) -> NDArray[np.float32]:
    """Days since each user's latest event; every row has one."""
    ages = column(rows, AGES)
    return (
        np.minimum.reduceat(values(rows[AGES]), ages.offsets.to_numpy()[:-1]) if len(ages) else np.empty(0, np.float32)
    )


def _numbers(rows: pa.Table, name: str) -> NDArray[np.int64]:
    return column(rows, name).to_numpy(zero_copy_only=False)


def _mask(array: pa.BooleanArray) -> NDArray[np.bool_]:
    return array.to_numpy(zero_copy_only=False)
