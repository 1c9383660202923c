"""What makes a run this run: its input up to D, its settings, its code. Same identity, same lists."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.config import EventsSettings, RootSettings, digest_of
from jobs.inputs import UNREADABLE, Inputs, RawTable, first_line, rejected_by
from schemas.columns import TS
from schemas.errors import InputError
from schemas.runs import name_run


@dataclass(frozen=True)
class Identity:
    """A run's identity; `parts` are what the digest covers, as they stand in the manifest."""

    day: date
    digest: str
    parts: dict[str, Any]

    @property
    def run_id(self) -> str:
        """`<yyyymmdd>_<8 hex digits>`."""
        return name_run(self.day, self.digest)


def end_of(day: date) -> datetime:
    """The first moment after `day`, UTC."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)


def identify(inputs: Inputs, settings: RootSettings, day: date, parent: Mapping[str, str] | None = None) -> Identity:
    """Digest over (1) each input table's count and hash sum, (2) settings, (3) sources, (4) what is taken of the parent (Origin.taken).

    One scan a table. Raises InputError when a table can't be read.
    """
    parts = {
        "inputs": {name: _fingerprint(table, name, settings.events, day) for name, table in inputs.present().items()},
        "settings": digest_of(settings),
        "code": code_digest(),
        "parent": parent,
    }
    return Identity(day, hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest(), parts)


def window(timestamps: Column, day: date) -> Column:
    """Rows not later than the end of `day`; a row without a readable time is in, so that it is rejected and counted."""
    return timestamps.isNull() | (timestamps < F.lit(end_of(day)))


@cache
def code_digest() -> str:
    """SHA-256 of the sources of jobs and schemas, wherever they were imported from (a folder or a zip)."""
    total = hashlib.sha256()
    for package in ("jobs", "schemas"):
        for path, content in sorted(_sources(files(package), package)):
            total.update(f"{path}\0{len(content)}\0".encode() + content)
    return total.hexdigest()


def _fingerprint(table: RawTable, name: str, events: EventsSettings, day: date) -> dict[str, Any]:
    """Rows, and the sum of a 64-bit hash over the mapped columns (and those that rules and key read); order doesn't enter."""
    typed = table.typed()
    columns = [column.alias(f"_{i}") for i, column in enumerate(typed.values())]
    frame = table.frame
    if name == "events":
        columns += [F.col(f"`{raw}`") for raw in _read_by_rules(table.frame, events)]
        frame = frame.where(window(typed[TS], day))
    hashed = F.xxhash64(*columns, *(column.isNull() for column in typed.values()))
    try:
        row = frame.agg(F.count(F.lit(1)).alias("rows"), F.sum(hashed.cast("decimal(38,0)")).alias("sum")).first()
    except UNREADABLE as error:
        raise InputError(
            f"table {name} can't be read to its end: {first_line(error)}; mend the file, then start the night again"
        ) from None
    return {"rows": row["rows"], "hash": f"{int(row['sum'] or 0) % 2**64:016x}"}


def _read_by_rules(frame: DataFrame, events: EventsSettings) -> list[str]:
    """The raw columns that [[events.reject]] and the event key look at."""
    used = set(events.key)
    for rule in events.reject:
        plan = frame.select(rejected_by(frame, rule.where).alias("_"))._jdf.queryExecution().analyzed()
        used |= {plan.references().toSeq().apply(i).name() for i in range(plan.references().size())}
    return sorted(used)


def _sources(folder: Traversable, path: str) -> list[tuple[str, bytes]]:
    found = []
    for entry in folder.iterdir():
        inner = f"{path}/{entry.name}"
        if entry.is_dir():
            found += _sources(entry, inner)
        elif entry.name.endswith((".py", ".sql", ".cql")):
            found.append((inner, entry.read_bytes()))
    return found
