"""The settings that jobs and the service both read: `[store]` and `[serve]`, and how a bad key is reported."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from schemas.errors import ConfigError

SectionType = TypeVar("SectionType", bound="Section")

CONFIG_FILE = "nightlist.toml"
CONFIG_VARIABLE = "NIGHTLIST_CONFIG"


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused, documented field by field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class StoreSettings(Section):
    """Where lists are published and read."""

    backend: Literal["sqlite"] = "sqlite"
    """Which pair of jobs/stores/X.py and lookup_api/readers/X.py to use."""
    path: Path = Path("nightlist-data/store")
    """Folder of the embedded store; relative to nightlist.toml."""
    keep: int = Field(3, ge=2)
    """Runs kept in the store; older ones are dropped whole."""
    grace_seconds: float = Field(600.0, ge=0)
    """A run that the pointer named within this time is never dropped: readers lag the flip."""
    lease_seconds: float = Field(60.0, gt=0)
    """How long a publisher's lease lasts without renewal."""


class ServeSettings(Section):
    """The lookup API."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8080, ge=1, le=65535)
    """TCP port."""
    workers: int = Field(1, ge=1)
    """Processes."""
    threads: int = Field(8, ge=1)
    """Threads a process, each with one request at a time."""
    refresh_seconds: float = Field(2.0, gt=0)
    """How often the release pointer is read in the background."""
    default_n: int = Field(20, ge=1)
    """Items in an answer when `n` is not given."""


def load_toml(path: Path) -> dict[str, Any]:
    """The file as nested dicts; ConfigError when it is missing or no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; `nightlist init` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is no valid TOML: {error}") from None


def validate_section(cls: type[SectionType], name: str, values: Mapping[str, Any], origin: str) -> SectionType:
    """`values` as a `cls`; ConfigError naming the section, the key and the value, and the nearest known key."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        lines = [explain(detail, cls, name) for detail in error.errors()]
        raise ConfigError(f"{origin}: " + "; ".join(lines)) from None


def explain(detail: ErrorDetails, cls: type[BaseModel], section: str) -> str:
    """One validation error in words a person can act on."""
    key = ".".join([section, *(str(part) for part in detail["loc"])]) if section else ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        return f"unknown key {key}{nearest(str(detail['loc'][-1]), _known(cls, detail['loc'][:-1]))}"
    return f"{key} = {detail['input']!r}: {detail['msg']}"


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean X?)`, or the list of known words when none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else f" (known here: {', '.join(names)})"


def _known(cls: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        if isinstance(part, int):  # a place in the list that the last name led to
            continue
        field = cls.model_fields.get(part)
        types = (field.annotation, *get_args(field.annotation)) if field else ()
        inner = next((found for found in types if isinstance(found, type) and issubclass(found, BaseModel)), None)
        if inner is None:
            return []
        cls = inner
    return [field.alias or name for name, field in cls.model_fields.items()]


def load_service_settings(path: Path) -> tuple[StoreSettings, ServeSettings]:
    """`[store]` and `[serve]` of a nightlist.toml; the other sections are not looked at. Paths become absolute.

    Raises ConfigError.
    """
    values = load_toml(path)
    store = validate_section(StoreSettings, "store", values.get("store", {}), str(path))
    serve = validate_section(ServeSettings, "serve", values.get("serve", {}), str(path))
    return resolve_store(store, path.parent), serve


def resolve_store(store: StoreSettings, base: Path) -> StoreSettings:
    """The same settings with `path` absolute, relative ones counted from `base`."""
    return store.model_copy(update={"path": (base / store.path).resolve()})
