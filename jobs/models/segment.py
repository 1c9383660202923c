"""Popularity among people like the user: the share of each of the user's segments that has the item.

score(u, j) = sum over columns of (n_cj + m * share_j) / (n_c + m), c: the user's value in the column, n_c its users, n_cj those
of them that have j, share_j the same share of everybody. m pulls small segments, and users without a value, to everybody's.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import csr_matrix

from jobs.models import CandidateModel, Candidates, ItemList, Training, Users
from jobs.models._shared import best_of, decayed_counts, hand_out, longest
from jobs.models._top import empty
from jobs.search import Between
from schemas.settings import Section

PERSONAL = False


class Settings(Section):
    """Popularity in the user's segments."""

    segments: tuple[str, ...] = ()
    """Columns of the users table, e.g. ["country"]; without one, everybody gets the popular items."""
    half_life_days: Annotated[float, Between(0.5, 60)] = Field(2.0, ge=0)
    """A pair counts half for every such stretch since its latest event; 0: all-time popularity."""
    prior_users: Annotated[float, Between(1, 1000)] = Field(50.0, gt=0)
    """m: a segment counts as if so many more users with everybody's taste were in it."""


def columns(settings: Settings) -> tuple[str, ...]:
    """The columns of the users table that this model needs."""
    return settings.segments


class Model:
    """Shares of items among everybody, and by how much each segment's differ."""

    def __init__(self, keys: list[list[str]], shares: NDArray[np.float32], columns: tuple[str, ...]) -> None:
        """`keys`: (column, value) of a segment; `shares`: (1 + segments) x items, the first row is everybody's."""
        self.keys, self.shares, self.columns = keys, shares, columns
        self._rows = {(column, value): row for row, (column, value) in enumerate(keys, start=1)}

    @classmethod
    def fit(cls, training: Training, settings: Settings, fitted: Mapping[str, CandidateModel] | None = None) -> Self:
        """One row a value of each column."""
        counts = decayed_counts(training.ages, settings.half_life_days)
        everybody = _sums(counts) / counts.shape[0]
        keys, shares, m = [], [everybody], settings.prior_users
        for column in settings.segments:
            values = training.segments[column]
            for value in sorted({value for value in values if value is not None}):
                inside = counts[values == value]
                keys.append([column, value])
                shares.append((_sums(inside) + m * everybody) / (inside.shape[0] + m))
        return cls(keys, np.stack(shares).astype(np.float32), settings.segments)

    def candidates(self, users: Users, n: int) -> Candidates:
        """One list for all users of the same segments, without what each may not get."""
        size, items = users.weights.shape
        found = empty(size, min(n, items))
        alike, group_of = np.unique(self._rows_of(users), axis=0, return_inverse=True)
        depth = n + longest(users.excluded)
        for group, rows in enumerate(alike):
            best = best_of(self.shares[rows].sum(axis=0), users.eligible, depth)
            hand_out(best, users.excluded, found, np.flatnonzero(group_of == group))
        return found

    def lists(self, eligible: NDArray[np.bool_], n: int) -> Iterator[ItemList]:
        """None of other kinds: popular lists are the model `popular`'s."""
        return iter(())

    def save(self, folder: Path) -> None:
        """Shares as .npy, the rest as JSON."""
        np.save(folder / "shares.npy", self.shares)
        (folder / "keys.json").write_text(json.dumps([self.columns, self.keys], ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote."""
        columns, keys = json.loads((folder / "keys.json").read_text(encoding="utf-8"))
        return cls(keys, np.load(folder / "shares.npy", mmap_mode="r"), tuple(columns))

    def _rows_of(self, users: Users) -> NDArray[np.intp]:
        """Users x columns: the row of the user's segment; everybody's (0) where the value is none or new."""
        rows = np.zeros((users.weights.shape[0], max(len(self.columns), 1)), np.intp)
        for place, column in enumerate(self.columns):
            if column in users.segments:
                rows[:, place] = [self._rows.get((column, value), 0) for value in users.segments[column]]
        return rows


def _sums(counts: csr_matrix) -> NDArray[np.float64]:
    return np.asarray(counts.sum(axis=0)).ravel()
