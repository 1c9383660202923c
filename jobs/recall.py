"""What approximate search misses: measured every night, on a sample of users, before anybody's candidates are looked for."""

from collections.abc import Mapping

import numpy as np
from scipy.sparse import vstack
from threadpoolctl import threadpool_limits

from jobs.dataset import Dataset
from jobs.models import CandidateModel, Users, some
from jobs.models._factors import FactorModel
from jobs.run import Counts
from schemas.errors import Refused

SAMPLE = 500
"""Users, at most."""


def measure(dataset: Dataset, fitted: Mapping[str, CandidateModel], n: int, seed: int) -> Counts:
    """By model that has an index: what `FactorModel.recall` finds for n candidates of a seeded sample of users."""
    indexed = {name: model for name, model in fitted.items() if isinstance(model, FactorModel) and model.index}
    if not indexed:
        return {}
    users = sample(dataset, seed)
    with threadpool_limits(1, "blas"):
        return {name: model.recall(users, n) for name, model in indexed.items()}


def refuse_low(recalls: Counts, fitted: Mapping[str, CandidateModel], n: int) -> None:
    """Raises Refused where a model's recall is below its floor."""
    for name, found in recalls.items():
        settings = fitted[name].settings
        if found["recall"] < settings.min_recall:
            raise Refused(
                f"{name}.index = {settings.index!r} finds {found['recall']:.3f} of the {n} best items of {found['users']} users, "
                f"and {name}.min_recall is {settings.min_recall:g}: nothing is published. Let it look further "
                f"({name}.index_search = {settings.index_search!r}; e.g. nprobe=64 for IVF, efSearch=512 for HNSW), choose another "
                f"{name}.index, or leave it empty, which is exact"
            )


def sample(dataset: Dataset, seed: int) -> Users:
    """At most SAMPLE users with a history, of as many buckets, in seeded order, as it takes: users lie there by hash."""
    rng, chosen, missing = np.random.default_rng(seed), list[Users](), SAMPLE
    for bucket in rng.permutation(dataset.parts).tolist():
        _, users = dataset.bucket(bucket)
        rows = rng.permutation(np.flatnonzero(np.diff(users.weights.indptr)))[:missing]
        chosen.append(some(users, rows))
        missing -= rows.size
        if not missing:
            break
    matrices = ([getattr(users, name) for users in chosen] for name in ("weights", "ages", "excluded"))
    segments = {name: np.concatenate([users.segments[name] for users in chosen]) for name in chosen[0].segments}
    return Users(*(vstack(stack, format="csr") for stack in matrices), chosen[0].eligible, segments)
