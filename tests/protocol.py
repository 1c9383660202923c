"""What the publish protocol lives in, for its state machine: processes that stop at each call, and a store in memory.

Only the environment is made here. The rules under test are those of `jobs/stages/publish.py`, `jobs/rollback.py`,
`jobs/lease.py`, `jobs/stores/_registry.py` and `lookup_api/pointer.py`.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from jobs.stores._registry import Change, Registry, RegistryStore
from schemas.errors import NightlistError, RunUnreadable, StoreUnavailable
from schemas.lists import Kind, ServedList
from schemas.runs import Release, RunRecord


class Crash(BaseException):
    """The process ended here: nothing that it would have done next happens."""


class Process:
    """A thread that stops at each `pause`, and goes on when it is told to: only one of all runs at any time."""

    def __init__(self, work: Callable[["Process"], object]) -> None:
        self.at = "the beginning"
        self.over = False
        self.crashed = False
        self.disturbed = False
        self.result: Any = None
        self.plan: Any = None
        self.error: BaseException | None = None
        self._order: BaseException | None = None
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def pause(self, point: str) -> None:
        """Called by the process itself, where others may come in between or where it may die."""
        if self.crashed:
            raise Crash
        self.at = point
        self._stopped.release()
        self._go.acquire()
        if self._order:
            raise self._order

    def step(self, order: BaseException | None = None) -> None:
        """Let it go on to its next pause, or raise `order` where it stands."""
        if self.over:
            return
        self._order, self.crashed = order, isinstance(order, Crash)
        self.disturbed |= order is not None
        self._go.release()
        self._stopped.acquire()

    def _run(self, work: Callable[["Process"], object]) -> None:
        self._go.acquire()
        try:
            if self._order:
                raise self._order
            self.result = work(self)
        except BaseException as error:
            self.error = error
        self.over = True
        self._stopped.release()


class Paced:
    """A store of one process, which pauses before and after each call; `told` hears of each call that was carried out."""

    def __init__(self, store: Any, process: Process, told: Callable[[str, tuple[Any, ...]], None]) -> None:
        self._store, self._process, self._told = store, process, told

    def __getattr__(self, name: str) -> Callable[..., Any]:
        real = getattr(self._store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._process.pause(f"before {name}")
            result = real(*args, **kwargs)
            self._told(name, args)
            self._process.pause(f"after {name}")
            return result

        return call


class Forgetful:
    """A reader to whom one list of a run is lost."""

    def __init__(self, reader: Any, run_id: str) -> None:
        self._reader, self._run_id = reader, run_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def scan(self, run_id: str, *others: Any, **named: Any) -> Iterator[ServedList]:
        rows = self._reader.scan(run_id, *others, **named)
        if run_id == self._run_id:
            next(rows, None)
        yield from rows


class Unsteady:
    """A reader that does not answer while it is `away`, and from which the pointer is as it was while it is `late`."""

    def __init__(self, reader: Any) -> None:
        self.reader, self.away = reader, False
        self.late: Release | bool | None = False

    def release(self) -> Release | None:
        return self.late if isinstance(self.late, Release) else self.__getattr__("release")()

    def __getattr__(self, name: str) -> Any:
        if self.away:
            raise StoreUnavailable(f"{name}: nobody there")
        return getattr(self.reader, name)


@dataclass
class Memory:
    """A store's contents: each list with the fence that it was written under."""

    registry: Registry = field(default_factory=Registry)
    tables: dict[str, dict[tuple[Kind, str], tuple[int, ServedList]]] = field(default_factory=dict)


class MemoryStore(RegistryStore):
    """A store like Cassandra's, where anything can happen within a load and a drop: they are no transactions.

    A process pauses between two lists, before it drops a table and after it; of two writes the one of the later lease wins.
    """

    def __init__(self, memory: Memory, clock: Callable[[], datetime], pause: Callable[[str], None]) -> None:
        super().__init__(clock)
        self.memory, self._pause = memory, pause

    def _read(self) -> Registry:
        return self.memory.registry

    def _change(self, change: Change) -> Registry:
        self.memory.registry = change(self.memory.registry, self._now())
        return self.memory.registry

    def prepare(self) -> None:
        """There is nothing to prepare."""

    def load(
        self, run_id: str, lists: Any, fence: int, progress: Callable[[int], None], resume: bool = False, **others: Any
    ) -> int:
        self._read().check_loading(run_id, fence)
        table = self.memory.tables[run_id] = self.memory.tables.get(run_id, {}) if resume else {}
        try:
            written = 0
            for written, served in enumerate(lists, 1):
                self._pause(f"writing list {written}")
                if self.memory.tables.get(run_id) is not table:
                    raise StoreUnavailable(f"table {run_id} is gone")
                place = (served.kind, served.key)
                table[place] = max(table.get(place, (0, served)), (fence, served), key=lambda found: found[0])
                progress(written)
            self._read().check_loading(run_id, fence)
        except (NightlistError, ValueError):
            if self._is_mine(run_id, fence):
                self.memory.tables.pop(run_id, None)
            raise
        return written

    def drop(self, run_id: str, fence: int) -> None:
        self._read().dropped(run_id, fence)
        self._pause(f"dropping {run_id}")
        self.memory.tables.pop(run_id, None)
        self._pause(f"dropped {run_id}")
        self._change(lambda registry, now: registry.dropped(run_id, fence))

    def size(self, run_id: str) -> int:
        return len(self.memory.tables.get(run_id, {}))

    def close(self) -> None:
        """Nothing is open."""

    def _is_mine(self, run_id: str, fence: int) -> bool:
        try:
            self._read().check_loading(run_id, fence)
        except NightlistError:
            return False
        return True


class MemoryReader:
    """The reader of a store in memory."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def release(self) -> Release | None:
        return self.memory.registry.release

    def runs(self) -> list[RunRecord]:
        return list(self.memory.registry.runs.values())

    def probe(self, run_id: str) -> None:
        if not self._table(run_id):
            raise RunUnreadable(f"{run_id} holds no list")

    def get(self, run_id: str, kind: Kind, key: str, until: float | None = None) -> ServedList | None:
        return self._table(run_id).get((kind, key), (0, None))[1]

    def parts(self, run_id: str, n: int) -> list[str]:
        return [""]

    def scan(self, run_id: str, part: str = "") -> Iterator[ServedList]:
        return (served for _, served in list(self._table(run_id).values()))

    def close(self) -> None:
        """Nothing is open."""

    def _table(self, run_id: str) -> dict[tuple[Kind, str], Any]:
        if run_id not in self.memory.tables:
            raise RunUnreadable(f"{run_id} is gone")
        return self.memory.tables[run_id]
