"""API keys, looked up by id and compared by hash."""

import hmac
from pathlib import Path

from lookup_api.auth.policies import Principal
from schemas.keys import ApiKey, hash_of, id_of, read_keys

Known = dict[str, tuple[str, Principal]]


def load(path: Path) -> Known:
    """The hash and the principal of each live key, by its id. Raises ConfigError."""
    return {key.id: (key.sha256, _principal(key)) for key in read_keys(path) if key.live}


def find(known: Known, text: str) -> Principal | None:
    """Whose key it is; None where it is nobody's, or nobody's any more."""
    sha256, principal = known.get(id_of(text) or "", ("", None))
    return principal if hmac.compare_digest(hash_of(text), sha256) else None


def _principal(key: ApiKey) -> Principal:
    return Principal(f"key {key.id}", frozenset(key.scopes))
