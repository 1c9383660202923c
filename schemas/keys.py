"""API keys: what one looks like, and the file of their hashes that `nightlist keys` writes and the service reads."""

import hashlib
import secrets
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from schemas.errors import ConfigError

Scope = Literal["lists:read", "metrics:read"]
LISTS_READ: Scope = "lists:read"
METRICS_READ: Scope = "metrics:read"
SCOPES: tuple[Scope, ...] = get_args(Scope)

PREFIX = "nl"
SECRET_BYTES = 32
"""So many that no one guesses them, and that a plain hash keeps them: there is no dictionary of such keys."""


class ApiKey(BaseModel):
    """One key, as it is kept: all but the key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{8}$")
    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    scopes: tuple[Scope, ...] = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created_at: AwareDatetime
    revoked_at: AwareDatetime | None = None

    @property
    def live(self) -> bool:
        """Whether it opens anything."""
        return self.revoked_at is None


class KeyFile(BaseModel):
    """The file of all keys, revoked ones too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    keys: tuple[ApiKey, ...] = ()


def new_key(name: str, scopes: Iterable[Scope], now: datetime) -> tuple[str, ApiKey]:
    """A key as its caller sends it, `nl_<id>_<secret>`, and as it is kept. Raises ConfigError on a name that is none."""
    key_id = secrets.token_hex(4)
    text = f"{PREFIX}_{key_id}_{secrets.token_urlsafe(SECRET_BYTES)}"
    try:
        return text, ApiKey(
            id=key_id, name=name, scopes=tuple(sorted(set(scopes))), sha256=hash_of(text), created_at=now
        )
    except ValidationError:
        raise ConfigError(f"{name!r} is no name of a key: 1 to 64 letters, digits, dots, dashes, underscores") from None


def id_of(text: str) -> str | None:
    """The id in a key's text; None where the text is no key's."""
    prefix, _, rest = text.partition("_")
    key_id, _, secret = rest.partition("_")
    return key_id if prefix == PREFIX and secret else None


def hash_of(text: str) -> str:
    """What is kept of a key's text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """All keys of the file; none where there is no file. Raises ConfigError where it is damaged, without what it holds."""
    try:
        keys = KeyFile.model_validate_json(path.read_bytes()).keys
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigError(f"auth.keys_file = {path} can't be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"auth.keys_file = {path} is damaged: {where} {first['msg']}; put a copy back") from None
    if len({key.id for key in keys}) < len(keys):
        raise ConfigError(f"auth.keys_file = {path} is damaged: two keys have one id; put a copy back")
    return keys
