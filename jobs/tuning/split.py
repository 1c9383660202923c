"""A training file in two: what settings are tried on, and what they are judged by.

Rows are sorted first, so that the parts do not depend on the order of the rows in the file.
"""

from datetime import UTC, datetime, time
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.dataset import column
from schemas.columns import ITEM_ID, TS, USER_ID
from schemas.errors import InputError

HELD_OUT = 0.2
"""Share of each user's items, where there are no times."""
FEWEST_ITEMS = 5
"""Users with fewer items keep them all: nothing can be asked about a user of whom nothing is known."""
LATEST = 0.1
"""Share of the rows that the latest stretch holds, or a little more: it begins at midnight."""
REAL_DAYS, REAL_ROWS = 10, 0.95
"""Times are real where they fall on so many days and so many rows have one: a constant, or a count, tells no order of events."""


class Parts(NamedTuple):
    """Every row is in one of them. `by_time`: whether `valid` is the latest stretch, or a sample of each user's items."""

    train: pa.Table
    valid: pa.Table
    by_time: bool


def split(rows: pa.Table, seed: int) -> Parts:
    """Hold out the latest stretch where there are real times, else a seeded share of each user's items.

    All rows of a pair go the same way without times; pairs may repeat across a split by time.

    Args:
        rows: user_id and item_id (text, no nulls), perhaps value and ts (timestamp).

    Raises:
        InputError: nothing would be left to judge by.
    """
    rows = rows.sort_by([(name, "ascending") for name in rows.column_names])
    by_time = has_times(rows)
    held = _latest(rows) if by_time else _sampled(rows, seed)
    parts = Parts(rows.filter(pa.array(~held)), rows.filter(pa.array(held)), by_time)
    if not parts.valid.num_rows or not parts.train.num_rows:
        raise InputError(f"nothing to validate on: no user of the train file has {FEWEST_ITEMS} items")
    return parts


def has_times(rows: pa.Table) -> bool:
    """Whether `ts` says when things happened."""
    if TS not in rows.column_names or rows[TS].null_count > (1 - REAL_ROWS) * rows.num_rows:
        return False
    return pc.count_distinct(pc.floor_temporal(rows[TS], unit="day"), "only_valid").as_py() >= REAL_DAYS


def _latest(rows: pa.Table) -> NDArray[np.bool_]:
    """The rows of the last days. A row without a time stays in training."""
    micros = column(rows, TS).cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    times = micros.drop_null().to_numpy()
    cut = np.sort(times)[int((1 - LATEST) * times.size)]
    day = datetime.fromtimestamp(cut / 1e6, UTC).date()
    midnight = int(datetime.combine(day, time(), UTC).timestamp() * 1e6)
    begin = midnight if (times < midnight).mean() >= 0.5 else cut
    return pc.fill_null(micros, begin - 1).to_numpy() >= begin


def _sampled(rows: pa.Table, seed: int) -> NDArray[np.bool_]:
    """A fifth of each user's items, rounded down, of users with at least five; drawn in sorted order."""
    user, item = (_numbers(column(rows, name)) for name in (USER_ID, ITEM_ID))
    pairs, row_of = np.unique(user.astype(np.int64) * (item.max(initial=0) + 1) + item, return_inverse=True)
    owner = pairs // (item.max(initial=0) + 1)
    order = np.lexsort((np.random.default_rng(seed).random(pairs.size), owner))
    sizes = np.bincount(owner)
    first = np.r_[0, np.cumsum(sizes)[:-1]]
    taken = np.where(sizes >= FEWEST_ITEMS, (HELD_OUT * sizes + 1e-9).astype(int), 0)
    place = np.arange(pairs.size) - first[owner]  # owner is sorted, and stays so in `order`
    held = np.zeros(pairs.size, bool)
    held[order] = place < taken[owner]
    return held[row_of]


def _numbers(ids: pa.Array) -> NDArray[np.int64]:
    """Each id's place among all, sorted."""
    known = ids.unique()
    known = known.take(pc.sort_indices(known))
    return pc.index_in(ids, known).to_numpy().astype(np.int64)
