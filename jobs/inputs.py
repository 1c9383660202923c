"""The raw tables, wherever Spark reads: found, checked against what Nightlist needs, and typed in our names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from py4j.protocol import Py4JError, Py4JJavaError
from pyspark.errors import AnalysisException, ParseException, PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from jobs import models
from jobs.config import InputSettings, RootSettings, sections
from schemas.columns import BLOCKS_TABLE, EVENT, EVENTS_TABLE, ITEMS_TABLE, USERS_TABLE, InputTable
from schemas.errors import ConfigError, InputError
from schemas.settings import nearest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ENDINGS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".orc": "orc", ".parquet": "parquet"}
CSV = {"header": "true", "escape": '"'}
"""As pandas and spreadsheets write it: a quote within quotes is doubled (RFC 4180), where Spark expects a backslash."""
UNREADABLE = (PySparkException, Py4JError)
"""What Spark raises on a file that it can't read; half a Parquet file is the second."""
PLAIN_NUMBER = r"^(-?\d+)\.0+$"
DATED = r"^\s*\d{4}-"
"""A text that begins so is a time; Spark alone would take 12:34 for a time of today, and another one tomorrow."""
COUNTED = r"^\s*\d{9,19}(\.\d*)?\s*$"
"""A text that counts from 1970: files such as CSV have no numbers."""


@dataclass(frozen=True)
class RawTable:
    """One table as it was found; `columns` says which raw column is which of ours, for those that exist."""

    table: InputTable
    frame: DataFrame
    columns: Mapping[str, str]
    constants: Mapping[str, str]

    def typed(self) -> dict[str, Column]:
        """Each of our columns that exists, as an expression of its type over the raw columns; null where a value can't be cast."""
        found = {name: self._typed(raw, name) for name, raw in self.columns.items()}
        return found | {name: F.lit(value).cast(self.table.column(name).type) for name, value in self.constants.items()}

    def mapped(self) -> DataFrame:
        """The table in our names and types."""
        return self.frame.select(*(column.alias(name) for name, column in self.typed().items()))

    def _typed(self, raw: str, name: str) -> Column:
        found, wanted = self.frame.schema[raw].dataType, self.table.column(name).type
        column = _typed(F.col(f"`{raw}`"), found, wanted)
        if column is None:
            what = f"{self.table.name}: column {raw!r} ({name}) is {found.simpleString()}, which can't become {wanted}"
            raise InputError(f'{what}; name another one: [{self.table.name}.columns] {name} = "..."')
        return column


@dataclass(frozen=True)
class Inputs:
    """The tables of a night; only events must be there."""

    events: RawTable
    items: RawTable | None
    users: RawTable | None
    blocks: RawTable | None

    def present(self) -> dict[str, RawTable]:
        """The tables that are configured, by name."""
        return {name: table for name in ("events", "items", "users", "blocks") if (table := getattr(self, name))}


def read_inputs(spark: "SparkSession", settings: RootSettings) -> Inputs:
    """Open the configured tables and check their columns, without reading rows.

    Raises InputError (a table or column is missing, unreadable or of a wrong type) and ConfigError (the mapping names
    a column that we don't have).
    """
    constants = {EVENT: settings.events.default_event} if settings.events.default_event else {}
    return Inputs(
        _open(spark, settings.input, EVENTS_TABLE, settings.events.columns, constants),
        _open(spark, settings.input, ITEMS_TABLE, settings.items.columns) if settings.input.items else None,
        _open(spark, settings.input, USERS_TABLE, settings.users.columns) if settings.input.users else None,
        _open(spark, settings.input, BLOCKS_TABLE, settings.blocks.columns) if settings.input.blocks else None,
    )


def table_of(frame: DataFrame, table: InputTable, mapping: Mapping[str, str], constants: Mapping[str, str]) -> RawTable:
    """A frame as a raw table, its columns checked. Raises InputError and ConfigError."""
    ours = [column.name for column in table.columns]
    for name in mapping:
        if name not in ours:
            raise ConfigError(f"[{table.name}.columns] {name}: Nightlist has no such column{nearest(name, ours)}")
    columns = {}
    for column in table.columns:
        raw = mapping.get(column.name, column.name)
        if raw in frame.columns:
            columns[column.name] = raw
        elif column.name in mapping or (column.required and column.name not in constants):
            raise InputError(_missing(table, column.name, raw, frame))
    constants = {name: value for name, value in constants.items() if name not in columns}
    raw_table = RawTable(table, frame, columns, constants)
    raw_table.typed()
    return raw_table


def check_rules(inputs: Inputs, settings: RootSettings) -> None:
    """What is configured must be possible: a rule, key or segment whose column is missing is an error, not a silent no-op.

    Raises ConfigError naming the setting and the columns that there are.
    """
    for rule in settings.events.reject:
        rejected_by(inputs.events.frame, rule.where)
    there = inputs.events.frame.columns
    for column in settings.events.key:
        if column not in there:
            raise ConfigError(f"events.key names {column!r}{nearest(column, there)}, which the events do not have")
    there = list(inputs.users.columns) if inputs.users else []
    for name in models.names():
        for column in models.columns([name], sections(settings)):
            if column not in there:
                has = f"has {', '.join(there)}" if there else "is not configured (input.users)"
                raise ConfigError(f"{name}.segments names {column!r}, but the users table {has}; see [users.columns]")


def rejected_by(raw: DataFrame, rule: str) -> Column:
    """The rule as a condition that is never null. Raises ConfigError where Spark can't understand it over these columns."""
    try:
        condition = F.coalesce(F.expr(rule).cast("boolean"), F.lit(False))
        raw.select(condition)
    except (AnalysisException, ParseException) as error:
        there = ", ".join(raw.columns)
        raise ConfigError(f"[[events.reject]] where = {rule!r}: {first_line(error)}; columns: {there}") from None
    return condition


