"""Stage 5: one score a (user, item). For now a blend of the models' ranks; learned rankers take this place later."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.buckets import Buckets, read_bucket
from jobs.candidates import Entries, rank_within
from jobs.config import RankSettings
from jobs.dataset import Dataset
from jobs.merged import merged
from jobs.models import personal
from jobs.run import Counts
from jobs.units import Proposers

ONES: Mapping[str, float] = MappingProxyType({})
"""Units of nobody."""


def blend(
    out: Path, buckets: Buckets, dataset: Path, candidates: Path, proposers: Proposers, settings: RankSettings
) -> Counts:
    """Write each user's candidates, each item once, best first. One model's order and scores stay its own."""
    if len(proposers.names) == 1:
        return {"rows": buckets.each(out, partial(bucket_ranked, dataset, candidates, None, ONES))}
    units = proposers.units() if settings.method == "distances" else ONES
    rows = buckets.each(out, partial(bucket_ranked, dataset, candidates, settings, units))
    return {"rows": rows} | ({"units": units} if units else {})


def bucket_ranked(
    dataset: Path, candidates: Path, settings: RankSettings | None, units: Mapping[str, float], bucket: int
) -> pa.Table:
    """The ranked candidates of one bucket; without settings there is nothing to blend."""
    user_ids, users = Dataset(dataset).bucket(bucket)
    entries = Entries.of(read_bucket(candidates, bucket))
    return (fuse(entries, np.diff(users.weights.indptr), settings, units) if settings else entries).table(user_ids)


def fuse(
    entries: Entries, history: NDArray[np.int64], settings: RankSettings, units: Mapping[str, float] = ONES
) -> Entries:
    """score(u, i) = sum over the models m that propose i of weight(m) * trust(m, u) * standing(m, u, i).

    `history`: items, one number a user; `units`: by model, of its distances (jobs.units), 1 where it is not named. `sources` of
    the result are the proposing models, sorted, joined by `+`; an equal score is decided by the lower item number.
    """
    weights = np.array([settings.weights.get(name, 1.0) for name in entries.names])
    generic = np.array([not personal(name) for name in entries.names])
    parts = weights[entries.sources] * np.where(generic[entries.sources], 1.0, trust(history, settings)[entries.row])
    if settings.method == "distances":
        parts = parts / np.array([units.get(name, 1.0) for name in entries.names])[entries.sources]
    parts = parts * standing(entries, settings)
    starts = np.searchsorted(entries.row, np.arange(entries.users + 1))
    size = int(entries.items.max(initial=-1)) + 1
    items, scores, proposers, ends = merged(starts, entries.items, parts, entries.sources, size)
    row = np.repeat(np.arange(entries.users), np.diff(ends, prepend=0))
    masks = np.flatnonzero(np.bincount(proposers))  # as many as there are sets of models, not as there are entries
    codes = np.searchsorted(masks, proposers).astype(np.int32)
    names = tuple(_joined(mask, entries.names) for mask in masks)
    return Entries(entries.users, row, items, scores, rank_within(row), codes, names)


def trust(history: NDArray[np.int64], settings: RankSettings) -> NDArray[np.float64]:
    """How far each user's history is believed, 0 to 1: h / (h + short_history)."""
    return history / (history + settings.short_history) if settings.short_history else np.ones(history.size)


def standing(entries: Entries, settings: RankSettings) -> NDArray[np.float64]:
    """How good each entry is in its own list; an item that a list lacks counts 0 there.

    ranks: 1 / (k + rank), reciprocal rank fusion (Cormack, Clarke, Buettcher, "Reciprocal Rank Fusion Outperforms
    Condorcet", SIGIR 2009). scores: (s - s_last) / (s_first - s_last) over the list, so that the distances in it count
    (CombSUM over min-max scores: Lee, "Analyses of Multiple Evidence Combination", SIGIR 1997). distances: s - s_last, of any size.
    """
    if settings.method == "ranks":
        return 1.0 / (settings.smoothing + entries.ranks)
    return above_last(entries, shares=settings.method == "scores")


def above_last(entries: Entries, shares: bool) -> NDArray[np.float64]:
    """How far each entry's score lies above its list's last; as `shares` of the way to the first, and 1 in a list of equal scores."""
    lists = entries.row * len(entries.names) + entries.sources
    size = entries.users * len(entries.names)
    high, low = np.full(size, -np.inf), np.full(size, np.inf)
    np.maximum.at(high, lists, entries.scores)
    np.minimum.at(low, lists, entries.scores)
    distances, spread = entries.scores - low[lists], (high - low)[lists]
    return np.divide(distances, spread, out=np.ones(lists.size), where=spread > 0) if shares else distances


def _joined(mask: int, names: tuple[str, ...]) -> str:
    return "+".join(sorted(name for code, name in enumerate(names) if mask >> code & 1))
