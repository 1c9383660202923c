"""The driver's connection, with one thread less on a request's way."""

from contextlib import suppress

from cassandra.io import libevreactor


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
