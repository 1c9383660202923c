"""The driver's connection, with one thread less on a request's way, and its checksums of headers remembered."""

from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from typing import Any

from cassandra.io import libevreactor
from cassandra.segment import SegmentCodec


class QuickCodec(SegmentCodec):  # type: ignore[misc]  # the driver has no types
    """Segments of protocol 5 without compression. Their header is made of their length, with a checksum that the driver
    computes bit by bit, in Python: those of the last lengths are remembered, made or checked once."""

    def encode_header(
        self, buffer: Any, payload_length: int, uncompressed_length: int, is_self_contained: bool
    ) -> None:
        buffer.write(_written(payload_length, is_self_contained))

    def decode_header(self, buffer: Any) -> Any:
        return _read(buffer.read(self.header_length_with_crc))


class DirectConnection(libevreactor.LibevConnection):  # type: ignore[misc]  # the driver has no types
    """Sends a request by the thread that makes it. The driver's own hands it to its event loop, which is woken for it, and
    three times more to watch the socket until it is sent: an eighth of what one process reads a second."""

    def push(self, data: bytes) -> None:
        """Send `data`, or what the socket does not take at once by way of the loop; in order, whoever sends.

        While anything waits for the loop, or the loop is at it, it is the loop that sends. TLS is left to it altogether:
        Python's TLS sockets are not for one thread that reads and another one that writes.
        """
        sent = 0
        with self._deque_lock:
            if not (self.deque or self._write_watcher_is_active or self.ssl_context):
                with suppress(OSError):  # of a full socket, or a broken one: the loop's own try tells which
                    sent = self._socket.send(data)
            if sent < len(data):
                self.deque.append(data[sent:])
                libevreactor._global_loop.notify()

    def _enable_checksumming(self) -> None:
        super()._enable_checksumming()
        self._segment_codec = _CODEC


_PLAIN, _CODEC = SegmentCodec(), QuickCodec()


@lru_cache(4096)
def _written(length: int, is_self_contained: bool) -> bytes:
    buffer = BytesIO()
    _PLAIN.encode_header(buffer, length, -1, is_self_contained)
    return buffer.getvalue()


@lru_cache(4096)
def _read(header: bytes) -> Any:
    return _PLAIN.decode_header(BytesIO(header))  # raises CrcException, which is not remembered
