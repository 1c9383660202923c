"""Training: ours, implicit alone on the same matrix, and MLlib's ALS, with the NDCG that each reaches on pairs held out."""

import os
from typing import Any

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from jobs.config import SparkSettings
from jobs.models import Training, Users, als, als_spark, rows_of
from jobs.models._factors import FactorModel
from jobs.spark import session
from jobs.world_model import World
from tests.bench import interleaved, summary
from tests.bench.retrieve import histories

ROUNDS = 3
HELD_OUT = 0.2
K = 20


def measure(
    rounds: int,
    users: int = 20_000,
    items: int = 5_000,
    factors: int = 64,
    alpha: float = 10.0,
    regularization: float = 150.0,
    mllib_regularization: float = 1.0,
) -> dict[str, Any]:
    """Medians of interleaved rounds over the made-up platform. Each one's regularization was chosen on a fifth of the pairs
    to learn from."""
    known, asked = halves(World(users=users, items=items), np.random.default_rng(7))
    training = Training(known, known, {}, seed=7)
    shared = {"factors": factors, "alpha": alpha, "iterations": 10}
    ours = als.Settings(regularization=regularization, **shared)
    theirs = als_spark.Settings(regularization=mllib_regularization, **shared)
    confidence, session_ = als.confidence(known, alpha), session(SparkSettings())
    fitted: dict[str, FactorModel] = {}

    def by_us() -> None:
        fitted["ours"] = als.Model.fit(training, ours)

    def by_implicit() -> None:
        with threadpool_limits(1, "blas"):
            solver = AlternatingLeastSquares(
                factors=factors,
                regularization=regularization,
                alpha=1.0,
                iterations=10,
                random_state=7,
                num_threads=os.cpu_count(),
            )
            solver.fit(confidence, show_progress=False)

    def by_mllib() -> None:
        fitted["mllib"] = als_spark.Model.fit(training, theirs)

    seconds = summary(interleaved({"ours": by_us, "implicit": by_implicit, "mllib": by_mllib}, rounds))
    session_.stop()
    medians = {name: figures["median"] for name, figures in seconds.items()}
    return {
        "ratio_to_implicit": medians["ours"] / medians["implicit"],
        "speedup_vs_mllib": medians["mllib"] / medians["ours"],
        "ndcg": {name: ndcg(model, known, asked) for name, model in fitted.items()},
        "pairs": known.nnz,
        "seconds": seconds,
    }


def halves(world: World, rng: np.random.Generator) -> tuple[csr_matrix, csr_matrix]:
    """Pairs to learn from, and a fifth of all to ask for; users x items, every value 1."""
    pairs = histories(world).tocoo()
    held_out = rng.random(pairs.nnz) < HELD_OUT
    known, asked = (
        csr_matrix((pairs.data[part], (pairs.row[part], pairs.col[part])), shape=pairs.shape)
        for part in (~held_out, held_out)
    )
    return known, asked


def ndcg(model: FactorModel, known: csr_matrix, asked: csr_matrix) -> float:
    """NDCG@20 of the users who have something held out; see jobs.metrics for its definition."""
    users = np.flatnonzero(np.diff(asked.indptr))
    seen, truth = known[users], asked[users]
    found = model.candidates(Users(seen, seen, seen, np.ones(known.shape[1], bool)), K).items
    return ndcg_of(found, truth)


def ndcg_of(found: NDArray[np.int32], truth: csr_matrix) -> float:
    """The same of lists: users x K or more items; nobody's row of `truth` is empty."""
    found, items = found[:, :K], truth.shape[1]
    wanted = rows_of(truth) * items + truth.indices
    hits = np.isin(np.arange(len(found))[:, None] * items + found, wanted) & (found >= 0)
    gains: NDArray[np.float64] = 1 / np.log2(np.arange(2, K + 2))
    ideal = np.cumsum(gains)[np.minimum(np.diff(truth.indptr), K) - 1]
    return float(((hits * gains[: found.shape[1]]).sum(axis=1) / ideal).mean())
