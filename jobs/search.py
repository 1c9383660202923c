"""Where good values of a setting lie: stands in the setting's annotation, and `nightlist tune` draws from it."""

from dataclasses import dataclass
from typing import Any

from schemas.settings import Section


@dataclass(frozen=True)
class Between:
    """Any number from `low` to `high`, both of them reached; whole ones for a setting that is whole.

    `log`: as many tries from 1 to 10 as from 10 to 100.
    """

    low: float
    high: float
    log: bool = True


@dataclass(frozen=True)
class OneOf:
    """One of these values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Smaller:
    """A number of items that trials get by with less of: `size` at most, since a fit takes time that grows with its `power`."""

    size: int
    power: float


def space(settings: type[Section]) -> dict[str, Between | OneOf]:
    """The settings of a section that are worth a search, in the order in which they stand there."""
    found = {}
    for name, field in settings.model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, Between | OneOf):
                found[name] = mark
    return found


def smaller(settings: type[Section]) -> dict[str, Smaller]:
    """The settings of a section that trials cut down."""
    fields = settings.model_fields.items()
    return {name: mark for name, field in fields for mark in field.metadata if isinstance(mark, Smaller)}
