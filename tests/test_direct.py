"""Reads by the short way through the driver, over scripted nodes: what is sent, what is made of the answer, who is asked next."""

import io
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from cassandra import ConsistencyLevel, ReadFailure, cqltypes
from cassandra.cluster import NoHostAvailable
from cassandra.pool import NoConnectionsAvailable
from cassandra.protocol import ColumnMetadata, ExecuteMessage, ProtocolHandler, ReadFailureMessage
from cassandra.query import BoundStatement, PreparedStatement
from cassandra.segment import CrcException, SegmentCodec
from hypothesis import given
from hypothesis import strategies as st

from lookup_api.readers._direct import NODES, SKIP_METADATA, DirectRead
from lookup_api.readers._libev import QuickCodec

TEXT, DATE = cqltypes.UTF8Type, cqltypes.DateType
TEXTS, FLOATS = (cqltypes.ListType.apply_parameters([of]) for of in (TEXT, cqltypes.FloatType))
NAMES = ("kind", "key", "items", "scores", "sources", "scored_at")
COLUMNS = [
    ("space", "lists", name, of) for name, of in zip(NAMES, (TEXT, TEXT, TEXTS, FLOATS, TEXTS, DATE), strict=True)
]
STATEMENT = PreparedStatement(
    [ColumnMetadata(*column) for column in COLUMNS[:2]], b"query id", [0, 1], "SELECT", None, 5, COLUMNS, b"metadata id"
)
KEY = ("user", "ü1")
FLAGS_AT = len(STATEMENT.query_id) + len(STATEMENT.result_metadata_id) + 6
RESULT, ERROR = 0x08, 0x00


def long_bytes(value: bytes | None) -> bytes:
    return struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value


def a_list(*values: bytes) -> bytes:
    return struct.pack(">i", len(values)) + b"".join(map(long_bytes, values))


ROW = (b"user", "ü1".encode(), a_list(b"v1", b"v2"), a_list(*(struct.pack(">f", f) for f in (1.5, 0.1))), a_list(b"als", b""),
       struct.pack(">q", 1_795_823_827_908))  # fmt: skip


def rows(*found: tuple[bytes | None, ...], flags: int = 5, columns: int = 6) -> bytes:
    """The body of an answer."""
    values = b"".join(long_bytes(value) for row in found for value in row)
    return struct.pack(">iiii", 2, flags, columns, len(found)) + values


class Node:
    """A node with its pool and its one connection: answers each request at once with the next of its `answers`; a bytes
    is the body of a result (with the flags of its frame: a pair), an exception one that the driver hands out, None silence."""

    def __init__(self, *answers: Any, full: bool = False, broken: bool = False, is_shutdown: bool = False) -> None:
        self.answers, self.full, self.broken, self.is_shutdown = list(answers), full, broken, is_shutdown
        self.sent: list[bytes] = []
        self.borrowed = 0

    def borrow_connection(self, timeout: float) -> tuple["Node", int]:
        assert timeout == 0, "the thread of the event loop must not wait"
        if self.full:
            raise NoConnectionsAvailable
        self.borrowed += 1
        return self, 7

    def return_connection(self, connection: "Node") -> None:
        self.borrowed -= 1

    def send_msg(
        self, body: Any, stream: int, cb: Any, encoder: Callable[..., bytes], decoder: Any, result_metadata: Any
    ) -> None:
        if self.broken:
            raise OSError("broken")
        self.sent.append(encoder(body, stream, 5, compressor=None, allow_beta_protocol_version=False))
        answer = self.answers.pop(0)
        if isinstance(answer, bytes):
            answer = 0, answer
        if isinstance(answer, tuple):
            flags, body = answer
            answer = decoder(5, {}, stream, flags, RESULT, body, None, result_metadata)
        if answer is not None:
            cb(answer)


def ask(*nodes: Node | None, key: tuple[str, ...] = KEY) -> tuple[list[Any], Any, Any]:
    """What is told, the read, and the statement that the policy saw; None is a node without a pool."""
    seen: list[Any] = []

    def plan(keyspace: None, statement: Any) -> Any:
        seen.append(statement)
        return range(len(nodes))

    profile = SimpleNamespace(
        load_balancing_policy=SimpleNamespace(make_query_plan=plan), consistency_level=ConsistencyLevel.LOCAL_ONE
    )
    session = SimpleNamespace(
        get_execution_profile=lambda name: profile,
        _pools=dict(enumerate(nodes)),
        cluster=SimpleNamespace(protocol_version=5),
    )
    told: list[Any] = []
    asked = DirectRead(session, STATEMENT, "one").ask(key, told.append)
    return told, asked, seen[0]


