"""Recency: popularity among items that are new. An item's age is that of its oldest pair; without times nothing is new or old.

score(j) = 0.5 ** (age of j / new_days) * sum over its users of 0.5 ** (age of the pair / half-life).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from jobs.models import CandidateModel, Candidates, ItemList, Training, Users
from jobs.models._shared import FAINTEST, best_of, decayed_counts, hand_out, longest
from jobs.models._top import empty
from jobs.search import Between
from schemas.settings import Section

PERSONAL = False


class Settings(Section):
    """Popularity among new items; data without times has none, and gets what is popular."""

    new_days: Annotated[float, Between(1, 60)] = Field(7.0, gt=0)
    """An item counts half for every such stretch since its first pair."""
    half_life_days: Annotated[float, Between(0.5, 60)] = Field(7.0, ge=0)
    """A pair counts half for every such stretch since its latest event; 0: all pairs count alike."""


class Model:
    """One score an item, 0 where nobody had it."""

    def __init__(self, scores: NDArray[np.float32]) -> None:
        self.scores = scores

    @classmethod
    def fit(cls, training: Training, settings: Settings, fitted: Mapping[str, CandidateModel] | None = None) -> Self:
        """From the pairs' ages alone."""
        counts = decayed_counts(training.ages, settings.half_life_days)
        first = np.zeros(training.items)
        np.maximum.at(first, training.ages.indices, training.ages.data)
        scores = np.bincount(counts.indices, counts.data, minlength=training.items)
        new = np.maximum(np.exp2(-first / settings.new_days) * scores, FAINTEST)
        return cls(np.where(scores > 0, new, 0).astype(np.float32))

    def candidates(self, users: Users, n: int) -> Candidates:
        """The same list for everybody, without what each user may not get."""
        rows, items = users.weights.shape
        found = empty(rows, min(n, items))
        best = best_of(self.scores, users.eligible, n + longest(users.excluded))
        hand_out(best, users.excluded, found, np.arange(rows))
        return found

    def lists(self, eligible: NDArray[np.bool_], n: int) -> Iterator[ItemList]:
        """None of other kinds."""
        return iter(())

    def save(self, folder: Path) -> None:
        """One .npy file."""
        np.save(folder / "scores.npy", self.scores)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote."""
        return cls(np.load(folder / "scores.npy", mmap_mode="r"))
