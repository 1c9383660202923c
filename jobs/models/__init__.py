"""Candidate models: millions of items to a few hundred a user, one file a model, found by being here.

A model's file holds a frozen `Settings` class, which becomes its section of nightlist.toml, and a class `Model` that
keeps the protocol below. All of them speak dense item numbers (0 .. items - 1); ids are the dataset's and the build's.
"""

import pkgutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from schemas.lists import Kind
from schemas.settings import Section

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

NONE = -1
"""Pads `Candidates.items` where a user has fewer candidates than asked for."""
USER, ITEM, R = "user", "item", "r"
"""Columns of `Training.pairs`."""


@dataclass(frozen=True, slots=True)
class Before:
    """Last night's models, for one that goes on from what it had learned: `folder` holds a folder a model, `numbers` per item of
    tonight its number of then, or NONE."""

    folder: Path
    numbers: NDArray[np.int32]


@dataclass
class Training:
    """All that a model may learn from, one row a user in (bucket, user_id) order.

    `weights`: users x items, float32, r > 0 (impressions are not in it); `ages`: the same pattern, float32, days from
    the pair's latest event to the end of the day trained on; `segments`: per column one value (or None) a user;
    `scratch`: a folder that all Spark workers reach, for what is put aside while training; `before`: where there is one to
    begin from.

    A dataset on disk is jobs.dataset.StoredTraining, which reads them when a model first asks.
    """

    weights: csr_matrix
    ages: csr_matrix
    segments: Mapping[str, NDArray[np.object_]]
    seed: int
    scratch: Path = Path(tempfile.gettempdir())
    before: Before | None = None

    @property
    def items(self) -> int:
        """How many items there are."""
        return int(self.weights.shape[1])

    def pairs(self) -> "DataFrame":
        """One row a pair in the active Spark session: USER and ITEM (numbers, int), R (float, > 0); in no order."""
        from pyspark.sql import SparkSession

        users, items = rows_of(self.weights).astype(np.int32), self.weights.indices.astype(np.int32)
        return SparkSession.active().createDataFrame(pa.table({USER: users, ITEM: items, R: self.weights.data}))


@dataclass(frozen=True, slots=True)
class Users:
    """Some users to find candidates for: the rows of `weights` and `ages` (as in training) and of `excluded` (seen or
    blocked items, any stored entry) are users; `eligible` says per item whether anybody may be shown it today;
    `segments` are as in training, of the columns that the dataset has."""

    weights: csr_matrix
    ages: csr_matrix
    excluded: csr_matrix
    eligible: NDArray[np.bool_]
    segments: Mapping[str, NDArray[np.object_]] = field(default_factory=dict)

    def may_get(self, rows: NDArray[np.intp], items: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Per pair of a user (a row) and an item: nobody is shown what is not eligible, seen or blocked."""
        size = self.excluded.shape[1]
        return self.eligible[items] & ~np.isin(
            rows * size + items, rows_of(self.excluded) * size + self.excluded.indices
        )


def some(users: Users, rows: slice | NDArray[np.intp]) -> Users:
    """Some of the users."""
    segments = {name: labels[rows] for name, labels in users.segments.items()}
    return Users(users.weights[rows], users.ages[rows], users.excluded[rows], users.eligible, segments)


def rows_of(matrix: csr_matrix) -> NDArray[np.intp]:
    """The row of each stored entry, in their order."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


class Candidates(NamedTuple):
    """`items`: users x n, int32, best first, padded with NONE; `scores`: users x n, float32, -inf where padded."""

    items: NDArray[np.int32]
    scores: NDArray[np.float32]


class ItemList(NamedTuple):
    """A list that is nobody's own: `key` is an item number for kind `similar`, a popular key for kind `popular`."""

    kind: Kind
    key: int | str
    items: NDArray[np.int32]
    scores: NDArray[np.float32]


class CandidateModel(Protocol):
    """One trained model. Candidates hold no excluded or ineligible item, and break ties by the lower number. They are exact, but
    where a model has an index: then it is measured every night what they miss (jobs.recall)."""

    @classmethod
    def fit(cls, training: Training, settings: Section, fitted: Mapping[str, "CandidateModel"]) -> Self:
        """Learn from `training`; `fitted` are the models that `requires` names."""

    def candidates(self, users: Users, n: int) -> Candidates:
        """At most n candidates a user; an item that the model knows nothing of is none."""

    def lists(self, eligible: NDArray[np.bool_], n: int) -> Iterator[ItemList]:
        """The model's lists of other kinds than `user`, of eligible items only."""

    def save(self, folder: Path) -> None:
        """Write into an empty folder; no pickle."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote; arrays are memory-mapped, so that the workers of a node share them."""


@cache
def names() -> tuple[str, ...]:
    """The names of all models, sorted."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


def module(name: str) -> ModuleType:
    """The file of one model."""
    return import_module(f"jobs.models.{name}")


def requires(name: str, settings: Section) -> tuple[str, ...]:
    """The models that this one is built from under these settings; most need none."""
    needs = getattr(module(name), "requires", None)
    return tuple(needs(settings)) if needs else ()


def personal(name: str) -> bool:
    """Whether the model goes by the user's own history, or gives the same to many."""
    return bool(getattr(module(name), "PERSONAL", True))


def columns(names: Iterable[str], settings: Mapping[str, Section]) -> tuple[str, ...]:
    """The columns of the users table that these models need (a model that needs some has a function of this name)."""
    needs = ((getattr(module(name), "columns", None), settings[name]) for name in names)
    return tuple(dict.fromkeys(column for need, section in needs if need for column in need(section)))


def notes(model: CandidateModel) -> Mapping[str, int]:
    """What a trained model has to say for the record of the night, by name; most have nothing."""
    return getattr(model, "notes", {})
