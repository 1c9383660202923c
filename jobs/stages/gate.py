"""Stage 8: tonight's lists against last night's. Reads Parquet only, fails closed, and writes nothing to a store.

A gate whose value can't be had stops the run; one that compares reports `skipped` where there is no last night.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.buckets import Buckets, read_all, read_bucket
from jobs.config import GateSettings, Levels
from jobs.dataset import Dataset, column
from jobs.models import rows_of
from jobs.run import Counts
from schemas.columns import ITEMS
from schemas.errors import Refused

AT_LEAST = ("users", "rows", "fill", "coverage", "holdout")
"""Gates whose value must not fall below the level; the others' must not rise above it."""


@dataclass(frozen=True)
class Gate:
    """One check: `status` is pass, warn, stop or skipped."""

    name: str
    value: float | None
    warn: float
    stop: float
    status: str


def judge(
    out: Path,
    buckets: Buckets,
    dataset: Path,
    built: Path,
    tonight: Mapping[str, Any],
    last: Mapping[str, Any] | None,
    levels: GateSettings,
) -> Counts:
    """The verdict on a run: {status: pass | warn | stop, gates}, and what the lists look like (for the next night's gate).

    Args:
        tonight: `outcomes`, `rows`, `holdout` (metrics) and `holdout_off` (not wanted) of this run;
            of the lists themselves, only what is counted here.
        last: the same of last night's run, with its `lists`, or None.
    """
    buckets.each(out, partial(bucket_facts, dataset, built))
    facts = summary(out, built, Dataset(dataset))
    values = absolute(facts, tonight["outcomes"]) | compared(facts, tonight, last, levels)
    gates = [grade(name, value, getattr(levels, name)) for name, value in values.items()]
    worst = next((status for status in ("stop", "warn") if any(gate.status == status for gate in gates)), "pass")
    return {
        "rows": facts["personal"],
        "lists": facts,
        "verdict": {"status": worst, "gates": [asdict(gate) for gate in gates]},
    }


