"""nightlist.toml as one frozen, typed object: a section a stage, and one an implementation found in jobs/models."""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from jobs import models
from jobs.search import Between, OneOf
from schemas.errors import ConfigError
from schemas.settings import (
    SECRET,
    AuthSettings,
    Layered,
    Section,
    ServeSettings,
    StoreSettings,
    layered,
    load_toml,
    resolve_store,
)

FILE_FORMATS = ("", "avro", "csv", "delta", "json", "orc", "parquet", "text", "xml")


class InputSettings(Section):
    """Where the raw tables lie, for Spark to read."""

    events: str = "data/events"
    """Path of the events; relative ones count from nightlist.toml. With a format that reads no files, e.g. jdbc or iceberg,
    their table. The only one that must be there."""
    items: str | None = None
    """Path of the catalogue. Availability counts; other columns change no list."""
    users: str | None = None
    """Path of the users: country, birth year."""
    blocks: str | None = None
    """Path of the blocks: items that nobody, or one user, may be shown."""
    format: str = ""
    """Spark format of all tables (parquet, csv, json, jdbc, ...); empty: by each file's ending, else parquet."""
    options: dict[str, str] = {}
    """Options of the Spark reader, e.g. { sep = ";" }."""

    @property
    def reads_files(self) -> bool:
        """Whether the tables are named by paths."""
        return self.format.lower() in FILE_FORMATS


class RejectRule(Section):
    """Rows that the user's own data needs left out: kept aside and counted under `reason`."""

    reason: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Name to count under."""
    where: str
    """Spark SQL over the raw columns; rows for which it is true are rejected."""


class EventsSettings(Section):
    """Stage 1: which raw rows are events, and what they weigh."""

    columns: dict[str, str] = {}
    """Your column for each of ours, e.g. { user_id = "CustomerID" }; others keep their name."""
    default_event: str = ""
    """The kind of every row, for data without an `event` column."""
    weights: dict[str, float] = {}
    """Weight of each kind; kinds that are not named are rejected as unknown_event. Empty: every kind weighs 1.
    `impression` weighs 0 unless named."""
    use_value: bool = False
    """Multiply the weight by `value` (a missing value counts 1, a negative one 0)."""
    key: tuple[str, ...] = ()
    """Raw columns that identify an event: later rows with the same key are rejected as duplicate. Empty: no check."""
    earliest: date = date(1990, 1, 1)
    """Events before this day are rejected as ts_too_early (1970 is what a broken clock says)."""
    min_on_day: int = Field(1, ge=0)
    """Fewer events than this on the day itself stop the night: an empty day is a broken import far more often than news."""
    reject: tuple[RejectRule, ...] = ()
    """[[events.reject]] rules, applied in file order before Nightlist's own checks."""


class TableSettings(Section):
    """A side table: which of your columns is which of ours."""

    columns: dict[str, str] = {}
    """Your column for each of ours; others keep their name."""


class DatasetSettings(Section):
    """Stage 2: from events to one weight a (user, item) pair."""

    scale: Annotated[Literal["linear", "log"], OneOf(("linear", "log"))] = "log"
    """A pair's weight r: the sum w of its events' weights (linear), or ln(1 + w) (log)."""
    half_life_days: Annotated[float, OneOf((0.0, 7.0, 14.0, 30.0, 60.0, 120.0, 365.0))] = Field(30.0, ge=0)
    """r halves with every such stretch since the pair's latest event; 0: no decay."""
    impressions_seen: bool = False
    """Whether an impression alone makes an item seen, so that it is not recommended."""
    parts: int = Field(64, ge=1)
    """Buckets of users by hash of user_id: the unit of work and of restart. Never derive it from the cores."""


class TrainSettings(Section):
    """Stage 3: models learn."""

    seed: int = Field(7, ge=0, lt=2**63)
    """Seed of every random draw of a night."""
    max_train_users: int = Field(1_000_000, ge=1)
    """Models learn from at most so many users, a sample in which busy and quiet ones have their share; all get lists.
    `als_spark` learns from all."""


class RetrieveSettings(Section):
    """Stage 4: each model proposes candidates to each user."""

    models: tuple[str, ...] = Field(("als", "popular", "similar"), min_length=1)
    """Candidate models, by their file in jobs/models. With one, its order is the list; with several, they are blended."""
    candidates: int = Field(200, ge=1)
    """Candidates a user from each model."""


