"""Processes that Spark lost, and memory that ran out: what to do about it in one line, where Spark says it in a hundred."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from schemas.errors import NightlistError

TASK = re.compile(r"Task (\d+) in stage")
"""The number of the task that failed for good; tasks are numbered as what they work on was given."""
NAMED = re.compile(r"MemoryError: bucket (\d+)")
"""What `naming` says."""
SMALLER = (
    "let fewer work at once on a machine ([spark] master = 'local[1]', spark.executor.cores), give them more "
    "(spark.executor.pyspark.memory where it is set, spark.executor.memoryOverhead in containers), or make buckets smaller "
    "(dataset.parts; that makes another run)"
)
GONE = (
    "Spark is gone: its Java was killed, most often because the machine's memory ran out",
    "lower spark.driver.memory, or let fewer workers work at once ([spark] master = 'local[1]')",
)
SIGNS = (
    (
        "java.lang.OutOfMemoryError",
        "Java ran out of memory",
        "raise spark.executor.memory (on one machine spark.driver.memory)",
    ),
    ("Answer from Java side is empty|Error while sending|Error while receiving", *GONE),
    (
        "MemoryError|Cannot allocate memory|bad_alloc|failed to map segment",
        "a Python worker ran out of memory",
        SMALLER,
    ),
    ("Python worker exited unexpectedly", "a Python worker was killed, most often because memory ran out", SMALLER),
    (
        "ExecutorLostFailure|ExecutorDeadException|Executor heartbeat timed out",
        "executors were lost, as often as Spark tries (spark.task.maxFailures)",
        "see their logs; if memory ran out, raise spark.executor.memory or spark.executor.memoryOverhead, or lower "
        "spark.executor.cores",
    ),
)
"""What stands in Spark's account, what it means, what to do; the first that is found counts."""


class Lost(NightlistError):
    """A process that worked on a stage was lost or had too little memory. What was done stays, for the same command to go on from."""

    retry = True


@contextmanager
def naming(bucket: int) -> Iterator[None]:
    """In a worker: a lack of memory says at which bucket, since Spark does not say at which task."""
    try:
        yield
    except MemoryError as error:
        raise MemoryError(f"bucket {bucket}: {error}") from error


@contextmanager
def losses(where: str, buckets: Sequence[int] = ()) -> Iterator[None]:
    """Raises Lost in place of what comes of lost processes and lack of memory; other errors are left as they are.

    `where` is the stage; `buckets` are those that Spark's tasks work on, in their order.
    """
    try:
        yield
    except Exception as error:
        explained = _explained(error)
        if explained is None or isinstance(error, Lost):
            raise
        happened, help_ = explained
        raise Lost(
            f"{where}{_bucket(error, buckets)}: {happened}; {help_}. What is done stays: start the night again, and it goes on"
        ) from error


def _explained(error: Exception) -> tuple[str, str] | None:
    """What happened, and what to do."""
    if isinstance(error, MemoryError):
        return (
            "this process, the driver, ran out of memory",
            "learn from fewer users (train.max_train_users) or, with ease, of fewer items (ease.max_items), or give it more",
        )
    if isinstance(error, ConnectionError):
        return GONE
    account = _account(error)
    return next(((happened, help_) for sign, happened, help_ in SIGNS if re.search(sign, account)), None)


def _bucket(error: Exception, buckets: Sequence[int]) -> str:
    account = _account(error)
    if named := NAMED.search(account):
        return f", bucket {named[1]}"
    task = TASK.search(account)
    return f", bucket {buckets[int(task[1])]}" if task and int(task[1]) < len(buckets) else ""


def _account(error: BaseException | None) -> str:
    """All that Spark and Java say of an error, which PySpark shortens; nothing of errors that are not theirs."""
    said = ""
    while error:
        if type(error).__module__.partition(".")[0] in ("pyspark", "py4j"):
            said += f"{error}\n"
        error = error.__cause__ or error.__context__
    return said
