"""Popularity: users an item has, all-time or decayed, for everybody and per segment."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from jobs.models import CandidateModel, Candidates, ItemList, Training, Users, rows_of
from jobs.models._shared import best_of, decayed_counts, hand_out, longest
from jobs.models._top import empty
from jobs.search import Between
from schemas.lists import ALL, popular_key
from schemas.settings import Section

PERSONAL = False


class Settings(Section):
    """Popularity."""

    half_life_days: Annotated[float, Between(0.5, 60)] = Field(2.0, ge=0)
    """A pair counts half for every such stretch since its latest event; 0: all-time popularity."""
    segments: tuple[str, ...] = ()
    """Columns of the users table that also get lists of their own, one a value, e.g. ["country"]."""
    min_users: int = Field(20, ge=1)
    """A segment's value with fewer users gets no list: it would be one person's taste."""


def columns(settings: Settings) -> tuple[str, ...]:
    """The columns of the users table that this model needs."""
    return settings.segments


class Model:
    """One score an item for everybody and for each segment; an item scores 0 where nobody had it."""

    def __init__(self, keys: list[str], scores: NDArray[np.float32]) -> None:
        """`keys`: popular keys, the first is `all`; `scores`: keys x items."""
        self.keys, self.scores = keys, scores

    @classmethod
    def fit(cls, training: Training, settings: Settings, fitted: Mapping[str, CandidateModel] | None = None) -> Self:
        """Each user counts once an item: sum over its users of 0.5 ** (age of the pair / half-life)."""
        ages = training.ages
        counts = decayed_counts(ages, settings.half_life_days).data
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
        found = empty(rows, min(n, items))
        best = best_of(self.scores[0], users.eligible, n + longest(users.excluded))
        hand_out(best, users.excluded, found, np.arange(rows))
        return found

    def lists(self, eligible: NDArray[np.bool_], n: int) -> Iterator[ItemList]:
        """One list a key, best first."""
        for number, key in enumerate(self.keys):
            best = best_of(self.scores[number], eligible, n)
            yield ItemList("popular", key, best.items, best.scores)

    def save(self, folder: Path) -> None:
        """Scores as .npy, keys as JSON."""
        np.save(folder / "scores.npy", self.scores)
        (folder / "keys.json").write_text(json.dumps(self.keys, ensure_ascii=False))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote."""
        return cls(json.loads((folder / "keys.json").read_text()), np.load(folder / "scores.npy", mmap_mode="r"))


def _sum(items: NDArray[np.int32], counts: NDArray[np.float64], size: int) -> NDArray[np.float32]:
    return np.bincount(items, counts, minlength=size).astype(np.float32)
