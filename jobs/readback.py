"""Whether a store holds a run as it was built: all of it is read, by Spark's workers where there are any, and none is kept."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jobs.lists import BuiltLists, batches_of
from jobs.tally import Chunk, inside, of_batch, of_lists, tally, told_apart
from jobs.workers import on_workers
from lookup_api.readers import Reader, open_reader
from schemas.settings import StoreSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Result = TypeVar("Result")

PARTS_A_CORE = 4
"""Of a store, read one after the other by one process: no page of a scan is far behind another."""
LOOKED_AT = 16
"""Slots (of jobs.tally.SLOTS) whose lists are compared one by one where the tallies differ."""


@dataclass(frozen=True)
class Place:
    """Where a run's lists lie, in pieces; `chunks` of some of them travels to Spark's workers, where there is a Spark."""

    pieces: Sequence[Any]
    chunks: Callable[[Iterable[Any]], Iterator[Chunk]]
    spark: "SparkSession | None"

    def gather(self, work: Callable[[Iterable[Chunk]], Result], beat: Callable[[], object]) -> Result:
        """The sum of what `work` makes of all chunks; `beat` is called every now and then."""
        if self.spark is None:
            return work(_beating(self.chunks(self.pieces), beat))
        tasks = min(len(self.pieces), self.spark.sparkContext.defaultParallelism)
        return reduce(add, on_workers(self.spark, partial(_work, self.chunks, work), self.pieces, tasks, beat))


def difference(
    lists: BuiltLists, reader: Reader, settings: StoreSettings, run_id: str, beat: Callable[[], object]
) -> str | None:
    """What is wrong with the store's lists of a run, in words, or None: every list is there, as built, and no other.

    `beat` is called meanwhile; what it raises ends it. Raises RunUnreadable, StoreUnavailable.
    """
    places = [_built(lists), _stored(lists, reader, settings, run_id)]
    built, stored = (place.gather(tally, beat) for place in places)
    slots = built.differing(stored)
    if not slots:
        return None
    found = told_apart(*(place.gather(partial(inside, slots[:LOOKED_AT]), beat) for place in places))
    if len(slots) <= LOOKED_AT:
        return str(found)
    return f"{int(stored.rows.sum())} lists where {int(built.rows.sum())} were built, at least {found}"


def _built(lists: BuiltLists) -> Place:
    files = lists.files()
    return Place(files, _built_chunks, lists.spark if files else None)


def _stored(lists: BuiltLists, reader: Reader, settings: StoreSettings, run_id: str) -> Place:
    """A store of one part is read here: it may lie on this machine only."""
    cores = lists.spark.sparkContext.defaultParallelism if lists.spark else 1
    parts = reader.parts(run_id, PARTS_A_CORE * cores if lists.spark else 1)
    if lists.spark and len(parts) > 1:
        return Place(parts, partial(_stored_chunks, settings, run_id), lists.spark)
    return Place(parts, partial(_chunks, reader, run_id), None)


def _built_chunks(files: Iterable[Path]) -> Iterator[Chunk]:
    return (of_batch(batch) for path in files for batch in batches_of(path))


def _stored_chunks(settings: StoreSettings, run_id: str, parts: Iterable[str]) -> Iterator[Chunk]:
    with closing(open_reader(settings)) as reader:
        yield from _chunks(reader, run_id, parts)


def _chunks(reader: Reader, run_id: str, parts: Iterable[str]) -> Iterator[Chunk]:
    return (chunk for part in parts for chunk in of_lists(reader.scan(run_id, part)))


def _work(
    chunks: Callable[[Iterable[Any]], Iterator[Chunk]], work: Callable[[Iterable[Chunk]], Result], pieces: Iterator[Any]
) -> Result:
    return work(chunks(pieces))


def _beating(chunks: Iterator[Chunk], beat: Callable[[], object]) -> Iterator[Chunk]:
    for chunk in chunks:
        beat()
        yield chunk
