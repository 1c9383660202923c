"""Small nights for tests: a folder with events and a nightlist.toml, and the night of a day in this process."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.commands.init import toml
from jobs.config import RootSettings, load_settings
from jobs.lists import BuiltLists
from jobs.manifest import Report
from jobs.nightly import make
from jobs.progress import Progress
from jobs.run import RunFolder
from lookup_api.readers import open_reader
from schemas.errors import NightlistError
from schemas.lists import Kind, ServedList
from tests.jvm import QUICK_START

DAY = date(2026, 11, 20)
SHORT_LIVED = {
    "spark.driver.memory": "2g",
    "spark.sql.shuffle.partitions": "4",
    "spark.driver.extraJavaOptions": QUICK_START,
}
"""Spark for jobs of seconds."""
EVENT_COLUMNS = {
    "user_id": pa.string(),
    "item_id": pa.string(),
    "event": pa.string(),
    "ts": pa.timestamp("us", "UTC"),
    "value": pa.float64(),
}


def at(day: date, hour: float = 12.0) -> datetime:
    """A moment of a day, UTC."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(hours=hour)


def event(
    user: str, item: str, day: date = DAY, kind: str = "watch", value: float | None = None, hour: float = 12.0
) -> dict[str, Any]:
    """One raw event."""
    return {"user_id": user, "item_id": item, "event": kind, "ts": at(day, hour), "value": value}


def checkerboard(size: int = 20, day: date = DAY) -> list[dict[str, Any]]:
    """A world whose answer is obvious: user u has every item of u's parity but item u, which is what u should be given.

    The events lie on the ten days up to `day`, so that each day has some.
    """
    pairs = [(u, i) for u in range(size) for i in range(size) if i % 2 == u % 2 and i != u]
    return [event(f"u{u:03d}", f"i{i:03d}", day - timedelta(days=(u + i // 2) % 10)) for u, i in pairs]


@dataclass
class Place:
    """A folder with a nightlist.toml, and what was published from it."""

    folder: Path
    sections: dict[str, dict[str, Any]]

    @property
    def config(self) -> Path:
        """The configuration's path."""
        return self.folder / "nightlist.toml"

    def settings(self, *overrides: str) -> RootSettings:
        """The settings, written to the file and read back."""
        lines = [
            f"[{name}]\n" + "".join(f"{k} = {toml(v)}\n" for k, v in values.items())
            for name, values in self.sections.items()
        ]
        text = "\n".join(lines)
        if not self.config.exists() or self.config.read_text(encoding="utf-8") != text:  # a command may be reading it
            self.config.write_text(text, encoding="utf-8")
        return load_settings(self.config, overrides)

    def night(self, day: date = DAY, *overrides: str, override: str | None = None) -> Report:
        """Make the night; raises what it raises."""
        report = Report()
        make(self.settings(*overrides), day, report, Progress(), override=override)
        return report

    def failing_night(self, day: date = DAY, *overrides: str) -> tuple[NightlistError, Report]:
        """Make a night that is expected to fail; returns its error and what it reports."""
        report = Report()
        try:
            make(self.settings(*overrides), day, report, Progress())
        except NightlistError as error:
            return error, report
        raise AssertionError(f"the night of {day} was expected to fail, and is {report.state}")

    def run(self, report: Report) -> RunFolder:
        """The folder of a night that got that far."""
        assert report.run
        return report.run

    def served(self, key: str, kind: Kind = "user") -> ServedList | None:
        """What the live run holds under a key."""
        reader = open_reader(self.settings().store)
        try:
            release = reader.release()
            return reader.get(release.run_id, kind, key) if release else None
        finally:
            reader.close()

    def live(self) -> str | None:
        """The run that the pointer names."""
        reader = open_reader(self.settings().store)
        try:
            release = reader.release()
            return release.run_id if release else None
        finally:
            reader.close()


def built(run: RunFolder) -> dict[tuple[str, str], ServedList]:
    """Every list of a run's Parquet."""
    return {(served.kind, served.key): served for served in BuiltLists(run.folder / "build")}


def write_table(
    rows: Sequence[Mapping[str, Any]], path: Path, columns: Mapping[str, pa.DataType] | None = None
) -> Path:
    """Rows as one Parquet file, typed by `columns` or by what they hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema(list(columns.items())) if columns else None
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)
    return path


def place(folder: Path, events: Sequence[Mapping[str, Any]], **sections: dict[str, Any]) -> Place:
    """A place with these events; `sections` are added to its configuration, whose nights are small and quick."""
    write_table(events, folder / "events.parquet", EVENT_COLUMNS)
    quick: dict[str, dict[str, Any]] = {
        "input": {"events": "events.parquet"},
        "dataset": {"parts": 2, "half_life_days": 0},
        "als": {"factors": 8, "regularization": 0.1, "iterations": 5},
        "retrieve": {"models": ["als"]},
        "rerank": {"n": 10},
        "store": {"grace_seconds": 0},
        "auth": {"open": True},
    }
    for name, values in sections.items():
        quick[name] = quick.get(name, {}) | values
    return Place(folder, quick)


def read_json_line(text: str) -> dict[str, Any]:
    """The last line of a command's stdout."""
    found: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return found
