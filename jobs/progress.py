"""What a person sees while a night works: one line a stage and a bar over buckets, on stderr."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar


class Progress:
    """Tells nothing: for tests, and for a run that is only looked at."""

    def skipped(self, name: str, counts: Mapping[str, Any]) -> None:
        """The stage was done before."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Around the work of a stage."""
        yield

    def finished(self, name: str, counts: Mapping[str, Any], seconds: float) -> None:
        """The stage is done."""

    @contextmanager
    def watch(self, name: str, total: int, count: Callable[[], int]) -> Iterator[None]:
        """Around long work of `total` steps, of which `count()` are done."""
        yield

    def note(self, text: str) -> None:
        """One line that is not about a stage."""

    def quiet(self) -> "Progress":
        """For work inside a stage."""
        return Progress()


class Terminal(Progress):
    """Lines with times, and bars where stderr is a terminal."""

    def __init__(self) -> None:
        self.console = Console(file=sys.stderr, highlight=False)
        self.bar: Bar | None = None

    def skipped(self, name: str, counts: Mapping[str, Any]) -> None:
        self._line(name, "done before", counts)

    def finished(self, name: str, counts: Mapping[str, Any], seconds: float) -> None:
        self._line(name, f"{seconds:7.1f} s", counts)

    @contextmanager
    def watch(self, name: str, total: int, count: Callable[[], int]) -> Iterator[None]:
        if not self.console.is_terminal:
            yield
            return
        with self._bar() as bar, _every(0.2) as each:
            task = bar.add_task(name, total=total)
            each(lambda: bar.update(task, completed=count()))
            try:
                yield
            finally:
                bar.update(task, visible=False)  # not removed: the thread may be about to update it once more

    def note(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False)

    @contextmanager
    def _bar(self) -> Iterator[Bar]:
        """One display however many watches lie within each other: the outermost opens and closes it, the others add lines."""
        if self.bar:
            yield self.bar
            return
        columns = (
            TextColumn("          {task.description:<16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Bar(*columns, console=self.console, transient=True) as self.bar:
            try:
                yield self.bar
            finally:
                self.bar = None

    def _line(self, name: str, took: str, counts: Mapping[str, Any]) -> None:
        shown = "  ".join(f"{key} {value:,}" for key, value in counts.items() if isinstance(value, int))
        self.note(f"{time.strftime('%H:%M:%S')}  {name:<16}{took:>12}  {shown}")


@contextmanager
def _every(seconds: float) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Hands out a function that calls another one every so often, in a thread that ends with the context."""
    stop = Event()

    def start(work: Callable[[], None]) -> None:
        Thread(target=lambda: [work() for _ in iter(lambda: stop.wait(seconds), True)], daemon=True).start()

    try:
        yield start
    finally:
        stop.set()
