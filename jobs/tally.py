"""Whether two places hold the same lists, told by sums: some rows and digests a slot of keys, in whatever order they come."""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import blake2b
from itertools import islice, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.columns import ITEMS, SCORES, SOURCES
from schemas.lists import ServedList

Key = tuple[str, str]

SLOTS = 4096
"""Of keys, by hash. Two sums of one slot are 64 KiB a tally; where they differ, 1 in 4096 keys has to be looked at."""
CHUNK = 2_000
EXAMPLES = 3
EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


@dataclass(frozen=True)
class Chunk:
    """Some lists: a slot and a digest each, the same in every process; `key(place)` is (kind, key) of one of them."""

    slots: np.ndarray
    digests: np.ndarray
    key: Callable[[int], Key]


@dataclass(frozen=True)
class Tally:
    """Rows, and the sum of their digests modulo 2**64, in each slot: equal where the lists are.

    Lists that differ in any bit have other digests, but for one pair in 2**64; sums don't depend on the order.
    """

    rows: np.ndarray = field(default_factory=lambda: np.zeros(SLOTS, np.uint64))
    sums: np.ndarray = field(default_factory=lambda: np.zeros(SLOTS, np.uint64))

    def add(self, chunk: Chunk) -> None:
        """Count these lists too."""
        np.add.at(self.rows, chunk.slots, 1)
        np.add.at(self.sums, chunk.slots, chunk.digests)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.rows + other.rows, self.sums + other.sums)

    def differing(self, other: "Tally") -> list[int]:
        """The slots in which the two do not hold the same lists."""
        return [int(slot) for slot in np.flatnonzero((self.rows != other.rows) | (self.sums != other.sums))]


def tally(chunks: Iterable[Chunk]) -> Tally:
    """Of all of them."""
    total = Tally()
    for chunk in chunks:
        total.add(chunk)
    return total


def inside(slots: Iterable[int], chunks: Iterable[Chunk]) -> Counter[tuple[Key, int]]:
    """The lists in these slots: key and digest, and how often."""
    chosen, found = np.array(sorted(slots)), Counter[tuple[Key, int]]()
    for chunk in chunks:
        places = np.flatnonzero(np.isin(chunk.slots, chosen)).tolist()
        found.update((chunk.key(place), int(chunk.digests[place])) for place in places)
    return found


def of_batch(batch: pa.RecordBatch) -> Chunk:
    """Lists as the run's Parquet has them."""
    scores = batch[SCORES]
    packed = [
        None,
        pa.py_buffer(4 * (scores.offsets.to_numpy() - scores.offsets[0].as_py())),
        pa.py_buffer(scores.flatten().to_numpy().astype("<f4")),
    ]
    texts = [
        pc.binary_join_element_wise(batch["kind"], batch["key"], "\0"),
        batch["scored_at"].cast(pa.int64()).cast(pa.string()),
        pc.list_value_length(batch[ITEMS]).cast(pa.string()),
        pc.binary_join(batch[ITEMS], "\0"),
        pc.binary_join(batch[SOURCES], "\0"),
    ]
    forms = [*(text.cast(pa.binary()) for text in texts), pa.Array.from_buffers(pa.binary(), len(batch), packed)]
    whole = pc.binary_join_element_wise(*forms, pa.scalar(b"\0", pa.binary()))

    def key(place: int) -> Key:
        return batch["kind"][place].as_py(), batch["key"][place].as_py()

    return _chunk(_views(forms[0]), _views(whole), key)


def of_lists(lists: Iterable[ServedList]) -> Iterator[Chunk]:
    """Lists as a reader gives them."""
    rest = iter(lists)
    while found := list(islice(rest, CHUNK)):
        keys = [(served.kind, served.key) for served in found]
        yield _chunk([f"{kind}\0{key}".encode() for kind, key in keys], map(_form, found), keys.__getitem__)


def _form(served: ServedList) -> bytes:
    """All that a list is, the same bytes wherever it comes from: ids hold no zero, and the count tells `` from none."""
    millis, count = (served.scored_at - EPOCH) // timedelta(milliseconds=1), len(served.items)
    items, sources = "\0".join(served.items), "\0".join(served.sources)
    text = f"{served.kind}\0{served.key}\0{millis}\0{count}\0{items}\0{sources}\0"
    return text.encode() + np.array(served.scores, "<f4").tobytes()


def _chunk(keys: Iterable[bytes], forms: Iterable[bytes], key: Callable[[int], Key]) -> Chunk:
    slots = np.fromiter((zlib.crc32(found) % SLOTS for found in keys), np.int64)
    digests = b"".join(blake2b(form, digest_size=8).digest() for form in forms)
    return Chunk(slots, np.frombuffer(digests, "<u8"), key)


def _views(values: pa.BinaryArray) -> list[memoryview]:
    _, offsets, data = values.buffers()
    bounds = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1].tolist()
    whole = memoryview(data or b"")
    return [whole[begin:end] for begin, end in pairwise(bounds)]


@dataclass(frozen=True)
class Difference:
    """Keys of what was built and is not there, is there and was not built, is another list there, or was built twice."""

    missing: list[Key]
    foreign: list[Key]
    different: list[Key]
    twice: list[Key]

    def __str__(self) -> str:
        said = (
            f"{len(self.missing)} lists missing, {len(self.foreign)} foreign, {len(self.different)} different, "
            f"{len(self.twice)} of a key that another one has"
        )
        found = [*self.missing, *self.foreign, *self.different, *self.twice][:EXAMPLES]
        return f"{said} ({', '.join(f'{kind} {key!r}' for kind, key in found)})" if found else said


def told_apart(built: Counter[tuple[Key, int]], stored: Counter[tuple[Key, int]]) -> Difference:
    """What the two hold differently; both hold all lists of the same slots."""
    ours, theirs = _keys(built), _keys(stored)
    both = ours.keys() & theirs.keys()
    return Difference(
        missing=sorted(ours.keys() - theirs.keys()),
        foreign=sorted(theirs.keys() - ours.keys()),
        different=sorted({key for key, _ in built.keys() ^ stored.keys()} & both),
        twice=sorted(key for key, count in ours.items() if count > 1),
    )


def _keys(found: Counter[tuple[Key, int]]) -> Counter[Key]:
    total = Counter[Key]()
    for (key, _), count in found.items():
        total[key] += count
    return total
