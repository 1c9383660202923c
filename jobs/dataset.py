"""Reading what stage 2 wrote: histories as CSR rows straight from Parquet, without pandas."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from jobs.buckets import read_all, read_bucket
from jobs.models import ITEM, NONE, USER, Before, R, Training, Users
from schemas.columns import ITEM_ID, ITEMS, USER_ID

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

WEIGHTS, AGES, SEEN, BLOCKED, HISTORY = "weights", "ages", "seen", "blocked", "history"
SEGMENT = "segment_"
ITEMS_FILE = "items.parquet"


def users_schema(segments: Sequence[str]) -> pa.Schema:
    """One row a user. `items` (r > 0), `seen` and `blocked` hold item numbers, ascending; `weights` and `ages` (days) go with `items`.

    `history` is a hash of what the user did and is: equal on two days where only time went by. Numbers are one day's own.
    """
    numbers, floats = pa.list_(pa.int32()), pa.list_(pa.float32())
    columns = [
        (USER_ID, pa.string()),
        (ITEMS, numbers),
        (WEIGHTS, floats),
        (AGES, floats),
        (SEEN, numbers),
        (BLOCKED, numbers),
        (HISTORY, pa.int64()),
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

    @property
    def parts(self) -> int:
        """Buckets that are there."""
        return len(list(self.folder.glob("bucket-*.parquet")))

    def bucket(self, number: int) -> tuple[pa.StringArray, Users]:
        """The users of one bucket: ids, and what models need to find them candidates."""
        rows = read_bucket(self.folder, number)
        return column(rows, USER_ID), self.users(rows)

    def users(self, rows: pa.Table) -> Users:
        """Some rows of a bucket, as models want them."""
        eligible = self.eligible()
        size = eligible.size
        weights, ages = (csr(rows[ITEMS], size, values(rows[name])) for name in (WEIGHTS, AGES))
        excluded = csr(rows[SEEN], size) + csr(rows[BLOCKED], size)
        return Users(weights, ages, excluded, eligible, labels(rows))

    def size(self) -> dict[str, int]:
        """Users with at least one pair (`rows`), items and pairs, counted a bucket at a time."""
        lengths = [pc.list_value_length(table[ITEMS]).to_numpy() for table in read_all(self.folder, [ITEMS])]
        return {
            "rows": sum(int(np.count_nonzero(length)) for length in lengths),
            "items": len(self._items(ITEM_ID)),
            "pairs": sum(int(length.sum()) for length in lengths),
        }

    def training(
        self,
        segments: Sequence[str],
        seed: int,
        scratch: Path = Training.scratch,
        max_users: int | None = None,
        before: Before | None = None,
    ) -> "StoredTraining":
        """What models learn from: the users with at least one pair, a sample of them where there are more than `max_users`."""
        return StoredTraining(self, segments, seed, scratch, max_users, before)

    def numbers_in(self, other: "Dataset") -> NDArray[np.int32]:
        """Per item its number in the other dataset, or NONE."""
        return pc.index_in(self.item_ids(), other.item_ids()).fill_null(NONE).to_numpy()

    def _items(self, name: str) -> pa.Array:
        return column(pq.read_table(self.folder / ITEMS_FILE, columns=[name]), name)


class StoredTraining(Training):
    """Training that lies on disk: matrices and segments are read when a model first asks, once for all models.

    A model that only takes `pairs` leaves the users where they are, and gets those of all of them.
    """

    def __init__(
        self,
        dataset: Dataset,
        segments: Sequence[str],
        seed: int,
        scratch: Path,
        max_users: int | None,
        before: Before | None,
    ) -> None:
        self._dataset, self._segments, self.seed, self.scratch = dataset, segments, seed, scratch
        self._max_users, self.before = max_users, before

    @property
    def weights(self) -> csr_matrix:
        return self._read.weights

    @property
    def ages(self) -> csr_matrix:
        return self._read.ages

    @property
    def segments(self) -> Mapping[str, NDArray[np.object_]]:
        return self._read.segments

    @property
    def items(self) -> int:
        return len(self._dataset.item_ids())

    def pairs(self) -> "DataFrame":
        """Read by Spark. A user's number is made of the place in the files, so it does not depend on how they are split."""
        from pyspark.sql import SparkSession
        from pyspark.sql import functions as F

        folder = self._dataset.folder
        buckets = len(list(folder.glob("bucket-*.parquet")))
        bucket = F.regexp_extract("_metadata.file_name", "[0-9]+", 0).cast("long")
        number = F.col("_metadata.row_index") * buckets + bucket
        reader = SparkSession.active().read.schema(f"{ITEMS} array<int>, {WEIGHTS} array<float>")
        rows = reader.option("pathGlobFilter", "bucket-*.parquet").parquet(str(folder))
        pairs = rows.select(number.cast("int").alias(USER), F.explode(F.arrays_zip(ITEMS, WEIGHTS)).alias("pair"))
        return pairs.select(USER, F.col(f"pair.{ITEMS}").alias(ITEM), F.col(f"pair.{WEIGHTS}").alias(R))

    @cached_property
    def _read(self) -> Training:
        """The users to learn from, in (bucket, user_id) order. Only theirs are ever held together."""
        folder, schema = self._dataset.folder, users_schema(self._segments)
        schema = pa.schema([field for field in schema if field.name not in (USER_ID, SEEN, BLOCKED, HISTORY)])
        lengths = [pc.list_value_length(table[ITEMS]).to_numpy() for table in read_all(folder, [ITEMS])]
        chosen = stratified(np.concatenate(lengths), self._max_users, self.seed)
        parts = np.split(chosen, np.cumsum([part.size for part in lengths])[:-1])
        tables = [
            table.filter(pa.array(part)).cast(schema)  # Spark and Arrow differ in "not null"
            for table, part in zip(read_all(folder, schema.names), parts, strict=True)
        ]
        rows = pa.concat_tables(tables).combine_chunks()
        weights = csr(rows[ITEMS], self.items, values(rows[WEIGHTS]))
        ages = csr_matrix((values(rows[AGES]), weights.indices, weights.indptr), shape=weights.shape)
        return Training(weights, ages, labels(rows), self.seed)


def stratified(lengths: NDArray[np.integer], at_most: int | None, seed: int) -> NDArray[np.bool_]:
    """Users to learn from: those with a pair, or, where they are more than `at_most`, the same share of the busy and the rest.

    Strata are histories of 1, 2 to 3, 4 to 7, ... pairs; of each at least one user stays, so that they may be a few more.
    `lengths`: pairs of each user.
    """
    chosen = lengths > 0
    active = int(chosen.sum())
    if at_most is None or active <= at_most:
        return chosen
    rng, strata = np.random.default_rng(seed), np.frexp(lengths.astype(np.float64))[1]
    for stratum in np.unique(strata[chosen]):
        users = np.flatnonzero(strata == stratum)
        kept = max(1, round(users.size * at_most / active))
        chosen[rng.permutation(users)[kept:]] = False
    return chosen


def column(table: pa.Table, name: str) -> pa.Array:
    """One column as one array."""
    return table[name].combine_chunks()


def labels(rows: pa.Table) -> dict[str, NDArray[np.object_]]:
    """The segments' columns: a user's value, or None, by the column's name in the users table."""
    names = [name for name in rows.column_names if name.startswith(SEGMENT)]
    return {name.removeprefix(SEGMENT): np.array(rows[name].to_pylist(), dtype=object) for name in names}


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
