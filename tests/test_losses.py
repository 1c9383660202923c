"""Workers that Spark loses, or that run out of memory: real processes are killed and real limits are met, and the way out is named."""

import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from jobs.buckets import Buckets, Work, data_path, is_done
from jobs.losses import Lost, losses
from jobs.progress import Progress
from jobs.workers import on_workers
from tests.commands import free_port

PARTS, BAD = 4, 2
MIB = 2**20


def well(bucket: int) -> pa.Table:
    return pa.table({"bucket": [bucket]})


def killed(bucket: int) -> pa.Table:
    """As the kernel does where a machine's memory is all taken."""
    if bucket == BAD:
        os.kill(os.getpid(), signal.SIGKILL)
    return well(bucket)


def limited(bucket: int) -> pa.Table:
    """As spark.executor.pyspark.memory does, on one bucket that needs more than there is."""
    if bucket != BAD:
        return well(bucket)
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 64 * MIB, before[1]))
    try:
        return pa.table({"bucket": np.ones(256 * MIB, np.int8)})
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)  # the worker goes on to other tests' work


def killed_while_loading(parts: Iterator[int]) -> int:
    return sum(killed(part).num_rows for part in parts)


def ask_nobody() -> object:
    return socket.create_connection(("127.0.0.1", free_port()))


def broken(bucket: int) -> pa.Table:
    raise ValueError("scores hold NaN")


@pytest.fixture
def buckets(spark: SparkSession) -> Buckets:
    return Buckets(spark, "digest", PARTS, Progress())


@pytest.mark.parametrize(("work", "happened"), [(killed, "worker was killed"), (limited, "worker ran out of memory")])
def test_a_worker_that_is_lost_is_told_with_its_bucket_and_what_to_change(
    work: Work, happened: str, buckets: Buckets, tmp_path: Path
) -> None:
    """In one line; buckets that were done before it stay, and the next start does the others only."""
    with pytest.raises(Lost) as raised:
        buckets.each(tmp_path, work)

    said = str(raised.value)
    assert said.startswith(f"stage {tmp_path.name}, bucket {BAD}: a Python {happened}")
    assert len(said.splitlines()) == 1
    assert "dataset.parts" in said
    assert "start the night again" in said
    assert not is_done(tmp_path, BAD, "digest")
    done = {bucket: written(tmp_path, bucket) for bucket in range(PARTS) if is_done(tmp_path, bucket, "digest")}
    assert buckets.each(tmp_path, well) == PARTS
    assert {bucket: written(tmp_path, bucket) for bucket in done} == done


def test_so_is_one_that_is_lost_while_it_loads_lists(spark: SparkSession) -> None:
    with pytest.raises(Lost, match="publish: a Python worker was killed"):
        on_workers(spark, killed_while_loading, range(PARTS), PARTS, lambda: None)


def written(folder: Path, bucket: int) -> tuple[int, int]:
    """What another writing would change."""
    stat = data_path(folder, bucket).stat()
    return stat.st_ino, stat.st_mtime_ns


def test_other_errors_of_workers_are_no_losses(buckets: Buckets, tmp_path: Path) -> None:
    """More memory would not help against broken factors."""
    with pytest.raises(Exception, match="scores hold NaN") as raised:
        buckets.each(tmp_path, broken)

    assert not isinstance(raised.value, Lost)


@pytest.mark.parametrize(
    ("make", "setting"), [(lambda: np.ones(2**48), "train.max_train_users"), (ask_nobody, "spark.driver.memory")]
)
def test_the_drivers_own_memory_and_a_spark_that_is_gone_are_told_apart(
    make: Callable[[], object], setting: str
) -> None:
    """A real lack of memory, and a real connection that nobody answers."""
    with pytest.raises(Lost, match=setting), losses("stage train"):
        make()
