"""A video platform whose truth is known, of any size: its events, catalogue, users and blocks, as Parquet.

    generate(spark, World(users=100_000, items=20_000), Path("data"))

Spark makes blocks of users (or videos) in the workers from their numbers alone; nothing is broadcast or shuffled. How
the platform works is told in `world_model`; here is what is written about it. No row and no word comes from real data.
"""

from collections.abc import Callable
from datetime import date
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.world_events import happenings, request_keys, surfaces
from jobs.world_model import (
    EPOCH,
    FOREVER,
    KINDS,
    LIKE,
    SURFACES,
    TOPICS_EACH,
    WATCH,
    Array,
    Catalogue,
    Drift,
    World,
    affinity,
    catalogue,
    choice,
    hashed,
    integer,
    market,
    normal,
    people,
    topic_tastes,
    uniform,
)
from jobs.world_words import TOPIC_NAMES, name, title
from schemas.columns import BLOCKS_TABLE, EVENTS_TABLE, ITEMS_TABLE, USERS_TABLE, InputTable

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["Drift", "World", "affinity", "generate", "item_ids", "user_ids"]

BLOCK = 1_024
"""Users or videos made at a time: what bounds a worker's memory, next to the catalogue."""
ROWS_A_FILE = 1_000_000

Columns = dict[str, Any]
"""Names to arrays (of Arrow or numpy) or lists, all of one length."""
TIME = pa.timestamp("us", tz="UTC")

COUNTRIES, COUNTRY_SHARES = ("US", "BR", "DE", "FR", "MX", "JP"), (0.35, 0.20, 0.15, 0.12, 0.10, 0.08)
NEW_COUNTRY = "ID"
"""Where the flood of World.drift comes from."""
LANGUAGES, LANGUAGE_SHARES = ("en", "es", "pt", "de", "fr", "ja"), (0.60, 0.12, 0.10, 0.07, 0.06, 0.05)
MIN_AGES, MIN_AGE_SHARES = np.array([0, 13, 18]), (0.95, 0.03, 0.02)
BIRTH_YEAR, BIRTH_SPREAD, AGE_UNTOLD = 1996, 11, 0.05
STYLES = ("tutorial", "vlog", "review", "live", "short", "classic")
SECOND_TAG = 0.24
"""Share of videos with a second tag, their style. Fitted; the first one is the topic."""
LABELLED = 0.6
"""Share of the harmful videos that carry the label; truth_items knows all."""
USERS_WHO_BLOCK, BANNED = 0.05, 0.002
"""Share of users who blocked a video, and of videos that nobody may be shown."""


def generate(spark: "SparkSession", world: World, folder: Path, files: int = 0) -> dict[str, int]:
    """Write folder/events, items, users, blocks, truth_users and truth_items; how many rows each has.

    Within a file, and from file to file, events are sorted by user and time. `files` (a table; 0: by its size) is the
    unit of work and changes no row. Workers write the files themselves, so they must share `folder`.
    """
    return {table.name: _written(spark, world, table, folder.absolute() / table.name, files) for table in TABLES}


def user_ids(index: Array) -> pa.Array:
    """u0000042 for 42."""
    return pa.array([f"u{i:07d}" for i in index.tolist()], pa.string())


def item_ids(index: Array) -> pa.Array:
    """v000123 for 123."""
    return pa.array([f"v{i:06d}" for i in index.tolist()], pa.string())


def _events(world: World, index: Array) -> Columns:
    viewers = people(world, index)
    rows = happenings(world, viewers)
    user = user_ids(index).take(rows.viewer)
    return {
        "user_id": user,
        "item_id": _all_item_ids(world).take(rows.item),
        "event": pa.array(KINDS).take(rows.kind),
        "ts": _times(rows.ts),
        "value": pa.array(rows.seconds, mask=rows.kind != WATCH),
        "surface": pa.array(SURFACES).take(surfaces(request_keys(world, viewers, rows))),
        "position": pa.array(rows.position, pa.int32(), mask=(rows.position == 0) | (rows.kind == LIKE)),
        "request_id": pc.binary_join_element_wise(
            user, _dates(world).take(rows.day - world.first), pa.array(rows.request).cast(pa.string()), "-"
        ),
    }


