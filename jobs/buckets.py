"""Work by bucket: the users of a run lie in `parts` buckets by hash of user_id, and a stage does one after the other, in parallel."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from jobs.losses import losses, naming
from jobs.progress import Progress
from jobs.run import Record, file_checksum, read_json, write_json

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Work = Callable[[int], pa.Table]
"""From a bucket's number to its output. It travels to Spark's workers, so it must be a module's function (or a partial)."""


@dataclass(frozen=True)
class Buckets:
    """How a stage does its buckets: on which Spark, how many, and which digest makes a bucket's record valid."""

    spark: "SparkSession"
    digest: str
    parts: int
    progress: Progress

    def each(self, out: Path, work: Work) -> int:
        """Do every bucket that has no valid record in `out` yet; returns the rows of all.

        Each bucket's Parquet is closed by its own record, so a restart redoes only what is missing. Raises Lost, naming the
        bucket, where a worker was lost or ran out of memory as often as Spark tries.
        """
        missing = [bucket for bucket in range(self.parts) if not is_done(out, bucket, self.digest)]
        with self.progress.watch(out.name, self.parts, lambda: len(list(out.glob("bucket-*.json")))):
            if missing:
                tasks = self.spark.sparkContext.parallelize(missing, len(missing))
                with losses(f"stage {out.name}", missing):
                    tasks.foreach(partial(_do, out, self.digest, work))
        return sum(pq.read_metadata(data_path(out, bucket)).num_rows for bucket in range(self.parts))


def data_path(folder: Path, bucket: int) -> Path:
    """Where a bucket's Parquet lies in a stage's folder."""
    return folder / f"bucket-{bucket:05d}.parquet"


def read_bucket(folder: Path, bucket: int, columns: list[str] | None = None) -> pa.Table:
    """A bucket's rows, in one chunk a column, sorted as they were written."""
    return pq.read_table(data_path(folder, bucket), columns=columns).combine_chunks()


def read_all(folder: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The buckets of a stage, in order."""
    for path in sorted(folder.glob("bucket-*.parquet")):
        yield pq.read_table(path, columns=columns).combine_chunks()


def is_done(folder: Path, bucket: int, digest: str) -> bool:
    """Whether the bucket has a record of this digest that matches its file."""
    path = data_path(folder, bucket)
    record = read_json(path.with_suffix(".json"))
    return bool(record and record["digest"] == digest and path.exists() and record["checksum"] == file_checksum(path))


def _do(out: Path, digest: str, work: Work, bucket: int) -> None:
    start = time.monotonic()
    with threadpool_limits(1, "blas"), naming(bucket):
        table = work(bucket)
    write_bucket(out, digest, bucket, table, time.monotonic() - start)


def write_bucket(out: Path, digest: str, bucket: int, table: pa.Table, seconds: float) -> None:
    """The data under its name only when it is whole, and then its record."""
    path = data_path(out, bucket)
    draft = path.with_name(f".{path.name}.{os.getpid()}")  # a worker of a night that was killed may still be writing
    pq.write_table(table, draft)
    draft.replace(path)
    close_bucket(path, digest, seconds)


def close_bucket(path: Path, digest: str, seconds: float) -> None:
    """Write the record of a bucket whose data is whole."""
    rows = pq.read_metadata(path).num_rows
    record = Record(path.stem, digest, file_checksum(path), round(seconds, 3), {"rows": rows})
    write_json(path.with_suffix(".json"), asdict(record))
