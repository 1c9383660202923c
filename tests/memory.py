"""Lists in memory, for stores to load: what `jobs.lists.BuiltLists` is to a run's Parquet."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import pyarrow as pa

from jobs.lists import BATCH, LISTS, Write
from schemas.lists import ServedList, check_list


class OnePart:
    """One part, which no second process takes a share of."""

    def __init__(self, lists: Iterable[ServedList]) -> None:
        self.lists = lists

    def __iter__(self) -> Iterator[ServedList]:
        return iter(self.lists)

    def each_part(self, write: Write, into: str, progress: Callable[[int], None]) -> int:
        (written,) = write(1, iter([batches(self.lists)]))
        progress(written)
        return written


def batches(lists: Iterable[ServedList]) -> Iterator[pa.RecordBatch]:
    """The lists as a run's Parquet would hold them. Raises ValueError on what no Parquet could: a time of no zone."""
    rest = iter(lists)
    while rows := list(islice(rest, BATCH)):
        for served in rows:
            check_list(served)
        columns = [[getattr(served, name) for served in rows] for name in LISTS.names]
        yield pa.record_batch(
            [pa.array(column, field.type) for column, field in zip(columns, LISTS, strict=True)], LISTS
        )
