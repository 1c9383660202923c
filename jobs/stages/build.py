"""Stage 7: the run exists. What is gated, loaded, read back and served is the Parquet that is written here."""

import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs import models
from jobs.buckets import Buckets, read_all, read_bucket
from jobs.dataset import Dataset, column
from jobs.lists import LISTS
from jobs.models import ItemList
from jobs.run import Counts
from schemas.columns import ITEMS, SCORES, SOURCES, USER_ID
from schemas.lists import ALL


def assemble(
    out: Path,
    buckets: Buckets,
    dataset: Path,
    lists: Path,
    carried: Path | None,
    trained: Path,
    names: Sequence[str],
    n: int,
    scored_at: datetime,
) -> Counts:
    """Write personal lists by bucket, and similar.parquet and popular.parquet, all with ids instead of numbers.

    A user with a history has a row, an empty one where nothing is left to show; one without a history has none, and is
    answered with the popular list. Who is not in `lists` keeps the row in `carried`, another run's output of this stage.
    Raises RuntimeError for a user without either.
    """
    buckets.each(out, partial(bucket_rows, dataset, lists, carried, scored_at))
    rows = {"user": sum(pq.read_metadata(path).num_rows for path in out.glob("bucket-*.parquet"))}
    data = Dataset(dataset)
    item_ids, eligible = data.item_ids(), data.eligible()
    found = [found for name in names for found in _lists(trained, name, eligible, n)]
    for kind in ("similar", "popular"):
        table = _table([(name, shared) for name, shared in found if shared.kind == kind], item_ids, scored_at, kind)
        pq.write_table(table, out / f"{kind}.parquet")
        rows[kind] = table.num_rows
    return {
        "rows": sum(rows.values()),
        "kinds": rows,
        "outcomes": outcomes(dataset, out),
        "lists_checksum": content_checksum(out),
    }


def bucket_rows(dataset: Path, lists: Path, carried: Path | None, scored_at: datetime, bucket: int) -> pa.Table:
    """The personal lists of one bucket as rows to serve, new and carried ones, in the dataset's order."""
    users = read_bucket(dataset, bucket, [USER_ID, ITEMS])
    rows = new_rows(read_bucket(lists, bucket), Dataset(dataset).item_ids(), scored_at)
    if carried:
        before = read_bucket(carried, bucket).cast(LISTS)
        rows = pa.concat_tables([rows, before.filter(pc.invert(pc.is_in(before["key"], column(rows, "key"))))])
    expected = users.filter(pc.greater(pc.list_value_length(users[ITEMS]), 0))
    place = pc.index_in(column(expected, USER_ID).cast(pa.string()), column(rows, "key"))
    if place.null_count:
        lost = expected.filter(place.is_null())[USER_ID][0]
        raise RuntimeError(f"bucket {bucket}: {lost} has no list; delete {lists} and start the night again")
    return rows.take(place)


def new_rows(lists: pa.Table, item_ids: pa.StringArray, scored_at: datetime) -> pa.Table:
    """Lists that were made tonight, of item numbers, as rows to serve."""
    numbers, size = column(lists, ITEMS), lists.num_rows
    ids = pa.ListArray.from_arrays(numbers.offsets, item_ids.take(numbers.values))
    columns = [
        _repeat("user", size),
        column(lists, USER_ID),
        ids,
        lists[SCORES],
        lists[SOURCES],
        _repeat(scored_at, size),
    ]
    return pa.table(columns, names=LISTS.names).cast(LISTS)


def outcomes(dataset: Path, built: Path) -> dict[str, int]:
    """How many users have which outcome; they sum to the dataset's users. `failed` are those that got lost on the way."""
    personal = empty = 0
    for table in read_all(built, [ITEMS]):
        lengths = pc.list_value_length(column(table, ITEMS)).to_numpy(zero_copy_only=False)
        personal, empty = personal + int((lengths > 0).sum()), empty + int((lengths == 0).sum())
    histories = [pc.list_value_length(column(table, ITEMS)).to_numpy() for table in read_all(dataset, [ITEMS])]
    users, cold = sum(len(h) for h in histories), int(sum((h == 0).sum() for h in histories))
    served = cold if pq.read_table(built / "popular.parquet", filters=[("key", "=", ALL)]).num_rows else 0
    return {"personal": personal, "popular": served, "empty": empty, "failed": users - personal - empty - served}


def content_checksum(built: Path) -> str:
    """A digest of all lists but for when they were scored: equal for two runs with equal lists."""
    total = hashlib.blake2b(digest_size=16)
    for path in sorted(built.glob("*.parquet")):
        table = pq.read_table(path).drop_columns(["scored_at"]).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        total.update(sink.getvalue())
    return total.hexdigest()


def _lists(trained: Path, name: str, eligible: np.ndarray, n: int) -> Iterator[tuple[str, ItemList]]:
    return ((name, shared) for shared in models.module(name).Model.load(trained / name).lists(eligible, n))


def _table(found: list[tuple[str, ItemList]], item_ids: pa.StringArray, scored_at: datetime, kind: str) -> pa.Table:
    """Lists that are nobody's own as rows; the key of a similar list is its item's id."""
    keys = [item_ids[shared.key].as_py() if isinstance(shared.key, int) else shared.key for _, shared in found]
    lengths = np.array([shared.items.size for _, shared in found], np.int64)
    offsets = pa.array(np.r_[0, np.cumsum(lengths)].astype(np.int32))
    items = np.concatenate([shared.items for _, shared in found] or [np.empty(0, np.int32)])
    scores = np.concatenate([shared.scores for _, shared in found] or [np.empty(0, np.float32)])
    sources = pa.array(np.repeat(np.array([name for name, _ in found], object), lengths), pa.string())
    arrays = (item_ids.take(pa.array(items, pa.int32())), pa.array(scores, pa.float32()), sources)
    lists = [pa.ListArray.from_arrays(offsets, array) for array in arrays]
    return pa.table(
        [_repeat(kind, len(keys)), pa.array(keys, pa.string()), *lists, _repeat(scored_at, len(keys))], schema=LISTS
    )


def _repeat(value: object, size: int) -> pa.Array:
    kind = pa.string() if isinstance(value, str) else LISTS.field("scored_at").type
    return pa.repeat(pa.scalar(value, kind), size)
