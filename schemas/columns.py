"""The names of columns and of input tables: every frame, model, metric and store meets the others in these names."""

from dataclasses import dataclass

USER_ID = "user_id"
ITEM_ID = "item_id"
EVENT = "event"
TS = "ts"
VALUE = "value"
REASON = "reason"

ITEMS = "items"
SCORES = "scores"
SOURCES = "sources"
RANKS = "ranks"

IMPRESSION = "impression"
"""The kind of event that says "was shown": it weighs 0 in every model unless a weight is configured."""


@dataclass(frozen=True, slots=True)
class Column:
    """One input column: its name, its Spark SQL type, and whether a night can do without it."""

    name: str
    type: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class InputTable:
    """One input table; columns that are not listed here travel nowhere."""

    name: str
    columns: tuple[Column, ...]

    def column(self, name: str) -> Column:
        """The column of that name; KeyError when the table has none."""
        return {column.name: column for column in self.columns}[name]


EVENTS_TABLE = InputTable(
    "events",
    (
        Column(USER_ID, "string", required=True),
        Column(ITEM_ID, "string", required=True),
        Column(EVENT, "string", required=True),
        Column(TS, "timestamp", required=True),
        Column(VALUE, "double"),
        Column("surface", "string"),
        Column("position", "int"),
        Column("request_id", "string"),
    ),
)

ITEMS_TABLE = InputTable(
    "items",
    (
        Column(ITEM_ID, "string", required=True),
        Column("title", "string"),
        Column("description", "string"),
        Column("creator", "string"),
        Column("category", "string"),
        Column("tags", "array<string>"),
        Column("published_at", "timestamp"),
        Column("available_from", "timestamp"),
        Column("available_until", "timestamp"),
        Column("min_age", "int"),
        Column("canonical_id", "string"),
        Column("image_phash", "string"),
        Column("duration_s", "double"),
        Column("language", "string"),
        Column("labels", "array<string>"),
    ),
)

USERS_TABLE = InputTable(
    "users",
    (
        Column(USER_ID, "string", required=True),
        Column("country", "string"),
        Column("birth_year", "int"),
        Column("created_at", "timestamp"),
    ),
)

BLOCKS_TABLE = InputTable(
    "blocks",
    (
        Column(ITEM_ID, "string", required=True),
        Column(USER_ID, "string"),
        Column(REASON, "string"),
    ),
)