def _open(
    spark: "SparkSession",
    settings: InputSettings,
    table: InputTable,
    mapping: Mapping[str, str],
    constants: Mapping[str, str] | None = None,
) -> RawTable:
    path = getattr(settings, table.name)
    frame = read_frame(spark, path, settings.format, settings.options, f"input.{table.name}")
    return table_of(frame, table, mapping, constants or {})


def read_frame(spark: "SparkSession", path: str, format: str, options: Mapping[str, str], setting: str) -> DataFrame:
    """Any table that Spark reads; without a format, by the path's ending. Raises InputError naming `setting` and the path."""
    kind = _kind(path, format)
    if kind == "csv":
        tabs = path.lower().endswith(".tsv") and "delimiter" not in options
        options = CSV | ({"sep": "\t"} if tabs else {}) | dict(options)
    try:
        reader = spark.read.format(format or kind).options(**options)
        frame = reader.option("dbtable", path).load() if kind == "jdbc" else reader.load(path)
    except UNREADABLE as error:
        absent = isinstance(error, PySparkException) and "PATH_NOT_FOUND" in (error.getCondition() or "")
        problem = "does not exist" if absent else f"can't be read as {kind}: {first_line(error)}"
        guessed = not (absent or format or _by_ending(path))
        help_ = "say what it is by [input] format" if guessed else "mend the path or the file"
        raise InputError(f"{setting} = {path} {problem}; {help_}, then try `nightlist validate`") from None
    if kind != "csv":
        return frame
    texts = [F.regexp_replace(F.col(f"`{name}`"), PLAIN_NUMBER, "$1").alias(name) for name in frame.columns]
    return frame.select(*texts)  # a CSV that pandas wrote says 12346.0 where it means 12346


def read_beside(spark: "SparkSession", path: str, settings: InputSettings, setting: str) -> DataFrame:
    """A table that is none of the night's: by its ending, else as [input] has it, whose options count for what is of the same kind.

    Raises InputError.
    """
    format = "" if _by_ending(path) else settings.format
    same = _kind(path, format) == _kind(settings.events, settings.format)
    return read_frame(spark, path, format, settings.options if same else {}, setting)


def _kind(path: str, format: str) -> str:
    return format.lower() or _by_ending(path) or "parquet"


def _by_ending(path: str) -> str | None:
    return next((kind for ending, kind in ENDINGS.items() if path.lower().endswith(ending)), None)


def _missing(table: InputTable, name: str, raw: str, frame: DataFrame) -> str:
    hint = f'; say which column it is: [{table.name}.columns] {name} = "..."' if raw == name else ""
    if name == EVENT:
        hint += ', or [events] default_event = "watch" when all rows are of one kind'
    return f"{table.name} has no column {raw!r} ({name}); it has {', '.join(frame.columns)}{hint}"


def _typed(column: Column, found: T.DataType, wanted: str) -> Column | None:
    """A raw column as the type that we want, null where a value can't be cast; None for a hopeless type."""
    convert = {"string": _text, "timestamp": _timestamp, "array<string>": _texts}.get(wanted)
    if convert:
        return convert(column, found)
    return column.try_cast(wanted) if _is_plain(found) else None


def _is_plain(found: T.DataType) -> bool:
    return isinstance(found, T.NumericType | T.StringType)


def _text(column: Column, found: T.DataType) -> Column | None:
    """Text as it is; whole numbers as integers: 12346, never 12346.0, also where a CSV file says so."""
    if isinstance(found, T.StringType):
        return column
    if isinstance(found, T.IntegralType):
        return column.cast("string")
    if isinstance(found, T.NumericType):
        number = F.when(~F.isnan(column.cast("double")), column)
        whole = F.when(number % 1 == 0, number.try_cast("decimal(38,0)"))  # a bigint would overflow on uint64 ids
        return F.coalesce(whole.cast("string"), number.cast("string"))
    return None


def _timestamp(column: Column, found: T.DataType) -> Column | None:
    """UTC. Numbers, as texts too, count from 1970 in seconds, milli-, micro- or nanoseconds, told apart by their size
    (good for 1973 to 5138)."""
    if isinstance(found, T.TimestampType | T.TimestampNTZType | T.DateType):
        return column.try_cast("timestamp")
    if isinstance(found, T.StringType):
        written = F.when(column.rlike(DATED), column.try_cast("timestamp"))
        return F.coalesce(written, _since_1970(F.when(column.rlike(COUNTED), column).try_cast("double")))
    return _since_1970(column.cast("double")) if isinstance(found, T.NumericType) else None


def _since_1970(number: Column) -> Column:
    size = F.abs(number)
    micros = (
        F.when(size < 1e11, number * 1e6)
        .when(size < 1e14, number * 1e3)
        .when(size < 1e17, number)
        .otherwise(number / 1e3)
    )
    return F.timestamp_micros(F.round(F.when(~F.isnan(number), micros)).try_cast("bigint"))


def _texts(column: Column, found: T.DataType) -> Column | None:
    """A list of texts, or one text split at `|`."""
    if isinstance(found, T.ArrayType) and isinstance(found.elementType, T.StringType):
        return column
    return F.split(column, r"\|") if isinstance(found, T.StringType) else None


def first_line(error: Exception) -> str:
    """What is wrong, of all that Spark and Java have to say."""
    said = error.java_exception.getMessage() if isinstance(error, Py4JJavaError) else str(error)
    return (said or type(error).__name__).strip().splitlines()[0]
