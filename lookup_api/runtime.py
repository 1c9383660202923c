"""What the processes of one server share: a folder with the counters of each, and the sign that the server is about to end.

The parent makes the folder before the first worker and removes it at the end. Nothing here imports prometheus_client:
how it counts, alone or with others, is settled when it is imported, so workers import it, and the parent does not.
"""

import logging
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from types import FrameType

from schemas.processes import is_alive

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder, for prometheus_client and for us."""
DRAINING = "draining"
"""The file that says so."""
LOOK_SECONDS = 0.01
"""How long what was seen of it holds."""
KINDS = ("counter", "gauge", "histogram", "summary")
"""How the names of prometheus_client's files begin."""

log = logging.getLogger(__name__)


@contextmanager
def shared_folder() -> Iterator[Path]:
    """The folder while a server runs: the one that VARIABLE names, wiped, or a new one that VARIABLE names from now on."""
    folder = begin()
    try:
        yield folder
    finally:
        end(folder)


def begin() -> Path:
    """Make the folder, or wipe it of what an earlier server left, and name it to the processes to come."""
    if "prometheus_client" in sys.modules:
        raise RuntimeError("prometheus_client is imported already, and would count for this process alone")
    folder = Path(os.environ.get(VARIABLE) or tempfile.mkdtemp(prefix="nightlist-serve-"))
    folder.mkdir(parents=True, exist_ok=True)
    _wipe(folder)
    os.environ[VARIABLE] = str(folder)
    return folder


def end(folder: Path) -> None:
    """Remove the folder; where it holds what is not ours, only what is."""
    _wipe(folder)
    with suppress(OSError):
        folder.rmdir()


class DrainSign:
    """Whether the server is about to end. A request does not look for itself: so many times a second is enough."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        folder = os.environ.get(VARIABLE)
        self._file = Path(folder) / DRAINING if folder else None
        self._monotonic = monotonic
        self._next = -math.inf
        self._up = False

    def is_up(self) -> bool:
        """Never, where no parent made a folder."""
        if self._file is not None and self._monotonic() >= self._next:
            self._next = self._monotonic() + LOOK_SECONDS
            self._up = self._file.exists()
        return self._up


def forget(folder: Path, pid: int) -> None:
    """Remove what a dead process said of itself; what it counted stays, so that no sum goes back."""
    for said in folder.glob(f"gauge_live*_{pid}.db"):
        said.unlink(missing_ok=True)  # another process may be at it too


def forget_the_dead(folder: Path) -> None:
    """`forget` every process that is no more, however it ended."""
    for pid in {int(said.stem.rpartition("_")[2]) for said in folder.glob("gauge_live*_*.db")}:
        if not is_alive(pid):
            forget(folder, pid)


def drain_on_sigterm(folder: Path, seconds: float) -> None:
    """From now on SIGTERM first puts up the sign, and does what it did before only `seconds` later, or when it comes again.

    Meanwhile everything is answered, so that load balancers and clients of kept connections have time to go elsewhere.
    """
    stop, parent, told = signal.getsignal(signal.SIGTERM), os.getpid(), False
    assert callable(stop), "the server has its handler before ours"

    def drain() -> None:
        with suppress(OSError):  # what cleans /tmp may have taken the folder: workers then learn it when they are ended
            (folder / DRAINING).touch()
        log.info("told to end: answering for another %g s, then stopping", seconds)
        time.sleep(seconds)
        stop(signal.SIGTERM, None)

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if os.getpid() != parent:
            raise SystemExit(0)  # a worker that has no handler of its own yet, and so no request
        if told or not seconds:
            stop(number, frame)
            return
        told = True
        Thread(target=drain, name="drain", daemon=True).start()  # a handler may interrupt a log call: no logging in it

    signal.signal(signal.SIGTERM, on_sigterm)


def _wipe(folder: Path) -> None:
    for left in (*(file for kind in KINDS for file in folder.glob(f"{kind}_*.db")), folder / DRAINING):
        left.unlink(missing_ok=True)
