"""The lists of a built run, as stores take them and readers give them."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.accumulators import Accumulator, AccumulatorParam

from schemas.columns import ITEMS, SCORES, SOURCES
from schemas.errors import NightlistError
from schemas.lists import ServedList

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Write = Callable[[Iterator[ServedList]], int]
"""Writes lists somewhere, and says how many."""

PARTS_A_CORE = 4
"""A part costs one connection to the store; more parts tell of their progress sooner."""
PROGRESS_SECONDS = 0.2

LISTS = pa.schema(
    [
        ("kind", pa.string()),
        ("key", pa.string()),
        (ITEMS, pa.list_(pa.string())),
        (SCORES, pa.list_(pa.float32())),
        (SOURCES, pa.list_(pa.string())),
        ("scored_at", pa.timestamp("ms", "UTC")),
    ]
)
"""One row a served list; it is what schemas.lists.ServedList holds."""


@dataclass(frozen=True)
class BuiltLists:
    """What stage 7 wrote, as a store loads it (see `jobs.stores.Lists`): on Spark's workers where there is a Spark."""

    folder: Path
    spark: "SparkSession | None" = None

    def __iter__(self) -> Iterator[ServedList]:
        return _read(self._files())

    def __len__(self) -> int:
        return sum(pq.read_metadata(path).num_rows for path in self._files())

    def each_part(self, write: Write, progress: Callable[[int], None]) -> int:
        """One part is some of the files. The first error of any part ends the others and is raised as it was raised there."""
        if self.spark is None:
            return write(iter(self))
        context, files = self.spark.sparkContext, self._files()
        told = context.accumulator([], _Told())
        parts = context.parallelize(files, min(len(files), PARTS_A_CORE * context.defaultParallelism))
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(parts.foreachPartition, partial(_write_part, write, told))
            while not wait([job], PROGRESS_SECONDS).done:
                try:
                    progress(_sum(told.value))
                except BaseException:
                    context.cancelAllJobs()
                    raise
        written = _sum(told.value)
        job.result()
        return written

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))


class _Told(AccumulatorParam[list[int | Exception]]):
    """What the parts have to say, side by side: rows written, or what went wrong."""

    def zero(self, value: list[int | Exception]) -> list[int | Exception]:
        return []

    def addInPlace(self, one: list[int | Exception], other: list[int | Exception]) -> list[int | Exception]:  # noqa: N802  Spark's name
        return one + other


def _write_part(write: Write, told: "Accumulator[list[int | Exception]]", files: Iterator[Path]) -> None:
    """Errors travel as values: what a worker raises comes back as text, and is tried again as often as Spark likes."""
    try:
        told.add([write(_read(files))])
    except (NightlistError, ValueError) as error:
        told.add([error])


def _sum(told: list[int | Exception]) -> int:
    for word in told:
        if isinstance(word, Exception):
            raise word
    return sum(word for word in told if isinstance(word, int))


def _read(files: Iterable[Path]) -> Iterator[ServedList]:
    for path in files:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=2_000):
            for row in batch.to_pylist():
                columns = (tuple(row[name]) for name in (ITEMS, SCORES, SOURCES))
                yield ServedList(row["kind"], row["key"], *columns, row["scored_at"])
