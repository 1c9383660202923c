"""Popularity: users an item has, all-time or decayed, for everybody and per segment."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from jobs.models import CandidateModel, Candidates, ItemList, Training, Users, rows_of
from jobs.models._top import empty, top_n
from schemas.lists import ALL, popular_key
from schemas.settings import Section

FAINTEST = 1e-30
"""A decayed count stops here: one that underflows to 0 would come to mean that nobody had the item."""


class Settings(Section):
    """Popularity."""

    half_life_days: float = Field(2.0, ge=0)
    """A pair counts half for every such stretch since its latest event; 0: all-time popularity."""
    segments: tuple[str, ...] = ()
    """Columns of the users table that also get lists of their own, one a value, e.g. ["country"]."""
    min_users: int = Field(20, ge=1)
    """A segment's value with fewer users gets no list: it would be one person's taste."""


class Model:
    """One score an item for everybody and for each segment; an item scores 0 where nobody had it."""

    def __init__(self, keys: list[str], scores: NDArray[np.float32]) -> None:
        """`keys`: popular keys, the first is `all`; `scores`: keys x items."""
        self.keys, self.scores = keys, scores

    @classmethod
    def fit(cls, training: Training, settings: Settings, fitted: Mapping[str, CandidateModel] | None = None) -> Self:
        """Each user counts once an item: sum over its users of 0.5 ** (age of the pair / half-life)."""
        ages = training.ages
        decay = -np.log(2.0) / settings.half_life_days if settings.half_life_days else 0.0
        counts = np.maximum(np.exp(decay * ages.data.astype(np.float64)), FAINTEST)
        row_of = rows_of(ages)
        keys, scores = [ALL], [_sum(ages.indices, counts, ages.shape[1])]
        for column in settings.segments:
            values = training.segments[column]
            for value in sorted({v for v in values if v is not None}):
                inside = values == value
                if inside.sum() >= settings.min_users:
                    pairs = inside[row_of]
                    keys.append(popular_key(column, str(value)))
                    scores.append(_sum(ages.indices[pairs], counts[pairs], ages.shape[1]))
        return cls(keys, np.stack(scores))

    def candidates(self, users: Users, n: int) -> Candidates:
        """The list of everybody without what each user may not get."""
        rows, items = users.weights.shape
        n = min(n, items)
        found = empty(rows, n)
        longest = int(np.diff(users.excluded.indptr).max(initial=0))
        best = self._best(0, users.eligible, n + longest)
        for row in range(rows):
            excluded = users.excluded.indices[users.excluded.indptr[row] : users.excluded.indptr[row + 1]]
            head = best.items[: n + excluded.size]
            kept = ~np.isin(head, excluded)
            size = min(n, int(kept.sum()))
            found.items[row, :size] = head[kept][:size]
            found.scores[row, :size] = best.scores[: head.size][kept][:size]
        return found

    def lists(self, eligible: NDArray[np.bool_], n: int) -> Iterator[ItemList]:
        """One list a key, best first."""
        for number, key in enumerate(self.keys):
            best = self._best(number, eligible, n)
            yield ItemList("popular", key, best.items, best.scores)

    def save(self, folder: Path) -> None:
        """Scores as .npy, keys as JSON."""
        np.save(folder / "scores.npy", self.scores)
        (folder / "keys.json").write_text(json.dumps(self.keys, ensure_ascii=False))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote."""
        return cls(json.loads((folder / "keys.json").read_text()), np.load(folder / "scores.npy", mmap_mode="r"))

    def _best(self, number: int, eligible: NDArray[np.bool_], n: int) -> Candidates:
        scores = np.where(eligible & (self.scores[number] > 0), self.scores[number], np.float32(-np.inf))
        best = top_n(scores[None, :], n)
        size = int((best.items[0] >= 0).sum())
        return Candidates(best.items[0, :size], best.scores[0, :size])


def _sum(items: NDArray[np.int32], counts: NDArray[np.float64], size: int) -> NDArray[np.float32]:
    return np.bincount(items, counts, minlength=size).astype(np.float32)
