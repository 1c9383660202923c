"""Candidates for all users by ALS, seen items filtered, against implicit.recommend and the bare float32 product."""

from typing import Any

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from jobs.models import Users
from jobs.models._factors import BLOCK
from jobs.models.als import Model, Settings
from tests.bench import interleaved, summary

USERS, ITEMS, FACTORS, SEEN, N = 2_000, 20_000, 64, 50, 100


def measure(rounds: int) -> dict[str, Any]:
    """One thread each. Users are folded in beforehand for implicit, and by ours each time, as at night."""
    rng = np.random.default_rng(7)
    factors = rng.normal(0, 0.1, (ITEMS, FACTORS)).astype(np.float32)
    indices = np.stack([rng.choice(ITEMS, SEEN, replace=False) for _ in range(USERS)]).astype(np.int32)
    ones = np.ones(indices.size, np.float32)
    pairs = csr_matrix((ones, indices.ravel(), np.arange(0, indices.size + 1, SEEN)), shape=(USERS, ITEMS))
    pairs.sort_indices()
    ours = Model(factors, np.ones(ITEMS, bool), Settings(factors=FACTORS))
    users = Users(pairs, pairs, pairs, np.ones(ITEMS, bool))
    theirs = AlternatingLeastSquares(factors=FACTORS, num_threads=1)
    theirs.item_factors, theirs.user_factors = factors, ours.fold_in(pairs)
    product = np.empty((BLOCK, ITEMS), np.float32)

    def sgemm() -> None:
        for start in range(0, USERS, BLOCK):
            block = theirs.user_factors[start : start + BLOCK]
            np.matmul(block, factors.T, out=product[: len(block)])

    with threadpool_limits(1, "blas"):
        seconds = interleaved(
            {
                "ours": lambda: ours.candidates(users, N),
                "implicit": lambda: theirs.recommend(np.arange(USERS), pairs, N=N, filter_already_liked_items=True),
                "sgemm": sgemm,
            },
            rounds,
        )
    medians = {name: figures["median"] for name, figures in summary(seconds).items()}
    return {
        "speedup_vs_implicit": medians["implicit"] / medians["ours"],
        "ratio_to_sgemm": medians["ours"] / medians["sgemm"],
        "seconds": summary(seconds),
    }
