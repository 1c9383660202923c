"""The publisher's lease: got, and given back however the work under it ends."""

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from hashlib import blake2b
from itertools import count
from pathlib import Path

from jobs.stores import Store
from schemas.errors import NightlistError
from schemas.processes import is_alive
from schemas.runs import Lease, LeaseHeld

WAIT_SECONDS = 1.0
"""Between two looks at a lease that somebody waits for."""

_turns = count(1)
_left: set[str] = set()
"""Owners, in this process, of leases that could not be given back: nobody works under them any more."""


@contextmanager
def leased(store: Store, ttl: float, take_over: bool = False) -> Iterator[Lease]:
    """The lease, in a name that nobody else has. Raises LeaseHeld, unless `take_over`: the holder writes no more then.

    A lease whose holder is known to be gone need not be waited for.
    """
    lease = _acquire(store, f"{here()}:{os.getpid()}:{next(_turns)}", ttl, take_over)
    try:
        yield lease
    finally:
        try:
            store.release(lease)
        except NightlistError:  # it ends by itself, and hides no error before it
            _left.add(lease.owner)


def is_left(owner: str) -> bool:
    """Whether a lease's holder is known to be gone: a process that died on this very host, or that gave up in this one."""
    found = re.fullmatch(r"(.+?):(\d+)(:\d+)?", owner)
    if owner in _left or not found:
        return owner in _left
    return found[1] == here() and not is_alive(int(found[2]))


@cache
def here() -> str:
    """Where a process id means something: this host, since it was started, and this namespace of it; containers may share the name
    of a host and not its processes."""
    sign = blake2b(digest_size=4)
    with suppress(OSError):  # Linux tells
        sign.update(bytes(Path("/proc/self/ns/pid").readlink()) + Path("/proc/sys/kernel/random/boot_id").read_bytes())
    return f"{socket.gethostname()}.{sign.hexdigest()}"


def wait_for_lease(
    store: Store, clock: Callable[[], datetime], tell: Callable[[str], None], sleep: Callable[[float], None]
) -> None:
    """Return when the lease that is held now is over. Raises LeaseHeld as soon as its holder renews it: it is alive."""
    held = store.holder()
    if held is None or is_left(held.owner) or held.expires_at <= clock():
        return
    tell(f"waiting for the lease of {held.owner}, until {held.expires_at:%H:%M:%S} UTC unless it is renewed")
    while (left := (held.expires_at - clock()).total_seconds()) > 0:
        sleep(min(WAIT_SECONDS, left))
        found = store.holder()
        if found is None:
            return
        if found != held:
            raise LeaseHeld(found)


def _acquire(store: Store, owner: str, ttl: float, take_over: bool) -> Lease:
    try:
        return _granted(store, owner, ttl)
    except LeaseHeld as held:
        if not (take_over or is_left(held.lease.owner)):
            raise
        store.release(held.lease)
    return _granted(store, owner, ttl)


def _granted(store: Store, owner: str, ttl: float) -> Lease:
    try:
        return store.acquire(owner, ttl)
    except LeaseHeld:
        raise
    except NightlistError:  # it may have been granted all the same
        _left.add(owner)
        raise
