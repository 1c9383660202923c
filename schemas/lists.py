"""One served list: the row that a night makes, a store keeps and the service answers with."""

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
    `scored_at` is UTC.
    """

    kind: Kind
    key: str
    items: tuple[str, ...]
    scores: tuple[float, ...]
    sources: tuple[str, ...]
    scored_at: datetime


def popular_key(column: str, value: str) -> str:
    """The key of the popular list of one segment, e.g. `country=GB`."""
    return f"{column}={value}"
