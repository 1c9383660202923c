"""What tonight takes from last night's run: lists that are carried, where tonight's would be made in the same way, and models to
begin from."""

from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from jobs.config import RootSettings, digest_of, sections
from jobs.identity import code_digest
from jobs.run import MANIFEST, RunFolder
from schemas.runs import day_of


@dataclass(frozen=True)
class Origin:
    """`folder`: the run whose lists may be carried; without one everybody's list is made anew, and `why` says why. `models`: the
    run whose models tonight's begin from; without one they begin anew."""

    folder: Path | None
    why: str = ""
    models: Path | None = None

    @property
    def taken(self) -> dict[str, str] | None:
        """What is taken of which run, which the digest of tonight's run covers: a parent that is damaged between two tries of a
        night makes it another run, instead of one of which each half was made otherwise."""
        taken = {what: run.name for what, run in (("lists", self.folder), ("models", self.models)) if run}
        return taken or None

    @property
    def lists(self) -> Path | None:
        """Where that run's lists are."""
        return self.folder / "build" if self.folder else None

    def nights(self, day: date) -> int:
        """Days from that run's to `day`."""
        assert self.folder
        return (day - day_of(self.folder.name)).days


def origin_of(parent: RunFolder | None, settings: RootSettings) -> Origin:
    """The parent: of lists unless it was made by other settings or other code, of both unless it is damaged."""
    return replace(_of_lists(parent, settings), models=_of_models(parent, settings))


def _of_lists(parent: RunFolder | None, settings: RootSettings) -> Origin:
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


def _of_models(parent: RunFolder | None, settings: RootSettings) -> Path | None:
    """Models may have been made by other settings: a model looks itself whether it can use what it finds."""
    if parent is None or not sections(settings)["als"].warm_iterations:
        return None
    return parent.folder if all(parent.whole(stage) for stage in ("dataset", "train")) else None
