"""The best n items of all users by factors, seen items filtered, on both cores: ours, implicit.recommend, MLlib's
recommendForAllUsers, and the bare float32 product.

The factors are those that ALS learns on the made-up platform. `random_factors` is the worst case for ours: every item as long
as the other, so that nothing can be left out.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from implicit.cpu.als import AlternatingLeastSquares
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from jobs.config import SparkSettings
from jobs.models import Training
from jobs.models._top import best_of_product
from jobs.models.als import Model, Settings
from jobs.spark import session
from jobs.world_events import happenings
from jobs.world_model import World, people
from tests.bench import interleaved, summary

CORES = os.cpu_count() or 1
FACTORS = (64, 128)
BLOCKS = (256, 1024, 4096)
"""Users in a product: the fastest counts."""
LONGEST = 5_000
"""Seen items of a user; the mean is some 50."""


def measure(
    rounds: int,
    users: int = 8_192,
    items: int = 100_000,
    n: int = 100,
    mllib_users: int = 1_024,
    train_users: int = 60_000,
) -> dict[str, Any]:
    """Medians of interleaved rounds, the worst over 64 and 128 factors; MLlib has fewer users, and no filter."""
    rng = np.random.default_rng(7)
    weights = histories(World(users=max(train_users, users), items=items))
    seen = with_a_tail(weights[:users], rng)
    by_factors, at_random = {}, {}
    for factors in FACTORS:
        model = Model.fit(Training(weights, weights, {}, seed=7), Settings(factors=factors))
        left, right = model.fold_in(weights[:users]), np.array(model.item_factors)
        by_factors[str(factors)] = _measure(rounds, left, right, seen, n, mllib_users)
        left, right = (rng.normal(0, 0.1, array.shape).astype(np.float32) for array in (left, right))
        at_random[str(factors)] = _measure(rounds, left, right, seen, n, mllib_users)
    return _worst(by_factors) | {
        "by_factors": by_factors,
        "random_factors": _worst(at_random) | {"by_factors": at_random},
    }


def _worst(by_factors: dict[str, dict[str, Any]]) -> dict[str, float]:
    found = by_factors.values()
    ratios = {"ratio_to_sgemm": max(one["ratio_to_sgemm"] for one in found)}
    return ratios | {key: min(one[key] for one in found) for key in ("speedup_vs_implicit", "speedup_vs_mllib")}


def _measure(
    rounds: int, left: NDArray[np.float32], right: NDArray[np.float32], seen: csr_matrix, n: int, mllib_users: int
) -> dict[str, Any]:
    users = len(left)
    contenders = {"ours": partial(ours, left, right, seen, n), "implicit": partial(theirs(left, right, seen), n)}
    room = np.empty((min(max(BLOCKS), users), len(right)), np.float32)
    contenders |= {f"sgemm_{block}": partial(sgemm, left, right, room[:block]) for block in BLOCKS}
    contenders |= {"mllib": partial(mllib(left[:mllib_users], right), n)}
    seconds = summary(interleaved(contenders, rounds))
    medians = {name: figures["median"] for name, figures in seconds.items()}
    return {
        "ratio_to_sgemm": medians["ours"] / min(medians[f"sgemm_{block}"] for block in BLOCKS),
        "speedup_vs_implicit": medians["implicit"] / medians["ours"],
        "speedup_vs_mllib": (medians["mllib"] / min(mllib_users, users)) / (medians["ours"] / users),
        "users_per_s": users / medians["ours"],
        "seconds": seconds,
    }


def histories(world: World, block: int = 4_096) -> csr_matrix:
    """What the platform's users watched; every value 1."""
    pairs = []
    for start in range(0, world.everyone, block):
        rows = happenings(world, people(world, np.arange(start, min(start + block, world.everyone))))
        pairs.append(np.unique(np.stack([rows.viewer + start, rows.item]), axis=1))
    found = np.concatenate(pairs, axis=1)
    return csr_matrix((np.ones(found.shape[1], np.float32), found), shape=(world.everyone, world.items))


def with_a_tail(weights: csr_matrix, rng: np.random.Generator) -> csr_matrix:
    """One user in 2,048 has seen LONGEST items more."""
    users, items = weights.shape
    busy = np.arange(0, users, 2_048).repeat(min(LONGEST, items // 2))
    more = csr_matrix((np.ones(busy.size, np.float32), (busy, rng.integers(0, items, busy.size))), shape=weights.shape)
    return weights + more


def ours(left: NDArray[np.float32], right: NDArray[np.float32], seen: csr_matrix, n: int) -> None:
    """One thread of Python and of BLAS a core, as Spark's workers have; a bucket each."""
    everything, users = np.ones(len(right), bool), -(-len(left) // CORES)

    def bucket(start: int) -> None:
        block = slice(start, start + users)
        best_of_product(left[block], right, seen[block], everything, n)

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(CORES) as pool:
        list(pool.map(bucket, range(0, len(left), users)))


def theirs(left: NDArray[np.float32], right: NDArray[np.float32], seen: csr_matrix) -> Callable[[int], None]:
    """implicit with the same factors and threads."""
    model = AlternatingLeastSquares(factors=left.shape[1], num_threads=CORES)
    model.user_factors, model.item_factors = left, right

    def recommend(n: int) -> None:
        with threadpool_limits(1, "blas"):
            model.recommend(np.arange(len(left)), seen, N=n, filter_already_liked_items=True)

    return recommend


def mllib(left: NDArray[np.float32], right: NDArray[np.float32]) -> Callable[[int], None]:
    """recommendForAllUsers with these factors, on a local Spark with all cores; rows are counted, not collected."""
    from pyspark.ml.recommendation import ALSModel

    spark = session(SparkSettings())
    frames = [
        spark.createDataFrame(pa.table({"id": np.arange(len(rows), dtype=np.int32), "features": list(rows)})).cache()
        for rows in (left, right)
    ]
    java = spark._jvm.org.apache.spark.ml.recommendation.ALSModel("als", left.shape[1], *(f._jdf for f in frames))
    model = ALSModel(java.setUserCol("user").setItemCol("item"))

    def recommend(n: int) -> None:
        model.recommendForAllUsers(n).write.format("noop").mode("overwrite").save()

    return recommend


def sgemm(left: NDArray[np.float32], right: NDArray[np.float32], room: NDArray[np.float32]) -> None:
    """The product alone, BLAS on all cores, as many users at a time as there is room for."""
    with threadpool_limits(CORES, "blas"):
        for start in range(0, len(left), len(room)):
            users = left[start : start + len(room)]
            np.matmul(users, right.T, out=room[: len(users)])
