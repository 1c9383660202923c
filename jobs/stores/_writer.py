"""Rows on their way into one table of Cassandra: encoded, grouped by the nodes that keep them, bounded, and tried again."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Condition
from typing import Any

import numpy as np
from cassandra import OperationTimedOut, Unavailable, WriteFailure, WriteTimeout
from cassandra.cluster import NoHostAvailable, Session
from cassandra.cmurmur3 import murmur3
from cassandra.connection import ConnectionException
from cassandra.metadata import Metadata
from cassandra.protocol import IsBootstrappingErrorMessage, OverloadedErrorMessage
from cassandra.query import BatchStatement, BatchType, BoundStatement, PreparedStatement

from jobs.lists import Batches, check_batch
from jobs.stores._encoding import Encoded, Row, encode
from jobs.stores._throttle import Throttle
from lookup_api.readers._cassandra import Connection, telling
from schemas.settings import CassandraSettings

PARTITIONS = 10
"""Of one batch, at most: above it every node warns (unlogged_batch_across_partitions_warn_threshold)."""
BATCH_BYTES = 32 * 1024
"""Of one batch, at most. Cassandra refuses batches of more than 50 KiB (batch_size_fail_threshold), and counts some 100
bytes a row that are not ours. Ten lists of 50 are some 17 KiB; a list too large for company travels alone, unlimited."""
PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds between tries to write what a busy cluster did not take."""
BUSY = (
    *(OperationTimedOut, WriteTimeout, WriteFailure, Unavailable, NoHostAvailable, ConnectionException),
    *(OverloadedErrorMessage, IsBootstrappingErrorMessage),
)
"""What may be otherwise in a moment: too much to do, or too few nodes. Anything else ends the part."""


def write_parts(
    settings: CassandraSettings, table: str, fence: int, tasks: int, parts: Iterator[Batches]
) -> Iterator[int]:
    """Write one part after the other over one connection of this process's own; yields the rows of each when a quorum
    has acknowledged all of them.

    `tasks` of these are at work, maybe on several machines: each takes its share of `rows_per_second`, and what one that
    ended early leaves of it is not handed on. Raises StoreUnavailable; ValueError on a key given twice in a part and on a
    list that is none.
    """
    connection = Connection(settings)
    throttle = Throttle(settings.rows_per_second / tasks, settings.in_flight, settings.slow_seconds)
    try:
        with telling(settings):
            session, prepared = connection.session(), connection.prepared(insert(table))
            ring = Ring(session.cluster.metadata, settings.keyspace, settings.local_dc)
            for part in parts:
                writer = Writer(session, prepared, throttle, ring, min(PARTITIONS, settings.in_flight))
                yield write_part(writer, part, fence)
    finally:
        connection.close()


def insert(table: str) -> str:
    """How a row is written; the markers stand for what `encode` makes."""
    return f"INSERT INTO {table} (kind, key, items, scores, sources, scored_at) VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ?"


def write_part(writer: "Writer", part: Batches, fence: int) -> int:
    """The rows of a part, when all are written."""
    written: set[bytes] = set()
    for batch in part:
        check_batch(batch)
        encoded = encode(batch, fence)
        _check_new(encoded, written)
        writer.write(encoded)
    writer.drain()
    return len(written)


def _check_new(encoded: Encoded, written: set[bytes]) -> None:
    """Add the keys to those written so far: Cassandra would take the second list of a user for a newer one."""
    before = len(written)
    for row, key in zip(encoded.rows, encoded.keys, strict=True):
        written.add(key)
        if len(written) == before:
            kind, name = row[0].decode(), row[1].decode()
            raise ValueError(f"the list of {kind} {name!r} can't be loaded: it is given twice")
        before += 1


class Ring:
    """Which rows live on the same nodes of the data centre. As it was when it was made: a load outlives few changes."""

    def __init__(self, metadata: Metadata, keyspace: str, local_dc: str) -> None:
        tokens = metadata.token_map.ring if metadata.token_map else []
        known: dict[frozenset[Any], int] = {}
        for_token = [metadata.token_map.get_replicas(keyspace, token) for token in tokens]
        local = [frozenset(host for host in hosts if host.datacenter == local_dc) for hosts in for_token]
        self._tokens = np.array([token.value for token in tokens], np.int64)
        self._groups = np.array([known.setdefault(hosts, len(known)) for hosts in local], np.int64)

    def groups(self, keys: Sequence[bytes]) -> np.ndarray:
        """A number a row, equal where the replicas are; all 0 where the driver knows no ring."""
        if not self._tokens.size:
            return np.zeros(len(keys), np.int64)
        tokens = np.fromiter(map(murmur3, keys), np.int64, len(keys))
        return self._groups[np.searchsorted(self._tokens, tokens) % self._tokens.size]


