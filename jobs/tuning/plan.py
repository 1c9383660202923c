"""What is searched: which models, and which of their settings, over which ranges."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution

from jobs import models
from jobs.config import RootSettings, sections
from jobs.search import smaller, space
from jobs.tuning.studies import Params, distribution
from schemas.errors import ConfigError

DATASET = "dataset"
SEGMENTS = "segments"
"""Columns of the users table, which a training file does not have: `evaluate` does without them, too."""
DAYS = "_days"
"""A setting whose name ends so says nothing where pairs have no times."""
POWER = "weight_exponent"
"""A setting of this name says nothing where pairs have neither times nor weights: r is the same for all."""


class Whole(NamedTuple):
    """A fit that is for good, beside one of a trial: settings that are not as configured, and how many times the seconds of
    fitting and of judging it takes."""

    changed: Params
    fit: float
    judge: float


def chosen_models(settings: RootSettings, asked: Sequence[str]) -> tuple[str, ...]:
    """The models to tune, the one first that dataset settings are tuned with: the first of [retrieve] that is among them.

    Raises ConfigError for a model that there is none of, or that can't be fitted in a process without Spark.
    """
    for name in asked:
        if name not in models.names():
            raise ConfigError(f"--models: there is no model {name!r}; known: {', '.join(models.names())}")
        if needs_spark(name):
            raise ConfigError(
                f"--models: {name} is trained by Spark, minutes a trial; tune als, and see jobs/README.md"
            )
    # Of models that give the same lists the first one stays, and every night trains `popular`.
    names = asked or sorted(
        (name for name in models.names() if not needs_spark(name)), key=lambda name: name != "popular"
    )
    first = next((name for name in settings.retrieve.models if name in names), names[0])
    return (first, *(name for name in names if name != first))


def needs_spark(name: str) -> bool:
    """Whether its `fit` asks for the pairs as a Spark frame."""
    return bool(getattr(models.module(name), "NEEDS_SPARK", False))


def ranges(
    settings: RootSettings, name: str, with_dataset: bool, about: Mapping[str, Any]
) -> dict[str, BaseDistribution]:
    """The settings to search with this model, by full name; those that data without times or weights ignores are not among them."""
    alike = not about["times"] and not about["weights"]
    found = {
        key: each
        for key, each in _ranges(settings, name, about["times"]).items()
        if not (alike and key.endswith(POWER))
    }
    if with_dataset:
        more = _ranges(settings, DATASET, about["times"])
        found |= {key: each for key, each in more.items() if key.endswith(DAYS) or about["weights"]}
    return found


def _ranges(settings: RootSettings, section: str, times: bool) -> dict[str, BaseDistribution]:
    values = getattr(settings, section)
    return {
        f"{section}.{key}": distribution(mark, getattr(values, key))
        for key, mark in space(type(values)).items()
        if times or not key.endswith(DAYS)
    }


def first_tries(settings: RootSettings, name: str, found: Mapping[str, BaseDistribution]) -> list[Params]:
    """The configuration's own values, then what the model's file says is worth a try (FIRST: values by setting)."""
    own = {key: _value(settings, key) for key in found}
    tries = [
        {f"{name}.{key}": value for key, value in each.items()} for each in getattr(models.module(name), "FIRST", ())
    ]
    return [own, *(own | {key: value for key, value in each.items() if key in found} for each in tries)]


def with_params(settings: RootSettings, params: Mapping[str, Any]) -> RootSettings:
    """The settings with these values by full name, numbers cut to four digits."""
    changed: dict[str, dict[str, Any]] = {}
    for key, value in params.items():
        section, _, name = key.partition(".")
        changed.setdefault(section, {})[name] = float(f"{value:.4g}") if isinstance(value, float) else value
    updates = {
        name: type(before := getattr(settings, name)).model_validate(before.model_dump() | values)
        for name, values in changed.items()
    }
    return settings.model_copy(update=updates)


def for_trial(settings: RootSettings, name: str) -> RootSettings:
    """The settings that trials of this model are fitted with: where it says so, on fewer items (jobs.search.Smaller)."""
    section = getattr(settings, name)
    marks = smaller(type(section)).items()
    return with_params(settings, {f"{name}.{key}": min(getattr(section, key), mark.size) for key, mark in marks})


def for_good(settings: RootSettings, name: str, items: int, seconds: float, allowed: float) -> Whole:
    """The fit that follows the trials: of as many items as the settings ask for, or as `allowed` seconds are enough for.

    `items`: how many there are; `seconds`: what the fit of a trial took.
    """
    section, changed, fit, judge = getattr(settings, name), {}, 1.0, 1.0
    for key, mark in smaller(type(section)).items():
        asked = min(getattr(section, key), items)
        tried = min(asked, mark.size)
        most = round(tried * max(1.0, allowed / max(seconds, 1e-3)) ** (1 / mark.power))
        if most < asked:
            changed[f"{name}.{key}"] = most
        judge *= min(most, asked) / tried
        fit *= (min(most, asked) / tried) ** mark.power
    return Whole(changed, fit, judge)


def fit_sections(settings: RootSettings, name: str) -> dict[str, dict[str, Any]]:
    """The sections that a fit of this model depends on, as plain values."""
    all_sections = sections(settings)
    needed = (name, *models.requires(name, all_sections[name]))
    found = {each: all_sections[each].model_dump(mode="json") for each in needed}
    for values in found.values():
        if SEGMENTS in values:
            values[SEGMENTS] = ()
    return found | {DATASET: settings.dataset.model_dump(mode="json")}


def _value(settings: RootSettings, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(settings, section), name)