class RankSettings(Section):
    """Stage 5: the blend of the candidate models."""

    weights: dict[str, float] = {"als": 1.0, "als_spark": 1.0, "popular": 1.0, "similar": 0.75}
    """Weight of each candidate model in the blend. A table given here takes the place of this one; who is not named weighs 1."""
    method: Annotated[Literal["ranks", "scores", "distances"], OneOf(("ranks", "scores", "distances"))] = "ranks"
    """What a place in a model's list is worth: by its rank, weight / (smoothing + rank); by its score, as a share of the way from
    the list's last score to its first; or by that way's own length, in the model's median one, so that a model counts more for
    whom it is surer of."""
    smoothing: Annotated[float, Between(1, 100)] = Field(10.0, ge=0)
    """The k of reciprocal rank fusion, weight / (k + rank): the larger, the less the first places stand out."""
    short_history: Annotated[float, OneOf((0.0, 1.0, 2.0, 5.0, 10.0, 20.0))] = Field(5.0, ge=0)
    """With h items in the history, models other than `popular` count h / (h + short_history): taste has to show first."""


class RerankSettings(Section):
    """Stage 6: what a list may hold, and how long it is."""

    n: int = Field(100, ge=1)
    """Length of a full list."""


class IncrementalSettings(Section):
    """Nights that make only some users' lists anew, and carry the others' from last night's run as they are."""

    max_age: int = Field(0, ge=0)
    """A list is made anew at the latest this many nights after it was; each night some users have their turn. 0: every
    night makes everybody's. Until then a carried list knows no item that has become eligible, and no newer model."""
    active_days: float = Field(7.0, ge=0)
    """Who did something within so many days gets a new list in any case, as does who did something since last night."""


class HoldoutSettings(Section):
    """The night's measurement of itself: trained on events before D, scored on D."""

    users: int = Field(20_000, ge=0)
    """Users in the seeded sample, at most; 0: no measurement (and its gate is skipped)."""
    k: int = Field(20, ge=1)
    """Cut-off of the metrics."""


class Levels(Section):
    """When a gate warns and when it stops."""

    warn: float
    """A value on the wrong side of this is reported."""
    stop: float
    """A value on the wrong side of this stops the publication."""


class GateSettings(Section):
    """Stage 8. Ratios compare tonight with last night's run; shares are of users or lists."""

    users: Levels = Levels(warn=0.95, stop=0.8)
    """Users with a personal list, over last night's: at least."""
    rows: Levels = Levels(warn=0.9, stop=0.5)
    """Rows of all kinds, over last night's: at least."""
    fill: Levels = Levels(warn=0.95, stop=0.7)
    """Mean length of personal lists, over last night's: at least."""
    coverage: Levels = Levels(warn=0.8, stop=0.5)
    """Distinct items in personal lists, over last night's: at least."""
    holdout: Levels = Levels(warn=0.85, stop=0.6)
    """NDCG of the holdout, over last night's: at least."""
    failed: Levels = Levels(warn=0.0, stop=0.0)
    """Share of users without any outcome: at most."""
    empty: Levels = Levels(warn=0.01, stop=0.2)
    """Share of personal lists that are empty: at most."""
    repeats: Levels = Levels(warn=0.0, stop=0.0)
    """Lists that hold an item twice: at most."""
    leaks: Levels = Levels(warn=0.0, stop=0.0)
    """Lists that hold a seen, blocked or unavailable item: at most."""
    min_holdout_users: int = Field(100, ge=1)
    """With fewer users measured on both nights the holdout says nothing, and its gate is skipped."""


class SparkSettings(Section):
    """The Spark session."""

    master: str = "local[*]"
    """Spark master; ignored under spark-submit."""
    conf: dict[str, str] = {}
    """More Spark settings, e.g. { "spark.driver.memory" = "8g" }; they win over what spark-submit was given."""


class Paths(Section):
    """Where runs lie."""

    runs: Path = Path("nightlist-data/runs")
    """One folder a run: Parquet, records and manifest. Relative to nightlist.toml; shared by all Spark workers."""