def refusal(run_id: str, verdict: Mapping[str, Any]) -> Refused:
    """The refusal of a run whose verdict is stop, naming each gate with its value and level."""
    stopped = [gate for gate in verdict["gates"] if gate["status"] == "stop"]
    reasons = ", ".join(f"{gate['name']} = {_shown(gate['value'])} (stop at {gate['stop']:g})" for gate in stopped)
    return Refused(
        f"run {run_id} is REFUSED: {reasons}; last night's lists stay. Look at its manifest.json; when this is meant to be, "
        f"start the night again with --override REASON"
    )


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def bucket_facts(dataset: Path, built: Path, bucket: int) -> pa.Table:
    """One row on a bucket's personal lists, found from the served ids and the dataset, not from the stages between."""
    table, data = read_bucket(built, bucket), Dataset(dataset)
    user_ids, users = data.bucket(bucket)
    lists = column(table, ITEMS)
    item_ids = lists.flatten()
    items = pc.index_in(item_ids, data.item_ids()).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    owner = pc.index_in(column(table, "key"), user_ids.cast(pa.string())).fill_null(-1).to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(table.num_rows), pc.list_value_length(lists).to_numpy(zero_copy_only=False))
    user = owner[row].astype(np.int64)
    size = users.eligible.size
    forbidden = rows_of(users.excluded) * size + users.excluded.indices
    leaking = (items < 0) | (user < 0) | ~users.eligible[items] | np.isin(user * size + items, forbidden)
    codes = item_ids.dictionary_encode(null_encoding="encode").indices.to_numpy(zero_copy_only=False).astype(np.int64)
    pairs, counts = np.unique(row * items.size + codes, return_counts=True)
    facts = {
        "personal": table.num_rows,
        "listed": items.size,
        "empty": table.num_rows - np.unique(row).size,
        "repeats": np.unique(pairs[counts > 1] // max(items.size, 1)).size,
        "leaks": np.unique(np.r_[row[leaking], np.flatnonzero(owner < 0)]).size,
    }
    distinct = item_ids.unique()
    whole = pa.ListArray.from_arrays(pa.array([0, len(distinct)], pa.int32()), distinct)
    return pa.table({name: [value] for name, value in facts.items()} | {ITEMS: whole})


def summary(out: Path, built: Path, data: Dataset) -> dict[str, Any]:
    """What the buckets and the lists of other kinds come to."""
    tables = list(read_all(out))
    facts = {name: sum(table[name][0].as_py() for table in tables) for name in tables[0].column_names if name != ITEMS}
    distinct = pa.concat_arrays([column(table, ITEMS).flatten() for table in tables]).unique()
    may_show = data.item_ids().filter(pa.array(data.eligible()))
    for kind in ("similar", "popular"):
        rows = pq.read_table(built / f"{kind}.parquet", columns=["key", ITEMS]).to_pylist()
        shown = set(may_show.to_pylist())
        facts["repeats"] += sum(len(set(row[ITEMS])) < len(row[ITEMS]) for row in rows)
        facts["leaks"] += sum(not shown.issuperset(row[ITEMS]) for row in rows)
        facts[kind] = len(rows)
    mean = facts["listed"] / facts["personal"] if facts["personal"] else 0.0
    return facts | {"coverage": len(distinct), "mean_length": mean}


def absolute(facts: Mapping[str, Any], outcomes: Mapping[str, int]) -> dict[str, float | None]:
    """Gates that need no last night."""
    users = sum(outcomes.values())
    return {
        "failed": outcomes["failed"] / users if users else None,
        "empty": facts["empty"] / facts["personal"] if facts["personal"] else None,
        "repeats": float(facts["repeats"]),
        "leaks": float(facts["leaks"]),
    }


def compared(
    facts: Mapping[str, Any], tonight: Mapping[str, Any], last: Mapping[str, Any] | None, levels: GateSettings
) -> dict[str, float | str | None]:
    """Gates that compare with last night: a ratio, `skipped`, or None where the value should be there and is not."""
    if last is None:
        return dict.fromkeys(AT_LEAST, "skipped")
    before = last["lists"]
    return {
        "users": _ratio(facts["personal"], before.get("personal")),
        "rows": _ratio(tonight["rows"], last["rows"]),
        "fill": _ratio(facts["mean_length"], before.get("mean_length")),
        "coverage": _ratio(facts["coverage"], before.get("coverage")),
        "holdout": "skipped"
        if tonight["holdout_off"]
        else _holdout(tonight["holdout"], last["holdout"], levels.min_holdout_users),
    }


def grade(name: str, value: float | str | None, levels: Levels) -> Gate:
    """One gate's status."""
    if value == "skipped":
        return Gate(name, None, levels.warn, levels.stop, "skipped")
    if value is None or np.isnan(value):
        return Gate(name, None, levels.warn, levels.stop, "stop")
    sign = 1 if name in AT_LEAST else -1
    status = "stop" if sign * value < sign * levels.stop else "warn" if sign * value < sign * levels.warn else "pass"
    return Gate(name, float(value), levels.warn, levels.stop, status)


def _ratio(tonight: float, last: float | None) -> float | None:
    """None where last night's record lacks the value; where it had nothing, nothing can have got worse."""
    if last is None:
        return None
    return tonight / last if last else 1.0


def _holdout(tonight: Mapping[str, Any] | None, last: Mapping[str, Any] | None, enough: int) -> float | str | None:
    """NDCG over last night's. That last night could be measured and tonight, with under half the users, can't is no reason to pass."""
    if last is None or last["users"] < enough:
        return "skipped"
    if tonight is None or tonight["users"] < enough:
        return "skipped" if tonight and tonight["users"] * 2 > last["users"] else None
    (name,) = (key for key in tonight if key.startswith("ndcg@"))
    return _ratio(tonight[name], last[name]) if name in last else "skipped"
