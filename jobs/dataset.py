"""Reading what stage 2 wrote: histories as CSR rows straight from Parquet, without pandas."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from jobs.buckets import read_all, read_bucket
from jobs.models import Training, Users
from schemas.columns import ITEM_ID, ITEMS, USER_ID

WEIGHTS, AGES, SEEN, BLOCKED = "weights", "ages", "seen", "blocked"
SEGMENT = "segment_"
ITEMS_FILE = "items.parquet"


def users_schema(segments: Sequence[str]) -> pa.Schema:
    """One row a user. `items` (r > 0), `seen` and `blocked` hold item numbers, ascending; `weights` and `ages` (days) go with `items`."""
    numbers, floats = pa.list_(pa.int32()), pa.list_(pa.float32())
    columns = [
        (USER_ID, pa.string()),
        (ITEMS, numbers),
        (WEIGHTS, floats),
        (AGES, floats),
        (SEEN, numbers),
        (BLOCKED, numbers),
    ]
    return pa.schema(columns + [(SEGMENT + column, pa.string()) for column in segments])


@dataclass(frozen=True)
class Dataset:
    """The output of stage 2 in its folder."""

    folder: Path

    def item_ids(self) -> pa.StringArray:
        """The id of each item, by its number."""
        return self._items(ITEM_ID).cast(pa.string())

    def eligible(self) -> NDArray[np.bool_]:
        """Per item, whether anybody may be shown it: available, and not blocked for everyone."""
        return self._items("eligible").to_numpy(zero_copy_only=False)

    def bucket(self, number: int) -> tuple[pa.StringArray, Users]:
        """The users of one bucket: ids, and what models need to find them candidates."""
        rows = read_bucket(self.folder, number)
        eligible = self.eligible()
        size = eligible.size
        weights, ages = (csr(rows[ITEMS], size, values(rows[name])) for name in (WEIGHTS, AGES))
        excluded = csr(rows[SEEN], size) + csr(rows[BLOCKED], size)
        return column(rows, USER_ID), Users(weights, ages, excluded, eligible)

    def training(self, segments: Sequence[str], seed: int) -> Training:
        """All users with at least one pair, in (bucket, user_id) order."""
        schema = pa.schema([field for field in users_schema(segments) if field.name not in (USER_ID, SEEN, BLOCKED)])
        tables = [
            table.cast(schema) for table in read_all(self.folder, schema.names)
        ]  # Spark and Arrow differ in "not null"
        rows = pa.concat_tables(tables).combine_chunks()
        rows = rows.filter(pc.list_value_length(rows[ITEMS]).to_numpy() > 0).combine_chunks()
        size = len(self._items(ITEM_ID))
        weights, ages = (csr(rows[ITEMS], size, values(rows[name])) for name in (WEIGHTS, AGES))
        labels = {name: np.array(rows[SEGMENT + name].to_pylist(), dtype=object) for name in segments}
        return Training(weights, ages, labels, seed)

    def _items(self, name: str) -> pa.Array:
        return column(pq.read_table(self.folder / ITEMS_FILE, columns=[name]), name)


def column(table: pa.Table, name: str) -> pa.Array:
    """One column as one array."""
    return table[name].combine_chunks()


def values(lists: pa.ChunkedArray) -> NDArray[np.generic]:
    """The flattened values of a column of lists."""
    return lists.combine_chunks().flatten().to_numpy(zero_copy_only=False)


def csr(lists: pa.ChunkedArray, columns: int, data: NDArray[np.float32] | None = None) -> csr_matrix:
    """A column of lists of numbers as a matrix, rows x columns; its values are `data`, or 1."""
    array = lists.combine_chunks()
    indices = np.require(array.flatten().to_numpy(zero_copy_only=False), requirements="W")  # implicit's solver insists
    offsets = array.offsets.to_numpy()
    stored = np.ones(indices.size, np.float32) if data is None else data
    return csr_matrix((stored, indices, (offsets - offsets[0]).astype(np.int64)), shape=(len(array), columns))
