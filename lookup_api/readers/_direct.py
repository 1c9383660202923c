"""One read by key, by way of the driver's connections and without the rest of its way.

For each request the driver makes a statement, a message and a future with its lock, event and timers, and has every answer tell
all columns again (it never asks a node to leave that out). Of a read of one row by a prepared statement, of which a node that
fails is followed by the next one, none of that is needed: it is half of what a read costs. Connections, pools, topology and
what a statement is prepared on stay the driver's, and what none of these nodes answers is asked by the driver itself.
"""

import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from cassandra.bytesio import BytesIOReader
from cassandra.cluster import NoHostAvailable, Session
from cassandra.deserializers import make_deserializers
from cassandra.obj_parser import ListParser
from cassandra.parsing import ParseDesc
from cassandra.policies import ColDesc
from cassandra.protocol import ProtocolHandler
from cassandra.query import PreparedStatement

EXECUTE, RESULT = 0x0A, 0x08
HEADER = struct.Struct(">BBhBi")
"""Of a frame: version, flags, stream, opcode, length of the body."""
VALUES, SKIP_METADATA = 0x01, 0x02
ROWS, ONE_TABLE, NO_METADATA = 2, 0x01, 0x04
ROWS_HEAD = struct.Struct(">iii")
"""Of the rows of an answer without metadata: kind, flags, number of columns."""
NODES = 3
"""Nodes of a read's plan that are asked at most, one after another or, by hedges, at once."""

_PARSER = ListParser()


class Routed(NamedTuple):
    """What the driver's policies look at of a statement."""

    keyspace: str
    routing_key: bytes


class DirectRead:
    """A prepared statement whose parameters are the columns of the partition key, all of them text, and which finds one row at
    most. Protocol 5."""

    def __init__(self, session: Session, statement: PreparedStatement, profile: str) -> None:
        """`profile` says how many replicas have to answer, and which nodes are asked."""
        found = session.get_execution_profile(profile)
        self._plan = found.load_balancing_policy.make_query_plan
        self._pools = session._pools
        columns = statement.result_metadata
        self._keyspace = columns[0][0]
        self._parsing = ParseDesc(
            [column[2] for column in columns],
            [column[3] for column in columns],
            None,
            [ColDesc(*column[:3]) for column in columns],
            make_deserializers([column[3] for column in columns]),
            session.cluster.protocol_version,
        )
        self._metadata = columns
        level: int = found.consistency_level
        ids = b"".join(_short_bytes(part) for part in (statement.query_id, statement.result_metadata_id))
        self._head = ids + struct.pack(">HI", level, VALUES | SKIP_METADATA)
        self._heads = tuple(
            ROWS_HEAD.pack(ROWS, flags, len(columns)) for flags in (NO_METADATA, NO_METADATA | ONE_TABLE)
        )

    def ask(self, key: Sequence[str], tell: Callable[[Any], None]) -> "Asked":
        """Send the read; `tell` gets its row, None where there is none, or an exception, of each time that it is sent."""
        values = [value.encode() for value in key]
        routed = Routed(self._keyspace, b"".join(_short_bytes(value) + b"\0" for value in values))
        body = b"".join((self._head, struct.pack(">H", len(values)), *(struct.pack(">i", len(v)) + v for v in values)))
        asked = Asked(self, body, deque(islice(self._plan(None, routed), NODES)), tell)
        if not asked.send():
            tell(NoHostAvailable("no node can be asked", {}))
        return asked

    def decode(
        self, version: int, types: Any, stream: int, flags: int, opcode: int, body: bytes, expand: Any, columns: Any
    ) -> Any:
        """The rows of an answer, and of any other answer what the driver makes of it."""
        if opcode == RESULT and not flags and body.startswith(self._heads):
            return _PARSER.parse_rows(BytesIOReader(body[ROWS_HEAD.size :]), self._parsing)
        message = ProtocolHandler.decode_message(version, types, stream, flags, opcode, body, expand, columns)
        return message.parsed_rows if getattr(message, "kind", None) == ROWS else message


class Asked:
    """A read that was sent, and may be sent to the next node. A node that fails is followed by the next one by itself."""

    def __init__(self, read: DirectRead, body: bytes, nodes: "deque[Any]", tell: Callable[[Any], None]) -> None:
        self._read = read
        self._body = body
        self._nodes = nodes
        self._tell = tell

    def send(self) -> bool:
        """Send it to the next node that takes it; False where there is none."""
        with suppress(IndexError):  # a hedge and a failure may come at once, for the last node: one of them gets it
            while True:
                pool = self._read._pools.get(self._nodes.popleft())
                if pool and not pool.is_shutdown and self._send(pool):
                    return True
        return False

    def end(self) -> None:
        """Nobody waits for it any more. A frozen node's reads fail together when it is given up, and would all go to the next one."""
        self._nodes.clear()

    def _send(self, pool: Any) -> bool:
        connection = None
        try:
            connection, stream = pool.borrow_connection(timeout=0)
            connection.send_msg(
                self._body,
                stream,
                cb=partial(self._answered, pool, connection),
                encoder=_encode,
                decoder=self._read.decode,
                result_metadata=self._read._metadata,
            )
        except Exception:  # as the driver does: whatever it is, the next node is asked
            if connection is not None:
                pool.return_connection(connection)
            return False
        return True

    def _answered(self, pool: Any, connection: Any, reply: Any) -> None:
        """By the thread of the driver's event loop, which must not wait."""
        pool.return_connection(connection)
        if isinstance(reply, list):
            self._tell(reply[0] if reply else None)
        elif not self.send():
            self._tell(_error(reply))


def _encode(body: bytes, stream: int, version: int, **_: Any) -> bytes:
    return HEADER.pack(version, 0, stream, EXECUTE, len(body)) + body


def _short_bytes(value: bytes) -> bytes:
    return struct.pack(">H", len(value)) + value


def _error(reply: Any) -> Exception:
    error: Exception = NoHostAvailable("an answer that is neither rows nor an error", {})
    if hasattr(reply, "to_exception"):
        error = reply.to_exception()
    elif isinstance(reply, Exception):
        error = reply
    return error