@given(st.tuples(st.text(max_size=20), st.text(max_size=300)))
def test_a_request_is_the_drivers_but_for_the_metadata(key: tuple[str, str]) -> None:
    """It asks for no columns; its route is that of the driver's own statement."""
    node = Node(None)
    _, _, routed = ask(node, key=key)
    values = [value.encode() for value in key]
    message = ExecuteMessage(b"query id", values, ConsistencyLevel.LOCAL_ONE, result_metadata_id=b"metadata id")
    theirs = bytearray(ProtocolHandler.encode_message(message, 7, 5, None, False))
    theirs[9 + FLAGS_AT + 3] |= SKIP_METADATA
    bound = BoundStatement(STATEMENT).bind(key)

    assert node.sent == [bytes(theirs)]
    assert (routed.keyspace, routed.routing_key) == ("space", bound.routing_key)


@pytest.mark.parametrize("flags", [4, 5])
def test_an_answer_is_read_as_the_driver_reads_it(flags: int) -> None:
    body = rows(ROW, flags=flags)
    (theirs,) = ProtocolHandler.decode_message(5, {}, 7, 0, RESULT, body, None, COLUMNS).parsed_rows
    node = Node(body)

    assert ask(node)[0] == [tuple(theirs)]
    assert node.borrowed == 0


def test_no_row_is_none_and_an_absent_column_too() -> None:
    half = (*ROW[:2], None, None, None, None)

    assert ask(Node(rows()))[0] == [None]
    assert ask(Node(rows(half)))[0] == [("user", "ü1", None, None, None, None)]


FAILED = ReadFailureMessage(0, "", {"consistency": 10, "required_responses": 1, "received_responses": 0, "failures": 1})  # fmt: skip


def test_a_node_that_fails_is_followed_by_the_next() -> None:
    """Whatever is the matter with it; each connection is given back, and only the last error is told."""
    nodes = Node(FAILED), Node(broken=True), Node(ConnectionResetError()), Node(rows(ROW))

    told, asked, _ = ask(nodes[0], nodes[1], nodes[3])
    assert [row[1] for row in told] == ["ü1"]
    told, asked, _ = ask(Node(OSError()), Node(full=True), Node(FAILED))
    assert [type(error) for error in told] == [ReadFailure]
    assert not asked.send()
    assert [node.borrowed for node in nodes] == [0] * 4


def test_where_nobody_can_be_asked_that_is_told() -> None:
    assert [type(error) for error in ask(None, Node(is_shutdown=True), Node(full=True))[0]] == [NoHostAvailable]
    assert [type(error) for error in ask()[0]] == [NoHostAvailable]


def test_a_silent_node_is_joined_by_the_next_and_by_no_more_than_so_many() -> None:
    nodes = [Node(None) for _ in range(NODES + 1)]
    told, asked, _ = ask(*nodes)

    assert [asked.send() for _ in nodes] == [True] * (NODES - 1) + [False] * 2
    assert [len(node.sent) for node in nodes] == [1] * NODES + [0]
    assert told == []


def test_no_other_node_is_asked_for_what_nobody_waits_for() -> None:
    """When a silent node is given up, its reads fail all at once."""
    silent, other = Node(None), Node(rows(ROW))
    _, asked, _ = ask(silent, other)
    asked.end()

    asked._answered(silent, silent, ConnectionResetError())

    assert not asked.send()
    assert other.sent == []


def test_an_answer_with_warnings_or_columns_is_read_too() -> None:
    """A node may warn of anything, and tells of the columns where it thinks that they have changed."""
    warned = struct.pack(">HH", 1, 4) + b"slow" + rows(ROW)
    (theirs,) = ask(Node(rows(ROW)))[0]
    text = b"\0\x0d"
    told = b"".join(struct.pack(">H", len(part)) + part for part in (b"space", b"lists", b"kind")) + text
    column = struct.pack(">iii", 2, 1, 1) + told + struct.pack(">i", 1) + long_bytes(b"user")

    assert ask(Node((0x08, warned)))[0] == [theirs]
    assert ask(Node(column))[0] == [("user",)]


def test_an_answer_that_is_no_rows_is_an_error() -> None:
    assert [type(error) for error in ask(Node(struct.pack(">i", 1)))[0]] == [NoHostAvailable]


@given(st.integers(0, 128 * 1024 - 1), st.booleans())
def test_remembered_headers_are_the_drivers(length: int, is_self_contained: bool) -> None:
    ours, theirs = io.BytesIO(), io.BytesIO()
    for codec, buffer in ((QuickCodec(), ours), (SegmentCodec(), theirs)):
        codec.encode_header(buffer, length, -1, is_self_contained)
    found = QuickCodec().decode_header(io.BytesIO(theirs.getvalue() + b"more"))

    assert ours.getvalue() == theirs.getvalue()
    assert (found.payload_length, found.is_self_contained) == (length, is_self_contained)


@given(st.integers(0, 128 * 1024 - 1), st.integers(0, 47))
def test_a_damaged_header_is_refused_every_time(length: int, bit: int) -> None:
    buffer = io.BytesIO()
    QuickCodec().encode_header(buffer, length, -1, True)
    damaged = (int.from_bytes(buffer.getvalue(), "little") ^ 1 << bit).to_bytes(6, "little")

    for _ in range(2):
        with pytest.raises(CrcException):
            QuickCodec().decode_header(io.BytesIO(damaged))
