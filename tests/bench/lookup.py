"""Lookups of one process through HTTP against the driver's bare reads, on one real Cassandra node."""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.lists import LISTS
from jobs.stores import open_store
from schemas.runs import table_of
from tests import publish_run
from tests.bench._node import production_node, wait_until_compacted
from tests.cassandra import create_roles
from tests.commands import ROOT, serving
from tests.load import Client
from tests.nights import Place
from tests.under_fire import throttled

CONNECTIONS = 16
ITEMS, CATALOGUE = 50, 100_000
FILE_LISTS = 50_000
SERVED, LOADED = "20261120_00000001", "20261121_00000002"
ANYWHERE: tuple[str, ...] = ()
ON_ONE_CORE = ("taskset", "-c", str(max(os.sched_getaffinity(0))))
"""How a process is started. All threads of a Python process share one lock, so that a second core only costs handovers."""


def measure(
    rounds: int = 3, lists: int = 1_000_000, seconds: float = 60.0, burst_seconds: float = 10.0, load_rate: int = 1_000
) -> dict[str, Any]:
    """`rps`: what one worker answers to 16 connections; `ratio_to_raw_driver`: that over what the driver alone reads;
    both again `on_one_core`. Latencies are those of requests at half of `rps`, for so many seconds; once more while
    `load_rate` lists a second are written, by processes that yield to the service, for `p99_ratio_under_load`. Users are
    known and uniformly random; n = 20. `answered` is 1 unless the machine was too busy for the deadline: then latencies
    say little.
    """
    with ready_site(lists) as site, serving(site.config) as port, serving(site.config, under=ON_ONE_CORE) as pinned:
        found = saturated(site, {ANYWHERE: port, ON_ONE_CORE: pinned}, rounds, lists, burst_seconds)
        return found | open_loop(site, port, lists, seconds, found["rps"] / 2, load_rate)


def saturated(
    site: Place, ports: dict[tuple[str, ...], int], rounds: int, lists: int, seconds: float
) -> dict[str, Any]:
    """What the driver reads, and a service answers, by turns; for each way to start them."""

    def burst(port: int) -> float:
        return float(Client(port, lists, seconds, connections=CONNECTIONS).result()["lists_per_second"])

    for port in ports.values():  # before it counts
        burst(port)
    turns = [[(raw(site, lists, seconds, under), burst(port)) for under, port in ports.items()] for _ in range(rounds)]
    anywhere, on_one_core = (compared(pairs) for pairs in zip(*turns, strict=True))
    return {**anywhere, "on_one_core": on_one_core}


def open_loop(site: Place, port: int, lists: int, seconds: float, rate: float, load_rate: int) -> dict[str, Any]:
    """Latencies at `rate`, without a load and beside one that has begun: until then the node's Java compiles what writes
    anew, on the cores that the service shares."""
    calm = Client(port, lists, seconds, rate=rate).result()
    with loading(site, load_rate):
        Client(port, lists, seconds / 3, rate=rate).result()
        busy = Client(port, lists, seconds, rate=rate).result()
    return {
        "answered": min(calm["share"], busy["share"]),
        "p50_ms": calm["p50_ms"],
        "p99_ms": calm["p99_ms"],
        "p99_ms_under_load": busy["p99_ms"],
        "p99_ratio_under_load": busy["p99_ms"] / calm["p99_ms"],
        "open_loop": {"calm": calm, "under_load": busy},
    }


def compared(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """What reads and answers a second come to."""
    reads, rps = (statistics.median(found) for found in zip(*pairs, strict=True))
    ratio = statistics.median(http / alone for alone, http in pairs)
    return {"rps": rps, "raw_reads_per_second": reads, "ratio_to_raw_driver": ratio, "pairs": pairs}


@contextmanager
def ready_site(lists: int) -> Iterator[Place]:
    """A node with so many lists, and a configuration that serves them by one process."""
    with (
        tempfile.TemporaryDirectory(prefix="nightlist-bench-") as folder,
        production_node(Path(folder) / "node") as node,
    ):
        create_roles(node)
        site = Place(Path(folder), {"store": node.section("bench"), "serve": {"workers": 1}, "auth": {"open": True}})
        with closing(open_store(site.settings().store)) as store:
            store.create()
        publish(site, lists)
        wait_until_compacted(node)
        yield site


def publish(site: Place, lists: int) -> None:
    """A live run of so many users, and the same lists once more as a run that may be loaded."""
    served, loaded = (site.settings().paths.runs / run_id / "build" for run_id in (SERVED, LOADED))
    served.mkdir(parents=True)
    loaded.mkdir(parents=True)
    rng = np.random.default_rng(7)
    for first in range(0, lists, FILE_LISTS):
        file = served / f"bucket-{first // FILE_LISTS:05d}.parquet"
        pq.write_table(made_up(range(first, min(first + FILE_LISTS, lists)), rng), file)
        (loaded / file.name).symlink_to(file)
    publish_run.main(site.config, SERVED)


def made_up(users: range, rng: np.random.Generator) -> pa.Table:
    """Lists of ITEMS items each."""
    count, now = len(users), datetime.now(UTC).replace(microsecond=0)
    offsets = pa.array(np.arange(0, (count + 1) * ITEMS, ITEMS, dtype=np.int32))
    catalogue = pa.array([f"v{item:06d}" for item in range(CATALOGUE)])
    items = catalogue.take(pa.array(rng.integers(0, CATALOGUE, count * ITEMS)))
    scores = pa.array(np.sort(rng.random((count, ITEMS), np.float32))[:, ::-1].ravel())
    sources = pa.array(["als"] * (count * ITEMS))
    columns = [
        pa.array(["user"] * count),
        pa.array([f"u{user}" for user in users]),
        *(pa.ListArray.from_arrays(offsets, values) for values in (items, scores, sources)),
        pa.array([now] * count, LISTS.field("scored_at").type),
    ]
    return pa.Table.from_arrays(columns, schema=LISTS)


def raw(site: Place, lists: int, seconds: float, under: Sequence[str]) -> float:
    """Reads a second by the driver alone, in a process of its own."""
    command = [sys.executable, "-m", "tests.bench._raw", str(site.config), table_of(SERVED), str(lists), str(seconds)]
    done = subprocess.run([*under, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout))


@contextmanager
def loading(site: Place, rows_per_second: int) -> Iterator[None]:
    """While this lasts, another run is loaded. Raises RuntimeError where the load was over before."""
    command = ["nice", sys.executable, "-m", "tests.publish_run", str(site.config), LOADED]
    loader = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **throttled(rows_per_second)}, start_new_session=True
    )
    try:
        with closing(open_store(site.settings().store)) as store:
            while LOADED not in {run.run_id for run in store.runs()} and loader.poll() is None:
                time.sleep(0.1)
        yield
        if loader.poll() is not None:
            raise RuntimeError("the load was over before the reads: give it more --lists, or less --load-rate")
        os.killpg(loader.pid, signal.SIGKILL)
    finally:
        loader.kill()
        loader.wait()