def _dates(world: World) -> pa.Array:
    """The world's days as yyyymmdd."""
    days = range(world.first, world.last + 1)
    return pa.array([f"{date.fromordinal(EPOCH + day):%Y%m%d}" for day in days])


@lru_cache(maxsize=4)
def _all_item_ids(world: World) -> pa.Array:
    return item_ids(np.arange(world.items))


def _items(world: World, index: Array) -> Columns:
    videos = _videos(world, index)
    spelling = hashed(world.seed, "title", videos.original).tolist()
    topics = [TOPIC_NAMES[number] for number in videos.topic.tolist()]
    creators = [f"{name(creator).lower()}_{creator}" for creator in videos.creator.tolist()]
    styles = [STYLES[style] for style in integer(len(STYLES), world.seed, "style", index)]
    tagged = uniform(world.seed, "second tag", index) < SECOND_TAG
    labelled = videos.harmful & (uniform(world.seed, "label", index) < LABELLED)
    return {
        "item_id": item_ids(index),
        "title": list(map(title, videos.topic.tolist(), videos.creator.tolist(), spelling)),
        "description": [f"{topic}, {area}, by {by}" for (area, topic), by in zip(topics, creators, strict=True)],
        "creator": creators,
        "category": [category for category, _ in topics],
        "tags": [[t, style][: 1 + two] for (_, t), style, two in zip(topics, styles, tagged, strict=True)],
        "published_at": _times(videos.published),
        "available_from": _times(videos.begins),
        "available_until": _times(videos.ends, videos.ends == FOREVER),
        "min_age": MIN_AGES[choice(MIN_AGE_SHARES, world.seed, "min age", index)],
        "canonical_id": pc.if_else(videos.original == index, None, item_ids(videos.original)),
        "image_phash": [f"{bits:016x}" for bits in hashed(world.seed, "image", videos.original).tolist()],
        "duration_s": videos.duration,
        "language": pa.array(LANGUAGES).take(choice(LANGUAGE_SHARES, world.seed, "language", videos.creator)),
        "labels": [["harmful"] if yes else [] for yes in labelled],
    }


def _videos(world: World, index: Array) -> Catalogue:
    return Catalogue(*(column[index] for column in catalogue(world)))


def _users(world: World, index: Array) -> Columns:
    viewers = people(world, index)
    born = BIRTH_YEAR + BIRTH_SPREAD * normal(world.seed, "born", index)
    untold = uniform(world.seed, "untold", index) < AGE_UNTOLD
    country = np.where(viewers.flood, len(COUNTRIES), choice(COUNTRY_SHARES, world.seed, "country", index))
    return {
        "user_id": user_ids(index),
        "country": pa.array((*COUNTRIES, NEW_COUNTRY)).take(country),
        "birth_year": pa.array(np.clip(born, 1935, 2014).astype(np.int32), mask=untold),
        "created_at": _times(viewers.created),
    }


def _blocks(world: World, index: Array) -> Columns:
    """What some users don't want to see again, popular as it is; with the first user comes what nobody may see."""
    users = index[uniform(world.seed, "blocks", index) < USERS_WHO_BLOCK]
    theirs = market(world, world.last).pick_any(uniform(world.seed, "blocked", users))
    everything = np.arange(world.items if 0 in index else 0)
    banned = everything[uniform(world.seed, "banned", everything) < BANNED]
    return {
        "item_id": item_ids(np.append(theirs, banned)),
        "user_id": pa.concat_arrays([user_ids(users), pa.nulls(len(banned), pa.string())]),
        "reason": ["user"] * len(theirs) + ["legal"] * len(banned),
    }


