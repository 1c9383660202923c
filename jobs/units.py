"""What the scores of a blend's models are measured in: they have nothing in common, and one model's grow with what it learned from.

Weights are found on one data set and used on others, so they must not have to make up for that. A unit is the same for all users:
how much surer a model is of one than of another is just what counts.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from jobs import models
from jobs.dataset import Dataset
from jobs.models import NONE, CandidateModel, Candidates, Users
from jobs.recall import sample


@dataclass(frozen=True)
class Proposers:
    """The models `names` in the folder `trained`, each of which proposes `n` items a user; of all users, in `dataset`, some are
    drawn by `seed`."""

    dataset: Path
    trained: Path
    names: tuple[str, ...]
    n: int
    seed: int

    def units(self) -> dict[str, float]:
        """By model."""
        users = sample(Dataset(self.dataset), self.seed)
        with threadpool_limits(1, "blas"):
            return {name: unit(self._load(name), users, self.n) for name in self.names}

    def _load(self, name: str) -> CandidateModel:
        model: CandidateModel = models.module(name).Model.load(self.trained / name)
        return model


def unit(model: CandidateModel, users: Users, n: int) -> float:
    """The median way from the first to the last score of these users' lists of n candidates; 1 where no list has two scores."""
    return median_way(model.candidates(users, n)) if users.weights.shape[0] else 1.0


def median_way(found: Candidates) -> float:
    """The same of lists that are there."""
    valid = found.items != NONE
    high, low = found.scores.max(axis=1, initial=-np.inf), np.min(found.scores, axis=1, initial=np.inf, where=valid)
    ways = (high - low)[valid.any(axis=1)].astype(np.float64)
    return float(np.median(ways[ways > 0])) if (ways > 0).any() else 1.0
