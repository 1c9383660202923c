"""The Cassandra node that is measured: as fast as in production, where those of tests are small and start quickly."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cassandra import Node

JAVA = ("-Xms2g", "-Xmx2g", "-XX:+AlwaysPreTouch", "-XX:MaxDirectMemorySize=1g", "-XX:+UseG1GC")
"""Compiles as in production, and has its heap from the start, as Cassandra's own jvm-server.options say: a heap whose pages the
system hands out one by one makes collections of 20 ms last 130."""
YAML = {"memtable_heap_space": "512MiB", "memtable_offheap_space": "512MiB", "file_cache_size": "256MiB"}
"""What a node takes by default for this heap."""


@contextmanager
def production_node(folder: Path) -> Iterator[Node]:
    """One node while this lasts."""
    node = Node(folder, java=JAVA, yaml=YAML)
    try:
        yield node.start()
    finally:
        node.kill()


def wait_until_compacted(node: Node) -> None:
    """Return when the node has written and merged all it was given."""
    node.nodetool("flush")
    while not re.search(r"pending tasks +0", node.nodetool("compactionstats")):
        time.sleep(1)
