"""Benchmarks: ratios within one run, of rounds that take turns; each file but this one is one, with a function `measure`."""

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(contenders: Mapping[str, Callable[[], object]], rounds: int = 5) -> dict[str, list[float]]:
    """Seconds of each contender in each round; they take turns, so that a slow minute of the machine hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for work in contenders.values():
        work()  # caches, pages and clocks warm
    for _ in range(rounds):
        for name, work in contenders.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median and spread (longest less shortest, over the median) of each contender."""
    return {
        name: {"median": statistics.median(taken), "spread": (max(taken) - min(taken)) / statistics.median(taken)}
        for name, taken in seconds.items()
    }
