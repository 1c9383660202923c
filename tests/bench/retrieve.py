"""The best n items of all users by factors, seen items filtered, on both cores: ours, implicit.recommend, MLlib's
recommendForAllUsers, and the bare float32 product that none of them can do without."""

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
from jobs.models._top import USERS, best_of_product
from jobs.spark import session
from tests.bench import interleaved, summary

CORES = os.cpu_count() or 1
FACTORS = (64, 128)
BLOCKS = (256, 1024, 4096)
"""Users in a product: the fastest counts."""
LONGEST, MEAN = 5_000, 50
"""Seen items of a user."""


def measure(
    rounds: int, users: int = 8_192, items: int = 100_000, n: int = 100, mllib_users: int = 1_024
) -> dict[str, Any]:
    """Medians of interleaved rounds, the worst over 64 and 128 factors; MLlib has fewer users, and no filter."""
    by_factors = {str(factors): _measure(rounds, users, items, n, mllib_users, factors) for factors in FACTORS}
    return {
        "ratio_to_sgemm": max(found["ratio_to_sgemm"] for found in by_factors.values()),
        "speedup_vs_implicit": min(found["speedup_vs_implicit"] for found in by_factors.values()),
        "speedup_vs_mllib": min(found["speedup_vs_mllib"] for found in by_factors.values()),
        "by_factors": by_factors,
    }


def _measure(rounds: int, users: int, items: int, n: int, mllib_users: int, factors: int) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    left, right = (rng.normal(0, 0.1, (size, factors)).astype(np.float32) for size in (users, items))
    seen = histories(rng, users, items)
    contenders = {"ours": partial(ours, left, right, seen, n), "implicit": partial(theirs(left, right, seen), n)}
    room = np.empty((min(max(BLOCKS), users), items), np.float32)
    contenders |= {f"sgemm_{block}": partial(sgemm, left, right, room[:block]) for block in BLOCKS}
    contenders |= {"mllib": partial(mllib(left[:mllib_users], right), n)}
    seconds = summary(interleaved(contenders, rounds))
    medians = {name: figures["median"] for name, figures in seconds.items()}
    return {
        "ratio_to_sgemm": medians["ours"] / min(medians[f"sgemm_{block}"] for block in BLOCKS),
        "speedup_vs_implicit": medians["implicit"] / medians["ours"],
        "speedup_vs_mllib": (medians["mllib"] / mllib_users) / (medians["ours"] / users),
        "users_per_s": users / medians["ours"],
        "seconds": seconds,
    }


def histories(rng: np.random.Generator, users: int, items: int) -> csr_matrix:
    """Seen items: MEAN a user on average, most have fewer, one in some thousands has LONGEST."""
    lengths = rng.pareto(1.5, users) + 0.4
    lengths = np.clip(lengths * MEAN / lengths.mean(), 1, LONGEST).astype(int)
    lengths[:: max(users // 2, 1)] = LONGEST
    rows = [np.sort(rng.choice(items, length, replace=False)) for length in lengths]
    indices = np.concatenate(rows).astype(np.int32)
    return csr_matrix((np.ones(indices.size, np.float32), indices, np.r_[0, np.cumsum(lengths)]), shape=(users, items))


def ours(left: NDArray[np.float32], right: NDArray[np.float32], seen: csr_matrix, n: int) -> None:
    """One thread of Python and of BLAS a core, as Spark's workers have; shares as large as the kernel's blocks."""
    everything = np.ones(len(right), bool)

    def share(start: int) -> None:
        block = slice(start, start + USERS)
        best_of_product(left[block], right, seen[block], everything, n)

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(CORES) as pool:
        list(pool.map(share, range(0, len(left), USERS)))


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
    model = ALSModel(java)

    def recommend(n: int) -> None:
        model.recommendForAllUsers(n).write.format("noop").mode("overwrite").save()

    return recommend


def sgemm(left: NDArray[np.float32], right: NDArray[np.float32], room: NDArray[np.float32]) -> None:
    """The product alone, BLAS on all cores, as many users at a time as there is room for."""
    with threadpool_limits(CORES, "blas"):
        for start in range(0, len(left), len(room)):
            users = left[start : start + len(room)]
            np.matmul(users, right.T, out=room[: len(users)])
