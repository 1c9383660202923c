"""One served list: the row that a night makes, a store keeps and the service answers with."""

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

Kind = Literal["user", "similar", "popular"]
KINDS: tuple[Kind, ...] = get_args(Kind)

ALL = "all"
"""The key of the popular list of everybody."""


@dataclass(frozen=True, slots=True)
class ServedList:
    """A whole list, best item first.

    `items`, `scores` and `sources` have one length, 0 included (a user who has seen everything has a list, an empty one).
    `scores` hold float32 values; `sources` name per item the models that proposed it, sorted, joined by `+`;
    `scored_at` is UTC, in whole milliseconds (Cassandra keeps no finer ones).
    """

    kind: Kind
    key: str
    items: tuple[str, ...]
    scores: tuple[float, ...]
    sources: tuple[str, ...]
    scored_at: datetime


def check_list(served: ServedList) -> None:
    """Raise ValueError, naming the list, where it is none: no store keeps it."""
    count, name = len(served.items), f"the list of {served.kind} {served.key!r}"
    if not count == len(served.scores) == len(served.sources):
        raise ValueError(f"{name} has {count} items, {len(served.scores)} scores and {len(served.sources)} sources")
    if not math.isfinite(sum(served.scores)):
        raise ValueError(f"{name} has a score that is no number: {served.scores}")
    if served.scored_at.tzinfo is None:
        raise ValueError(
            f"{name} was scored at {served.scored_at.isoformat()}, which has no time zone; stores keep UTC"
        )
    if served.scored_at.microsecond % 1000:
        raise ValueError(f"{name} was scored at {served.scored_at.isoformat()}; stores keep whole milliseconds")


def popular_key(column: str, value: str) -> str:
    """The key of the popular list of one segment, e.g. `country=GB`."""
    return f"{column}={value}"