def _truth_users(world: World, index: Array) -> Columns:
    viewers = people(world, index)
    same = (viewers.interests == viewers.interests_after).all(axis=1)
    return {
        "user_id": user_ids(index),
        "interests": _lists(viewers.interests),
        "interests_after": pc.if_else(same, None, _lists(viewers.interests_after)),
        "taste": _lists(viewers.taste),
        "activity": viewers.activity,
        "is_bot": viewers.is_bot,
    }


def _truth_items(world: World, index: Array) -> Columns:
    videos = _videos(world, index)
    return {
        "item_id": item_ids(index),
        "category": videos.topic // TOPICS_EACH,
        "topic": videos.topic,
        "taste": _lists(topic_tastes(world)[videos.topic]),
        "appeal": videos.appeal,
        "is_harmful": videos.harmful,
    }


def _times(micros: Array, null: Array | None = None) -> pa.Array:
    return pa.array(micros, TIME, mask=null)


def _lists(rows: Array) -> pa.Array:
    """(n, k) doubles as n lists of k."""
    offsets = np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(rows.ravel()))


class Table(NamedTuple):
    """One table: what makes its columns for a range of entities, and their types."""

    name: str
    make: Callable[[World, Array], Columns]
    schema: pa.Schema
    of_items: bool = False  # entities are videos; else users

    def batch(self, world: World, index: Array) -> pa.RecordBatch:
        """The rows of these entities."""
        return pa.RecordBatch.from_pydict(self.make(world, index), schema=self.schema)


TYPES = {
    "string": pa.string(),
    "int": pa.int32(),
    "double": pa.float64(),
    "timestamp": TIME,
    "array<string>": pa.list_(pa.string()),
}
"""What Spark's types are called here."""


def _schema(table: InputTable) -> pa.Schema:
    return pa.schema([(column.name, TYPES[column.type]) for column in table.columns])


VECTOR = pa.list_(pa.float64())
TRUTH_USERS = pa.schema(
    [
        ("user_id", pa.string()),
        ("interests", VECTOR),  # by category; a row sums to 1
        ("interests_after", VECTOR),  # since the drift; null where it is the same
        ("taste", VECTOR),
        ("activity", pa.float64()),  # mean watches a day
        ("is_bot", pa.bool_()),
    ]
)
TRUTH_ITEMS = pa.schema(
    [
        ("item_id", pa.string()),
        ("category", pa.int32()),
        ("topic", pa.int32()),
        ("taste", VECTOR),  # of the topic
        ("appeal", pa.float64()),
        ("is_harmful", pa.bool_()),
    ]
)
TABLES = (
    Table("events", _events, _schema(EVENTS_TABLE)),
    Table("items", _items, _schema(ITEMS_TABLE), of_items=True),
    Table("users", _users, _schema(USERS_TABLE)),
    Table("blocks", _blocks, _schema(BLOCKS_TABLE)),
    Table("truth_users", _truth_users, TRUTH_USERS),
    Table("truth_items", _truth_items, TRUTH_ITEMS, of_items=True),
)


def _written(spark: "SparkSession", world: World, table: Table, folder: Path, files: int) -> int:
    """Write one table, in so many files or as many as suit its size; its number of rows."""
    size = world.items if table.of_items else world.everyone
    rows = size * world.events_per_user * (7 if world.impressions else 1) if table.name == "events" else size
    bounds = np.linspace(0, size, 1 + (files or 1 + round(rows / ROWS_A_FILE))).astype(int).tolist()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.parquet"):
        old.unlink()
    tasks = [(folder / f"part-{part:05d}.parquet", *ends) for part, ends in enumerate(pairwise(bounds))]
    return spark.sparkContext.parallelize(tasks, len(tasks)).map(partial(_write, world, table)).sum()


def _write(world: World, table: Table, task: tuple[Path, int, int]) -> int:
    """Write one file, block by block; its number of rows."""
    path, low, high = task
    count = 0
    with pq.ParquetWriter(path, table.schema, compression="zstd") as file:
        for start in range(low, high, BLOCK):
            batch = table.batch(world, np.arange(start, min(high, start + BLOCK)))
            file.write_batch(batch)
            count += batch.num_rows
    return count
