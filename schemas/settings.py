"""The settings that jobs and the service both read: `[store]`, `[serve]` and `[auth]`, and how a bad key is reported."""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, SettingsError

from schemas.errors import ConfigError

LayeredType = TypeVar("LayeredType", bound="Layered")

CONFIG_FILE = "nightlist.toml"
CONFIG_VARIABLE = "NIGHTLIST_CONFIG"
SECRET = re.compile(r"password|secret|token|credential|log_key", re.IGNORECASE)
"""Names of settings and of options whose values are shown nowhere."""


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused, documented field by field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class CassandraSettings(Section):
    """How Apache Cassandra is reached, where `backend` is "cassandra"."""

    contact_points: tuple[str, ...] = Field(("127.0.0.1",), min_length=1)
    """Nodes to ask first; they name the others."""
    port: int = Field(9042, ge=1, le=65535)
    """Their port for clients."""
    local_dc: str = Field("datacenter1", pattern=r"^[A-Za-z0-9_.-]+$")
    """The data centre whose nodes are asked, as `nodetool status` names it."""
    keyspace: str = Field("nightlist", pattern=r"^[a-z][a-z0-9_]{0,47}$")
    """Where the lists lie. `nightlist init --store` makes it."""
    replication_factor: int = Field(3, ge=1)
    """Copies of each list in the data centre, for `nightlist init --store`."""
    username: str = ""
    """Who asks; empty where Cassandra wants no password."""
    password: SecretStr = SecretStr("")
    """Better given as NIGHTLIST_STORE__CASSANDRA__PASSWORD, or in a file, than here."""
    password_file: str = ""
    """File that holds the password, where it is not given otherwise; relative to nightlist.toml."""
    tls: bool = False
    """Whether to speak TLS with the nodes. Spark's workers do too: the files below have to be on every machine."""
    ca_file: str = ""
    """PEM file of whom to trust; empty: whom the machine trusts. Relative to nightlist.toml, as the next two."""
    cert_file: str = ""
    """PEM file of a client certificate, where the nodes want one."""
    key_file: str = ""
    """PEM file of its key; empty: it is in `cert_file`."""
    check_hostname: bool = True
    """Whether a node's certificate has to name the address that is connected to."""
    connect_seconds: float = Field(5.0, gt=0)
    """How long a node may take to answer a new connection."""
    timeout_seconds: float = Field(10.0, gt=0)
    """How long it may take to answer a statement."""
    in_flight: int = Field(256, ge=1)
    """Lists under way at once, of each Spark task that loads; fewer where Cassandra is overloaded or slow."""
    rows_per_second: float = Field(0.0, ge=0)
    """Lists loaded a second, at most, by all tasks together; 0: as fast as Cassandra takes them."""
    slow_seconds: float = Field(0.25, gt=0)
    """Where the slowest 1 % of a second's writes take longer, half as many lists are under way, so that reads survive."""
    rebuild_seconds: float = Field(10.0, gt=0)
    """After this long without any answer, the service connects anew, beside the driver's own tries."""


class StoreSettings(Section):
    """Where lists are published and read."""

    backend: Literal["sqlite", "cassandra"] = "sqlite"
    """Which pair of jobs/stores/X.py and lookup_api/readers/X.py to use."""
    path: Path = Path("nightlist-data/store")
    """Folder of the embedded store; relative to nightlist.toml."""
    keep: int = Field(3, ge=2)
    """Runs kept in the store; older ones are dropped whole."""
    grace_seconds: float = Field(600.0, ge=0)
    """A run that the pointer named within this time is never dropped: readers lag the flip."""
    lease_seconds: float = Field(60.0, gt=0)
    """How long a publisher's lease lasts without renewal."""
    cassandra: CassandraSettings = CassandraSettings()
    """The section [store.cassandra]."""


class ServeSettings(Section):
    """The lookup API."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8080, ge=1, le=65535)
    """TCP port."""
    workers: int = Field(1, ge=1)
    """Processes."""
    threads: int = Field(64, ge=1)
    """Threads a process, each with one request at a time."""
    in_flight: int = Field(48, ge=1)
    """Lookups under way at once in a process; one more is answered 503. Keep it below `threads`: the others answer /livez."""
    deadline_seconds: float = Field(0.5, gt=0)
    """Time for one lookup; then it is answered 503."""
    read_seconds: float = Field(0.25, gt=0)
    """Time of that for one read of Cassandra; what has no answer then is asked once more, of a quorum."""
    hedge_seconds: float = Field(0.03, ge=0)
    """A read without an answer for this long is sent to another replica too; 0: never."""
    refresh_seconds: float = Field(2.0, gt=0)
    """How often the release pointer is read in the background."""
    default_n: int = Field(20, ge=1)
    """Items in an answer when `n` is not given."""
    drain_seconds: float = Field(5.0, ge=0)
    """How long everything is still answered after SIGTERM, while /readyz already says no."""
    access_log: bool = False
    """Log every request; otherwise only those that failed (5xx) or were slow."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """How log lines look; auto: text on a terminal, JSON elsewhere."""
    log_key: SecretStr = SecretStr("")
    """Key of the hashes that stand for users in the log, better given as NIGHTLIST_SERVE__LOG_KEY; empty: one by lot at each start."""


class AuthSettings(Section):
    """Who may ask the lookup API: whoever has a key or a token, or, on this machine only, everybody."""

    open: bool = False
    """Whether everybody may ask, without key or token. For a try: it is served on a loopback address only."""
    keys_file: Path = Path("keys.json")
    """What `nightlist keys` writes: hashes of API keys. Relative to nightlist.toml."""
    jwks_file: str = ""
    """Public keys (JWKS) of who issues tokens to users; empty: no tokens. Relative to nightlist.toml."""
    algorithms: tuple[Literal["RS256", "ES256", "EdDSA"], ...] = Field(("RS256", "ES256", "EdDSA"), min_length=1)
    """How a token may be signed."""
    issuer: str = ""
    """What a token's `iss` has to be; needed with `jwks_file`."""
    audience: str = ""
    """What a token's `aud` has to be or to hold; needed with `jwks_file`."""
    leeway_seconds: float = Field(10.0, ge=0, le=300)
    """How far the issuer's clock may be off."""


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