def chunks(encoded: Encoded, groups: np.ndarray, most: int) -> Iterator[list[Row]]:
    """All rows, in pieces of one group, of at most so many rows and, where it is more than one, BATCH_BYTES."""
    piece: list[Row] = []
    size, last = 0, None
    for place in np.argsort(groups, kind="stable").tolist():
        group, bytes_ = groups[place], int(encoded.sizes[place])
        if piece and (group != last or len(piece) == most or size + bytes_ > BATCH_BYTES):
            yield piece
            piece, size = [], 0
        piece.append(encoded.rows[place])
        size, last = size + bytes_, group
    if piece:
        yield piece


@dataclass
class Chunk:
    """Rows that travel together, and how often they did."""

    statement: Any
    rows: int
    tries: int = 0
    not_before: float = 0.0


class Writer:
    """Sends rows while there is room, from one thread; the driver's own thread tells what became of them."""

    def __init__(
        self, session: Session, insert: PreparedStatement, throttle: Throttle, ring: Ring, most_a_batch: int
    ) -> None:
        self._session, self._insert, self._throttle, self._ring = session, insert, throttle, ring
        self._most = most_a_batch
        self._changed = Condition()
        self._under_way = 0
        self._refused: list[Chunk] = []
        self._fatal: Exception | None = None

    def write(self, encoded: Encoded) -> None:
        """Send the rows, as room allows. Raises the driver's errors, of these rows or of earlier ones."""
        for rows in chunks(encoded, self._ring.groups(encoded.keys), self._most):
            chunk = Chunk(_statement(self._insert, rows), len(rows))
            self._send_refused_until(chunk.rows)
            if pause := self._throttle.pause(chunk.rows):
                time.sleep(pause)
            self._send(chunk)

    def drain(self) -> None:
        """Return when every row was acknowledged. Raises the driver's errors."""
        self._send_refused_until(None)

    def _send_refused_until(self, room: int | None) -> None:
        while chunk := self._await(room):
            time.sleep(max(0.0, chunk.not_before - time.monotonic()))
            self._send(chunk)

    def _await(self, room: int | None) -> Chunk | None:
        """Wait for something to send again, or else (None) for room for so many rows; `room` None: for the last answer."""
        with self._changed:
            while not self._refused and not self._has(room):
                self._changed.wait()
            if self._fatal:
                raise self._fatal
            return self._refused.pop() if self._refused else None

    def _has(self, room: int | None) -> bool:
        if self._fatal or not self._under_way:
            return True
        return room is not None and self._under_way + room <= self._throttle.limit

    def _send(self, chunk: Chunk) -> None:
        with self._changed:
            self._under_way += chunk.rows
        start = time.monotonic()
        future = self._session.execute_async(chunk.statement)
        future.add_callbacks(self._done, self._failed, callback_args=(chunk, start), errback_args=(chunk,))

    def _done(self, _: Any, chunk: Chunk, start: float) -> None:
        with self._changed:
            self._throttle.took(time.monotonic() - start)
            self._under_way -= chunk.rows
            self._changed.notify()

    def _failed(self, error: Exception, chunk: Chunk) -> None:
        with self._changed:
            self._under_way -= chunk.rows
            if isinstance(error, BUSY) and chunk.tries < len(PAUSES):
                self._throttle.busy()
                chunk.not_before = time.monotonic() + PAUSES[chunk.tries]
                chunk.tries += 1
                self._refused.append(chunk)
            else:
                self._fatal = self._fatal or error
            self._changed.notify()


def _statement(insert: PreparedStatement, rows: Iterable[Row]) -> BoundStatement | BatchStatement:
    """The rows as one message. Unlogged: each row is whole by itself, and a batch that is half done is sent again."""
    bound = [_bound(insert, row) for row in rows]
    if len(bound) == 1:
        return bound[0]
    batch = BatchStatement(BatchType.UNLOGGED)
    batch.is_idempotent = True
    for statement in bound:
        batch.add(statement)
    return batch


def _bound(insert: PreparedStatement, row: Row) -> BoundStatement:
    statement = BoundStatement(insert)
    statement.values = row  # already as the protocol writes them: bind() would serialise them once more
    return statement
