"""200,000 lists of 50 into one real Cassandra node: ours, a loop over the plain driver, and spark-cassandra-connector.

All three write the same Parquet from the same Spark session, at LOCAL_QUORUM and without a throttle, each time into a new
table with our options, whose rows are counted afterwards.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cassandra.concurrent import execute_concurrent_with_args

from jobs.config import SparkSettings
from jobs.lists import LISTS, Batches, BuiltLists, served_lists
from jobs.spark import session
from jobs.stores._writer import insert, write_parts
from jobs.stores.cassandra import CassandraStore
from lookup_api.readers._cassandra import Connection
from lookup_api.readers.cassandra import MIN_TOKEN
from schemas.settings import CassandraSettings
from tests.bench import summary
from tests.bench._node import production_node
from tests.cassandra import Node

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROUNDS = 3
ROWS, ITEMS, CATALOGUE, FILES = 200_000, 50, 100_000, 64
CONNECTOR = "com.datastax.spark:spark-cassandra-connector_2.13:3.5.1"
KEYSPACE = "bench"

Load = Callable[[str], object]
"""Loads all lists into an empty table."""


def measure(rounds: int) -> dict[str, Any]:
    """Rows a second of each, in turns, and the ratios of ours; no ratio where the connector can't be had."""
    with tempfile.TemporaryDirectory() as folder, production_node(Path(folder) / "cassandra") as node:
        build = Path(folder) / "run" / "build"
        write_lists(build)
        settings = node.settings(KEYSPACE)
        spark, has_connector = _spark(settings)
        lists = BuiltLists(build, spark)
        loads: dict[str, Load] = {
            "ours": lambda table: lists.each_part(partial(write_parts, settings, table, 1), table, _ignore),
            "raw_driver": lambda table: lists.each_part(partial(plain_loop, settings, table), table, _ignore),
        }
        if has_connector:
            loads["connector"] = partial(by_connector, spark, build)
        seconds = in_turns(loads, rounds, node, settings)
        spark.stop()
    rates = {name: ROWS / figures["median"] for name, figures in summary(seconds).items()}
    return {
        "rows_per_s": rates["ours"],
        "ratio_to_connector": rates["ours"] / rates["connector"] if has_connector else None,
        "ratio_to_raw_driver": rates["ours"] / rates["raw_driver"],
        "per_second": rates,
        "seconds": summary(seconds),
    }


def in_turns(loads: dict[str, Load], rounds: int, node: Node, settings: CassandraSettings) -> dict[str, list[float]]:
    """Seconds of each in each round, after one that only warms up. Each has a table of its own, which is counted and dropped then."""
    store = CassandraStore(settings)
    store.create()
    seconds: dict[str, list[float]] = {name: [] for name in loads}
    tables = {(name, number): f"{KEYSPACE}.lists_{name}_{number}" for name in loads for number in range(rounds + 1)}
    for table in tables.values():  # before the connector looks: it hears of later ones after a while only
        store._ddl("lists", table)
    for number in range(rounds + 1):
        for name, load in loads.items():
            table = tables[name, number]
            start = time.perf_counter()
            load(table)
            taken = time.perf_counter() - start
            assert (rows := _count(node, table)) == ROWS, f"{name} wrote {rows} of {ROWS} lists"
            store._ddl("drop", table)
            click.echo(f"{name:<12}{taken:7.1f} s{ROWS / taken:9.0f}/s", err=True)
            if number:
                seconds[name].append(taken)
    store.close()
    return seconds


def _count(node: Node, table: str) -> int:
    """In parts: one query over all of it would time out."""
    bounds = [MIN_TOKEN + 2**64 // 64 * number for number in range(64)] + [-MIN_TOKEN - 1]
    ranges = (f"token(kind, key) > {after} AND token(kind, key) <= {until}" for after, until in pairwise(bounds))
    return sum(node.execute(f"SELECT COUNT(*) FROM {table} WHERE {found}")[0][0] for found in ranges)


def plain_loop(settings: CassandraSettings, table: str, tasks: int, parts: Iterator[Batches]) -> Iterator[int]:
    """What the driver's documentation tells one to do: prepared, 100 at once, in as many processes."""
    connection = Connection(settings)
    prepared = connection.prepared(insert(table))
    for part in parts:
        rows = 0
        for batch in part:
            lists = list(served_lists(batch))
            values = [(f.kind, f.key, f.items, f.scores, f.sources, f.scored_at, 1) for f in lists]
            execute_concurrent_with_args(connection.session(), prepared, values, concurrency=100)
            rows += len(values)
        yield rows
    connection.close()


def by_connector(spark: "SparkSession", build: Path, table: str) -> None:
    """As its documentation tells one to; its consistency level is LOCAL_QUORUM by itself."""
    keyspace, _, name = table.partition(".")
    writer = spark.read.parquet(str(build)).write.format("org.apache.spark.sql.cassandra").mode("append")
    writer.options(keyspace=keyspace, table=name).save()


def write_lists(build: Path) -> None:
    """The Parquet of a run, in as many files as a run has by default."""
    build.mkdir(parents=True)
    rng, size = np.random.default_rng(7), ROWS // FILES
    names = pa.array([f"v{number:06d}" for number in range(CATALOGUE)])
    offsets = pa.array(np.arange(size + 1, dtype=np.int32) * ITEMS)
    sources = pa.array(["als+popular"] * (size * ITEMS))
    for number in range(FILES):
        items = names.take(pa.array(rng.integers(0, CATALOGUE, size * ITEMS)))
        scores = pa.array(np.sort(rng.random((size, ITEMS), np.float32))[:, ::-1].ravel())
        columns = [
            pa.array(["user"] * size),
            pa.array([f"u{user:07d}" for user in range(number * size, (number + 1) * size)]),
            *(pa.ListArray.from_arrays(offsets, values) for values in (items, scores, sources)),
            pa.array([1_772_332_200_000] * size, pa.timestamp("ms", "UTC")),
        ]
        pq.write_table(pa.table(columns, names=LISTS.names).cast(LISTS), build / f"bucket-{number:05d}.parquet")


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]


def _spark(settings: CassandraSettings) -> "tuple[SparkSession, bool]":
    """Spark with the connector, or, where its jar can't be had, without."""
    conf = {
        "spark.cassandra.connection.host": settings.contact_points[0],
        "spark.cassandra.connection.port": str(settings.port),
        "spark.cassandra.auth.username": settings.username,
        "spark.cassandra.auth.password": settings.password.get_secret_value(),
    }
    made = SparkSettings(master=f"local[{os.cpu_count()}]", conf=conf)
    try:
        with _environment(
            {"PYSPARK_SUBMIT_ARGS": f"--packages {CONNECTOR} --conf spark.ui.showConsoleProgress=false pyspark-shell"}
        ):
            return session(made), True
    except Exception as error:  # whatever keeps a JVM from starting with it
        click.echo(f"{CONNECTOR} can't be had ({error}): its ratio is not measured", err=True)
        return session(made), False


def _ignore(rows: int) -> None:
    """Nobody looks at this progress."""