class Layered(BaseSettings):
    """Sections read from a file; the environment overrules the file, e.g. NIGHTLIST_STORE__KEEP=5 its [store] keep."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="NIGHTLIST_", env_nested_delimiter="__", use_attribute_docstrings=True
    )


class ServiceSettings(Layered):
    """The sections that the service reads; it looks at no others."""

    model_config = SettingsConfigDict(extra="ignore")

    store: StoreSettings = StoreSettings()
    serve: ServeSettings = ServeSettings()
    auth: AuthSettings = AuthSettings()


def layered(
    cls: type[LayeredType], file: Mapping[str, Any], origin: str, given: Mapping[str, Any] | None = None
) -> LayeredType:
    """The file's values, overruled by the environment, overruled by what is `given`.

    Raises ConfigError naming `origin`, the section, the key and the value, and the nearest known key.
    """
    private = [key for key in file if key.startswith("_")]
    if private:
        raise ConfigError(f"{origin}: unknown key {private[0]}")
    try:
        return cls(**_merged(_merged(file, EnvSettingsSource(cls)()), given or {}))
    except ValidationError as error:
        raise ConfigError(f"{origin}: " + "; ".join(explain(e, cls, "") for e in error.errors())) from None
    except SettingsError as error:
        raise ConfigError(f"environment: {error}; tables and lists are given as JSON") from None


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, table by table; where both have a value, the one above."""
    shared = {
        key: _merged(below[key], above[key]) for key in above if _is_table(below.get(key)) and _is_table(above[key])
    }
    return {**below, **above, **shared}


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def explain(detail: ErrorDetails, cls: type[BaseModel], section: str) -> str:
    """One validation error in words a person can act on."""
    key = ".".join([section, *(str(part) for part in detail["loc"])]) if section else ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        return f"unknown key {key}{nearest(str(detail['loc'][-1]), _known(cls, detail['loc'][:-1]))}"
    value = "..." if SECRET.search(key) else repr(detail["input"])
    return f"{key} = {value}: {detail['msg']}"


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
    """`[store]` and `[serve]` of a nightlist.toml; sections of the night are not looked at. Paths become absolute.

    Raises ConfigError.
    """
    settings = layered(ServiceSettings, load_toml(path), str(path))
    return resolve_store(settings.store, path.parent), settings.serve


def load_auth_settings(path: Path) -> AuthSettings:
    """`[auth]` of a nightlist.toml. Paths become absolute. Raises ConfigError."""
    auth = layered(ServiceSettings, load_toml(path), str(path)).auth
    for name in ("issuer", "audience"):
        if auth.jwks_file and not getattr(auth, name):
            raise ConfigError(f"{path}: auth.{name} is empty; with auth.jwks_file it has to say what a token's must be")
    base = path.parent.resolve()
    jwks_file = str(base / auth.jwks_file) if auth.jwks_file else ""
    return auth.model_copy(update={"keys_file": base / auth.keys_file, "jwks_file": jwks_file})


def resolve_store(store: StoreSettings, base: Path) -> StoreSettings:
    """The same settings with paths absolute, relative ones counted from `base`, and the password read from its file
    where it is not given otherwise.

    Raises ConfigError where Cassandra is used and the file can't be read.
    """
    resolved = store.model_copy(update={"path": (base / store.path).resolve()})
    if store.backend != "cassandra":
        return resolved
    return resolved.model_copy(update={"cassandra": _resolve_cassandra(store.cassandra, base.resolve())})


def _resolve_cassandra(cassandra: CassandraSettings, base: Path) -> CassandraSettings:
    names = ("ca_file", "cert_file", "key_file")
    resolved: dict[str, Any] = {name: str(base / file) for name in names if (file := getattr(cassandra, name))}
    if cassandra.password_file and not cassandra.password.get_secret_value():
        resolved |= {"password": SecretStr(_secret(base / cassandra.password_file))}
    return cassandra.model_copy(update=resolved | {"password_file": ""})


def _secret(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"store.cassandra.password_file = {path} can't be read: {error}") from None
