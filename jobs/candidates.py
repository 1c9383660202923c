"""Candidates, ranked candidates and lists: one row a user with parallel arrays, and the same flat, for numpy."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.dataset import column, values
from schemas.columns import ITEMS, RANKS, SCORES, SOURCES, USER_ID


@dataclass(frozen=True, slots=True)
class Entries:
    """The entries of `users` users, sorted by `row` (the user's place in the bucket), then best first.

    `items` int32 item numbers, `scores` float32, `ranks` int32 from 1, `sources` int32 into `names`, one each an entry.
    """

    users: int
    row: NDArray[np.intp]
    items: NDArray[np.int32]
    scores: NDArray[np.float32]
    ranks: NDArray[np.int32]
    sources: NDArray[np.int32]
    names: tuple[str, ...]

    def take(self, chosen: NDArray[np.intp] | NDArray[np.bool_]) -> "Entries":
        """Some of the entries; ranks stay as they were."""
        arrays = (array[chosen] for array in (self.row, self.items, self.scores, self.ranks, self.sources))
        return Entries(self.users, *arrays, self.names)

    def table(self, user_ids: pa.StringArray) -> pa.Table:
        """One row a user with parallel arrays `items`, `scores`, `sources` (names) and `ranks`."""
        offsets = pa.array(np.searchsorted(self.row, np.arange(self.users + 1)), pa.int32())
        names = pa.DictionaryArray.from_arrays(pa.array(self.sources, pa.int32()), pa.array(self.names, pa.string()))
        flat = {
            ITEMS: pa.array(self.items),
            SCORES: pa.array(self.scores),
            SOURCES: names,
            RANKS: pa.array(self.ranks),
        }
        columns = {name: pa.ListArray.from_arrays(offsets, array) for name, array in flat.items()}
        return pa.table({USER_ID: user_ids} | columns)

    @classmethod
    def of(cls, table: pa.Table) -> "Entries":
        """The entries of a table that `table` made."""
        offsets = column(table, ITEMS).offsets.to_numpy()
        row = np.repeat(np.arange(table.num_rows), np.diff(offsets))
        names = column(table, SOURCES).flatten().dictionary_encode()  # as it is, where it is one
        return cls(
            table.num_rows,
            row,
            values(table[ITEMS]),
            values(table[SCORES]),
            values(table[RANKS]),
            names.indices.to_numpy(zero_copy_only=False),
            tuple(names.dictionary.to_pylist()),
        )


def rank_within(row: NDArray[np.intp]) -> NDArray[np.int32]:
    """1, 2, 3, ... inside each run of equal rows; `row` is sorted."""
    first = np.flatnonzero(np.r_[True, row[1:] != row[:-1]][: row.size])
    lengths = np.diff(first, append=row.size)
    return (np.arange(row.size) - np.repeat(first, lengths) + 1).astype(np.int32)
