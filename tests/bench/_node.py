"""The Cassandra node that is measured: as fast as in production, where those of tests are small and start quickly."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cassandra import Node

HEAP = ("-Xms2g", "-Xmx2g", "-XX:MaxDirectMemorySize=1g")
SHIPPED = (
    *(
        "-XX:+AlwaysPreTouch",
        "-XX:+PerfDisableSharedMem",
        "-XX:+UseTLAB",
        "-XX:+ResizeTLAB",
        "-XX:+UseNUMA",
        "-Xss256k",
    ),
    *("-XX:+UseG1GC", "-XX:+ParallelRefProcEnabled", "-XX:MaxTenuringThreshold=1", "-XX:G1HeapRegionSize=16m"),
    *("-XX:G1RSetUpdatingPauseTimePercent=5", "-XX:MaxGCPauseMillis=300", "-XX:InitiatingHeapOccupancyPercent=70"),
    *("-Dio.netty.tryReflectionSetAccessible=true", "-Dio.netty.allocator.useCacheForAllThreads=true"),
    "-Dio.netty.allocator.maxOrder=11",
)
"""What Cassandra's jvm-server.options and jvm17-server.options say. It matters: without AlwaysPreTouch the system hands the heap out
page by page, and collections of 20 ms last 130; above MaxTenuringThreshold=1 young objects are copied again and again."""
YAML = {"memtable_heap_space": "512MiB", "memtable_offheap_space": "512MiB", "file_cache_size": "256MiB"}
"""What a node takes by default for this heap."""


@contextmanager
def production_node(folder: Path) -> Iterator[Node]:
    """One node while this lasts."""
    node = Node(folder, java=(*HEAP, *SHIPPED), yaml=YAML)
    try:
        yield node.start()
    finally:
        node.kill()


def wait_until_compacted(node: Node) -> None:
    """Return when the node has written and merged all it was given."""
    node.nodetool("flush")
    while not re.search(r"pending tasks +0", node.nodetool("compactionstats")):
        time.sleep(1)
