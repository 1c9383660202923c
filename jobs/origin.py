"""Where carried lists come from: last night's run, where tonight's lists would be made in the same way."""

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from jobs.config import RootSettings, digest_of
from jobs.identity import code_digest
from jobs.run import MANIFEST, RunFolder
from schemas.runs import day_of


@dataclass(frozen=True)
class Origin:
    """The folder of the run whose lists may be carried; without one everybody's list is made anew, and `why` says why."""

    folder: Path | None
    why: str = ""

    @property
    def run_id(self) -> str | None:
        """What the digest of a run that carries lists covers."""
        return self.folder.name if self.folder else None

    @property
    def lists(self) -> Path | None:
        """Where that run's lists are."""
        return self.folder / "build" if self.folder else None

    def nights(self, day: date) -> int:
        """Days from that run's to `day`."""
        assert self.folder
        return (day - day_of(self.folder.name)).days


def origin_of(parent: RunFolder | None, settings: RootSettings) -> Origin:
    """The parent, unless it was made by other settings or other code, or is damaged."""
    if not settings.incremental.max_age:
        return Origin(None, "incremental.max_age = 0")
    if parent is None:
        return Origin(None, "no run of an earlier day is published")
    identity = (parent.read(MANIFEST) or {}).get("identity", {})
    for part, digest in (("settings", digest_of(settings)), ("code", code_digest())):
        if identity.get(part) != digest:
            return Origin(None, f"{parent.run_id} was made by other {part}")
    for stage in ("dataset", "build"):
        if not parent.whole(stage):
            return Origin(None, f"{stage} of {parent.run_id} is not what was written")
    return Origin(parent.folder)
