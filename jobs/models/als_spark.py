"""Implicit-feedback ALS by Spark MLlib, for data that no one machine holds. Only item factors come back to the driver.

MLlib minimises, over users u, items i and their n_u and n_i pairs, with p = 1 for a pair and 0 for none,

    sum over all (u, i) of (1 + alpha * r_ui) (p_ui - x_u'y_i)^2 + lambda * (sum of n_u |x_u|^2 + sum of n_i |y_i|^2)

which is Hu, Koren, Volinsky (ICDM 2008) with the weighted regularization of Zhou et al. (ALS-WR, AAIM 2008): v = 1. `als`
minimises the same sum + lambda * (sum of |x_u|^2 + sum of |y_i|^2): v = 0. So where every row has n pairs, a lambda here
means what n times as much means there; elsewhere users and items with many pairs are held back more than by `als`.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pydantic import Field, field_validator

from jobs.models import ITEM, USER, CandidateModel, R, Training
from jobs.models._factors import FactorModel, FactorSettings

if TYPE_CHECKING:
    from pyspark.ml.recommendation import ALS
    from pyspark.sql import DataFrame, SparkSession

NEEDS_SPARK = True
"""`fit` does; `nightlist tune` leaves it out."""
CHECKPOINT = 5
"""Sweeps from one checkpoint to the next. Each adds to the lineage that every task carries: 20 overflowed Java's stack."""


class Settings(FactorSettings):
    """ALS by Spark MLlib."""

    regularization: float = Field(0.3, gt=0)
    """lambda; good values are those of `als` divided by a row's usual number of pairs: .01 to 1."""
    frequency_exponent: float = 1.0
    """lambda is scaled by (a row's number of pairs) ** v. MLlib is v = 1 and refuses others."""
    blocks: int = Field(2, ge=1)
    """MLlib's blocks of users, and of items: the tasks of a sweep. On one machine up to 2 give the same factors to the
    last bit, whatever its cores; a cluster wants one or two a core, and MLlib then adds up in the order of arrival."""

    @field_validator("frequency_exponent")
    @classmethod
    def _is_mllibs(cls, exponent: float) -> float:
        if exponent != 1:
            raise ValueError(f"als_spark.frequency_exponent = {exponent}: MLlib can only do 1; als does 0")
        return exponent


class Model(FactorModel):
    """Trained by MLlib, on all that Spark has."""

    settings_class = Settings

    @classmethod
    def fit(cls, training: Training, settings: Settings, fitted: Mapping[str, CandidateModel] | None = None) -> Self:
        """Train on all users, in the active Spark session."""
        pairs = training.pairs()
        factors = np.zeros((training.items, settings.factors), np.float32)
        known = np.zeros(training.items, bool)
        with workspace(pairs.sparkSession, training.scratch):
            trained = solver(settings, training.seed).fit(in_blocks(pairs, settings.blocks))
            for batch in trained.itemFactors.toArrow().to_batches():
                numbers = batch["id"].to_numpy()
                factors[numbers] = batch["features"].flatten().to_numpy().reshape(-1, settings.factors)
                known[numbers] = True
        return cls.trained(factors, known, settings)


def solver(settings: Settings, seed: int) -> "ALS":
    """MLlib's estimator. It caches what it works with, but not the factors that it returns: we read them once."""
    from pyspark.ml.recommendation import ALS

    return ALS(
        implicitPrefs=True,
        rank=settings.factors,
        regParam=settings.regularization,
        alpha=settings.alpha,
        maxIter=settings.iterations,
        numUserBlocks=settings.blocks,
        numItemBlocks=settings.blocks,
        seed=seed,
        userCol=USER,
        itemCol=ITEM,
        ratingCol=R,
        checkpointInterval=CHECKPOINT,
        finalStorageLevel="NONE",
    )


def in_blocks(pairs: "DataFrame", blocks: int) -> "DataFrame":
    """The pairs in MLlib's own blocks of users (number modulo blocks), sorted: it adds a row's pairs as they come."""
    return pairs.repartitionById(blocks, USER).sortWithinPartitions(USER, ITEM)


@contextmanager
def workspace(spark: "SparkSession", scratch: Path) -> Iterator[None]:
    """MLlib's surroundings: what it caches and checkpoints inside is gone at the end, and its arithmetic is Java's own.

    It checkpoints to the folder that the session names, or else below `scratch`. A machine's BLAS library would only make
    factors depend on the machine, and its absence write to stderr.
    """
    context, already = spark.sparkContext._jsc.sc(), set(_persisted(spark))
    for library in ("blas", "lapack"):
        spark._jvm.System.setProperty(f"dev.ludovic.netlib.{library}.allowNative", "false")
    ours = context.getCheckpointDir().isEmpty()
    if ours:
        context.setCheckpointDir(str(scratch))
    try:
        yield
    finally:
        for number, cached in _persisted(spark).items():
            if number not in already:
                cached.unpersist()
        if ours:
            shutil.rmtree(scratch / Path(context.getCheckpointDir().get()).name, ignore_errors=True)
            context.setCheckpointDir(None)


def _persisted(spark: "SparkSession") -> dict[int, Any]:
    return dict(spark.sparkContext._jsc.getPersistentRDDs())