class RootSettings(Layered):
    """All sections but the models', which `settings_class` adds."""

    paths: Paths = Paths()
    input: InputSettings = InputSettings()
    events: EventsSettings = EventsSettings()
    items: TableSettings = TableSettings()
    users: TableSettings = TableSettings()
    blocks: TableSettings = TableSettings()
    dataset: DatasetSettings = DatasetSettings()
    train: TrainSettings = TrainSettings()
    retrieve: RetrieveSettings = RetrieveSettings()
    rank: RankSettings = RankSettings()
    rerank: RerankSettings = RerankSettings()
    incremental: IncrementalSettings = IncrementalSettings()
    holdout: HoldoutSettings = HoldoutSettings()
    gate: GateSettings = GateSettings()
    store: StoreSettings = StoreSettings()
    serve: ServeSettings = ServeSettings()
    auth: AuthSettings = AuthSettings()
    spark: SparkSettings = SparkSettings()


@cache
def settings_class() -> type[RootSettings]:
    """RootSettings with one section per model found in jobs/models."""
    sections: dict[str, Any] = {name: (cls := models.module(name).Settings, cls()) for name in models.names()}
    return create_model("Settings", __base__=RootSettings, **sections)


def load_settings(path: Path | None, overrides: Sequence[str] = ()) -> RootSettings:
    """The settings of a TOML file (None: all defaults), with `section.key=value` overrides; relative paths count from the file.

    Raises ConfigError naming the file, the key and the value, and the nearest known key.
    """
    given: dict[str, Any] = {}
    for override in overrides:
        _apply(given, override)
    settings = layered(settings_class(), load_toml(path) if path else {}, str(path) if path else "settings", given)
    check_models(settings)
    return _resolved(settings, path.parent if path else Path.cwd())


def check_models(settings: RootSettings) -> None:
    """ConfigError for a model in [retrieve] or [rank] that jobs/models does not have, and for a blend of which none has a say."""
    for key, names in (("retrieve.models", settings.retrieve.models), ("rank.weights", tuple(settings.rank.weights))):
        for name in names:
            if name not in models.names():
                raise ConfigError(f"{key}: there is no model {name!r}; known: {', '.join(models.names())}")
    if len(set(settings.retrieve.models)) < len(settings.retrieve.models):
        raise ConfigError(f"retrieve.models = {list(settings.retrieve.models)} names a model twice")
    names, weights = settings.retrieve.models, settings.rank.weights
    if len(names) > 1 and not any(weights.get(name, 1) > 0 for name in names):
        raise ConfigError(
            f"rank.weights = {weights} gives none of retrieve.models = {list(names)} a weight above 0: their lists would be in no order"
        )


def digest_of(settings: RootSettings) -> str:
    """SHA-256 of every setting that can change a run's files: all but [store], [serve], [auth], [spark], gate levels, and where and under
    whose name the tables are read."""
    values = settings.model_dump(mode="json", exclude={"store", "serve", "auth", "spark", "paths", "gate"})
    # Those that hold secrets say who reads, not what.
    options = {key: value for key, value in settings.input.options.items() if not SECRET.search(key)}
    values["input"] = {"format": settings.input.format, "options": options}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sections(settings: RootSettings) -> dict[str, Section]:
    """The section of every model, by the model's name."""
    return {name: getattr(settings, name) for name in models.names()}


def _apply(values: dict[str, Any], override: str) -> None:
    """Set `a.b=value` in nested dicts; the value is TOML where it parses as TOML, else text."""
    key, equals, text = override.partition("=")
    if SECRET.search(key) and not key.strip().endswith("_file"):
        raise ConfigError(f"--set {key}=...: others see a command line; give it by the environment or in a file")
    *sections, last = key.strip().split(".")
    if not equals or not sections or not last:
        raise ConfigError(f"--set {override!r}: expected section.key=value, e.g. als.factors=128")
    for name in sections:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override!r}: {name} is a value, not a section")
    try:
        values[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        values[last] = text


def _resolved(settings: RootSettings, base: Path) -> RootSettings:
    """Paths absolute; input paths that name a scheme (s3a://...) stay."""
    tables = {
        name: str((base / path).resolve())
        for name in ("events", "items", "users", "blocks")
        if (path := getattr(settings.input, name)) and settings.input.reads_files and "://" not in path
    }
    return settings.model_copy(
        update={
            "paths": settings.paths.model_copy(update={"runs": (base / settings.paths.runs).resolve()}),
            "input": settings.input.model_copy(update=tables),
            "store": resolve_store(settings.store, base),
        }
    )
