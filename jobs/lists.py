"""The lists of a built run, as stores take them and readers give them."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.columns import ITEMS, SCORES, SOURCES
from schemas.lists import ServedList

LISTS = pa.schema(
    [
        ("kind", pa.string()),
        ("key", pa.string()),
        (ITEMS, pa.list_(pa.string())),
        (SCORES, pa.list_(pa.float32())),
        (SOURCES, pa.list_(pa.string())),
        ("scored_at", pa.timestamp("us", "UTC")),
    ]
)
"""One row a served list; it is what schemas.lists.ServedList holds."""


def served_lists(built: Path) -> Iterator[ServedList]:
    """Every list of the run in the folder that stage 7 wrote."""
    for path in sorted(built.glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(batch_size=2_000):
            for row in batch.to_pylist():
                columns = (tuple(row[name]) for name in (ITEMS, SCORES, SOURCES))
                yield ServedList(row["kind"], row["key"], *columns, row["scored_at"])


def count_lists(built: Path) -> int:
    """How many lists `served_lists` yields."""
    return sum(pq.read_metadata(path).num_rows for path in built.glob("*.parquet"))
