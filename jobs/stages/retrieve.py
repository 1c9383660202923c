"""Stage 4: from all items to a few hundred candidates a user, each with its source, rank and score there."""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from jobs import models, recall
from jobs.buckets import Buckets
from jobs.candidates import Entries
from jobs.dataset import Dataset
from jobs.models import NONE, CandidateModel, Users
from jobs.run import Counts


def find(
    out: Path, buckets: Buckets, dataset: Path, trained: Path, names: Sequence[str], n: int, seed: int, refuse: bool
) -> Counts:
    """Write each user's n candidates of each model; seen, blocked and unavailable items are not among them.

    What indexes miss is measured first, on users drawn by `seed`. Raises Refused where that is too much, and `refuse` is set.
    """
    fitted = {name: load(trained, name) for name in names}
    recalls = recall.measure(Dataset(dataset), fitted, n, seed)
    if refuse:
        recall.refuse_low(recalls, fitted, n)
    rows = buckets.each(out, partial(bucket_candidates, dataset, trained, tuple(names), n))
    return {"rows": rows} | ({"recall": recalls} if recalls else {})


def bucket_candidates(dataset: Path, trained: Path, names: tuple[str, ...], n: int, bucket: int) -> pa.Table:
    """The candidates of one bucket's users, in the dataset's order."""
    user_ids, users = Dataset(dataset).bucket(bucket)
    return merge(users, {name: load(trained, name) for name in names}, n).table(user_ids)


def merge(users: Users, fitted: dict[str, CandidateModel], n: int) -> Entries:
    """One entry for each (user, model, candidate), by user, model and rank; ranks begin at 1."""
    found = [model.candidates(users, n) for model in fitted.values()]
    items = np.concatenate([candidates.items for candidates in found], axis=1)
    ranks = np.concatenate([np.arange(1, candidates.items.shape[1] + 1) for candidates in found])
    codes = np.repeat(np.arange(len(found)), [candidates.items.shape[1] for candidates in found])
    rows, columns = np.nonzero(items != NONE)
    return Entries(
        users=items.shape[0],
        row=rows,
        items=items[rows, columns],
        scores=np.concatenate([candidates.scores for candidates in found], axis=1)[rows, columns],
        ranks=ranks[columns].astype(np.int32),
        sources=codes[columns].astype(np.int32),
        names=tuple(fitted),
    )


@lru_cache(maxsize=8)
def load(trained: Path, name: str) -> CandidateModel:
    """A trained model, once a worker process. A run's folder never holds two different models of one name."""
    model: CandidateModel = models.module(name).Model.load(trained / name)
    return model
