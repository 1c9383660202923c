"""What trials are fitted and judged on, in this process: the dataset that the night's own stages made of the training part,
with weights as they were before scale and decay, and the pairs held out.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from os import cpu_count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from threadpoolctl import threadpool_limits

from jobs.config import DatasetSettings, TrainSettings
from jobs.dataset import Dataset, column
from jobs.models import NONE, CandidateModel, Candidates, Training, Users, some
from jobs.recall import sample
from schemas.columns import ITEM_ID, USER_ID

PLAIN = DatasetSettings(scale="linear", half_life_days=0)
"""A dataset made so keeps the sums of weights; any other one follows from it."""
SMALLEST = 1e-30
"""As in stage 2: a positive that decays to 0 would come to mean "not seen"."""
MOST_USERS = 6_000
"""Users judged, at most: their mean differs from everybody's by some 1 %, and equally for all trials."""
FEW = 0.02
"""Share of pairs whose weight is another one, below which weights say nothing."""
BLOCK = 256
"""Users scored at a time, in as many threads as there are cores."""


@dataclass(frozen=True)
class Ground:
    """`users`: those judged, in seeded order, one row each; `truth`: users x items, the pairs held out; `sizes`: items held
    out a user, those among them that training does not know included; `everybody`: users of the training part; `sampled`: those
    of them whose lists give the units of scores, as in a night."""

    training: Training
    users: Users
    sampled: Users
    truth: csr_matrix
    sizes: NDArray[np.int64]
    everybody: int

    @classmethod
    def load(cls, dataset: Path, pairs: Path, seed: int, train: TrainSettings) -> "Ground":
        """From a dataset made with PLAIN weights, and the distinct pairs held out (user_id, item_id).

        `seed` draws the users that are judged, `train` is [train], which fits go by.
        """
        data = Dataset(dataset)
        ids, users = _all_users(data)
        truth, sizes = _truth(pq.read_table(pairs), ids, data.item_ids())
        rows = np.random.default_rng(seed).permutation(np.flatnonzero(sizes))[:MOST_USERS]
        training = data.training((), train.seed, max_users=train.max_train_users)
        return cls(
            Training(training.weights, training.ages, {}, train.seed),
            some(users, rows),
            sample(data, train.seed),
            truth[rows],
            sizes[rows],
            len(ids),
        )

    @property
    def has_times(self) -> bool:
        """Whether pairs differ in age."""
        return bool(np.ptp(self.training.ages.data) > 1) if self.training.ages.nnz else False

    @property
    def has_weights(self) -> bool:
        """Whether pairs differ in weight, and not only a few that stand in the file twice."""
        weights = self.training.weights.data
        return bool(weights.size and (weights != np.median(weights)).mean() >= FEW)

    def under(self, settings: DatasetSettings) -> tuple[Training, Users, Users]:
        """`training`, `users` and `sampled` with the weights that stage 2 gives under these settings."""
        training = self.training
        weights = weighed(training.weights, training.ages, settings)
        return (
            Training(weights, training.ages, training.segments, training.seed),
            *(replace(each, weights=weighed(each.weights, each.ages, settings)) for each in (self.users, self.sampled)),
        )

    def gains(self, items: NDArray[np.int32], rows: slice, k: int) -> NDArray[np.float64]:
        """NDCG@k of each of these users' lists (users x at least k, padded with NONE), as jobs.metrics defines it."""
        items = items[:, :k]
        hits = self.hits(items, rows)
        discounts = 1 / np.log2(np.arange(2, k + 2))
        ideal = np.cumsum(discounts)[np.minimum(self.sizes[rows], k) - 1]
        return (hits @ discounts[: items.shape[1]]) / ideal

    def hits(self, items: NDArray[np.int32], rows: slice) -> NDArray[np.bool_]:
        """Which of these users' items were held out."""
        truth = self.truth[rows]
        base = np.arange(items.shape[0], dtype=np.int64)[:, None] * truth.shape[1]
        keys = np.repeat(base.ravel(), np.diff(truth.indptr)) + truth.indices
        return (items != NONE) & np.isin(base + items, keys)


def weighed(weights: csr_matrix, ages: csr_matrix, settings: DatasetSettings) -> csr_matrix:
    """Summed weights as r, by the formula of stage 2 (jobs.stages.dataset), to float32's precision."""
    r = weights.data.astype(np.float64)
    r = np.log1p(r) if settings.scale == "log" else r
    if settings.half_life_days:
        r = r * np.exp2(-ages.data.astype(np.float64) / settings.half_life_days)
    return csr_matrix((np.maximum(r, SMALLEST).astype(np.float32), weights.indices, weights.indptr), weights.shape)


def candidates(model: CandidateModel, users: Users, n: int) -> Candidates:
    """The model's candidates of these users, on all cores; nobody's depend on who stands beside."""
    blocks = [slice(start, start + BLOCK) for start in range(0, users.weights.shape[0], BLOCK)]
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cpu_count()) as pool:
        found = list(pool.map(lambda block: model.candidates(some(users, block), n), blocks))
    return Candidates(np.concatenate([each.items for each in found]), np.concatenate([each.scores for each in found]))


def _all_users(data: Dataset) -> tuple[pa.Array, Users]:
    """All users in (bucket, user_id) order."""
    buckets = [data.bucket(number) for number in range(data.parts)]
    ids = pa.concat_arrays([ids for ids, _ in buckets])
    return ids, Users(
        *(_stacked([getattr(users, name) for _, users in buckets]) for name in ("weights", "ages", "excluded")),
        buckets[0][1].eligible,
    )


def _stacked(matrices: Sequence[csr_matrix]) -> csr_matrix:
    return vstack(matrices, format="csr")


def _truth(pairs: pa.Table, ids: pa.Array, item_ids: pa.Array) -> tuple[csr_matrix, NDArray[np.int64]]:
    user = pc.fill_null(pc.index_in(column(pairs, USER_ID), ids), NONE).to_numpy()
    item = pc.fill_null(pc.index_in(column(pairs, ITEM_ID), item_ids), NONE).to_numpy()
    sizes = np.bincount(user[user != NONE], minlength=len(ids))
    known = (user != NONE) & (item != NONE)
    ones = np.ones(int(known.sum()), np.float32)
    return csr_matrix((ones, (user[known], item[known])), shape=(len(ids), len(item_ids))), sizes
