"""The minutes that a search may take, over all the times that it was started."""

import time
from pathlib import Path

from jobs.run import read_json, write_json


class Budget:
    """Counts from when it is made, on top of what stands in its file; `save` puts that there."""

    def __init__(self, path: Path, minutes: float) -> None:
        self.path, self.seconds = path, 60 * minutes
        self._before = float((read_json(path) or {}).get("seconds", 0.0))
        self._start = time.monotonic()

    @property
    def used(self) -> float:
        """Seconds."""
        return self._before + time.monotonic() - self._start

    @property
    def left(self) -> float:
        """Seconds; below 0 once it is used up."""
        return self.seconds - self.used

    def save(self) -> None:
        """A kill forgets no more than what came after."""
        write_json(self.path, {"seconds": round(self.used, 1)})

    def told(self) -> str:
        """For people."""
        return f"{self.used / 60:.1f} of {self.seconds / 60:g} min"
