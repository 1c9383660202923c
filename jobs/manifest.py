"""What a run says of itself: the manifest in its folder, and the line that a command prints."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rich.console import Console

from jobs.identity import Identity
from jobs.run import MANIFEST, RunFolder
from schemas.runs import RunState

STAGES = (
    "events",
    "dataset",
    "served_previous",
    "train",
    "due",
    "retrieve",
    "rank",
    "rerank",
    "holdout",
    "build",
    "gate",
)


def write_manifest(run: RunFolder, identity: Identity, state: RunState, verdict: Mapping[str, Any] | None) -> None:
    """Identity, counts and seconds of each stage, metrics, verdict and state (BUILT or REFUSED), whole or not at all."""
    records = {name: record for name in STAGES if (record := run.record(name))}
    run.write(
        MANIFEST,
        {
            "run_id": identity.run_id,
            "day": identity.day.isoformat(),
            "digest": identity.digest,
            "identity": identity.parts,
            "state": state,
            "stages": {name: record.counts for name, record in records.items()},
            "seconds": {name: record.seconds for name, record in records.items()},
            "metrics": metrics_of(run),
            "verdict": verdict,
        },
    )


def metrics_of(run: RunFolder) -> dict[str, Any]:
    """`holdout`: the night's own measurement; `served_previous`: last night's live lists on this day. None where not measured."""
    records = {name: run.record(name) for name in ("holdout", "served_previous")}
    return {name: record.counts.get("metrics") if record else None for name, record in records.items()}


def made_of(run: RunFolder) -> dict[str, Any]:
    """Users whose list was made anew (`scored`, with the `reasons`) or `carried` from last night's run; {} before stage `due`."""
    record = run.record("due")
    return {name: record.counts[name] for name in ("scored", "carried", "reasons")} if record else {}


def facts_of(run: RunFolder) -> dict[str, Any]:
    """What the gate compares: outcomes, rows, the holdout, and the lists as the run's own gate counted them."""
    build, gate, holdout = run.record("build"), run.record("gate"), run.record("holdout")
    return {
        "outcomes": build.counts["outcomes"] if build else {},
        "rows": build.counts["rows"] if build else 0,
        "holdout": metrics_of(run)["holdout"],
        "holdout_off": bool(holdout and holdout.counts.get("off")),
        "lists": gate.counts["lists"] if gate else {},
    }


@dataclass
class Report:
    """What a night has to tell, as far as it came; it is filled while the night goes on, and printed however it ends."""

    run: RunFolder | None = None
    state: RunState | None = None
    verdict: Mapping[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    shown_after_error: ClassVar[bool] = False

    def line(self) -> dict[str, Any]:
        """The JSON line of a night."""
        records = {name: record for name in STAGES if self.run and (record := self.run.record(name))}
        built = records["build"].counts if "build" in records else {}
        outcomes = built.get("outcomes", {"personal": 0, "popular": 0, "empty": 0, "failed": 0})
        return {
            "run_id": self.run.run_id if self.run else None,
            "state": self.state,
            "users": sum(outcomes.values()),
            "outcomes": outcomes,
            "rows": built.get("kinds", {}),
            "lists": made_of(self.run) if self.run else {},
            "seconds": {name: record.seconds for name, record in records.items()} | self.seconds,
            "metrics": metrics_of(self.run) if self.run else {"holdout": None, "served_previous": None},
            "verdict": self.verdict,
            "error": self.error,
        }

    def show(self, console: Console) -> None:
        """What a person wants to know in the morning."""
        line = self.line()
        outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in line["outcomes"].items())
        console.print(f"run {line['run_id']} is {line['state']}: {line['users']:,} users ({outcomes})")
        if line["lists"].get("carried"):
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in line["lists"]["reasons"].items())
            console.print(
                f"lists: {line['lists']['carried']:,} carried, {line['lists']['scored']:,} scored ({reasons})"
            )
        for name, measured in line["metrics"].items():
            if measured:
                shown = "  ".join(f"{key} {value:.4f}" for key, value in measured.items() if isinstance(value, float))
                console.print(f"{name:<16} {shown}  (over {measured['users']:,} users)")
        for gate in (line["verdict"] or {}).get("gates", []):
            if gate["status"] != "pass":
                console.print(
                    f"gate {gate['name']:<11} {gate['status']}  {'' if gate['value'] is None else gate['value']}"
                )
