"""Work that Spark's workers do while the driver waits, tells how far they are, and may call it off."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pyspark.accumulators import Accumulator, AccumulatorParam

from jobs.losses import losses
from schemas.errors import NightlistError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Item, Result = TypeVar("Item"), TypeVar("Result")

BEAT_SECONDS = 0.2


@losses("publish")
def on_workers(
    spark: "SparkSession",
    work: Callable[[Iterator[Item]], Result],
    items: Sequence[Item],
    tasks: int,
    beat: Callable[[], object],
) -> list[Result]:
    """What `work` makes of the items that each of so many tasks gets. It travels: a module's function, or a partial.

    `beat` is called every now and then meanwhile; what it raises ends the work. So does the first NightlistError or
    ValueError of any task, which is raised here as it was raised there. Raises Lost where processes are lost.
    """
    context = spark.sparkContext
    told = context.accumulator([], _Told())
    shares = context.parallelize(items, tasks)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(shares.foreachPartition, partial(_tell, work, told))
        try:
            while not wait([job], BEAT_SECONDS).done:
                _results(told.value)
                beat()
        except BaseException:  # a signal, too: else leaving would wait for all of the work
            context.cancelAllJobs()
            raise
    results = _results(told.value)
    job.result()
    return results


class _Told(AccumulatorParam[list[Any]]):
    """What the tasks have to say, side by side: a result, or what went wrong."""

    def zero(self, value: list[Any]) -> list[Any]:
        return []

    def addInPlace(self, one: list[Any], other: list[Any]) -> list[Any]:  # noqa: N802  Spark's name
        return one + other


def _tell(work: Callable[[Iterator[Item]], Result], told: "Accumulator[list[Any]]", items: Iterator[Item]) -> None:
    """Errors travel as values: what a worker raises comes back as text, and is tried again as often as Spark likes."""
    try:
        told.add([work(items)])
    except (NightlistError, ValueError) as error:
        told.add([error])


def _results(told: list[Any]) -> list[Any]:
    for word in told:
        if isinstance(word, Exception):
            raise word
    return told
