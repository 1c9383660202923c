"""The time, as tests have it."""

from datetime import UTC, datetime, timedelta

START = datetime(2026, 3, 4, 2, 30, tzinfo=UTC)


class Clock:
    """The time, moved by hand; with a step, it also moves by so many seconds each time somebody looks."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = START, step

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=self.step)
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
