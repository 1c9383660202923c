"""Users' tokens (JWT), verified against public keys in a file (JWKS)."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import jwt

from lookup_api.auth.policies import Principal
from schemas.errors import ConfigError
from schemas.settings import AuthSettings

REMEMBERED = 4096
"""Tokens of which is known whose they are; of each 32 bytes are kept, not the token."""
LONGEST = 8192
"""Characters of a token."""
RSA_BITS = 2048
REQUIRED = ["exp", "iss", "aud", "sub"]

NOT_VALID = "the token is not valid"
REASONS: Mapping[type[jwt.InvalidTokenError], str] = {
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.ImmatureSignatureError: "the token is not valid yet; is a clock wrong?",
    jwt.InvalidIssuerError: "the token is of another issuer",
    jwt.InvalidAudienceError: "the token is for another audience",
}
"""What is told, of tokens whose signature is right. Others learn nothing."""


class BadToken(Exception):
    """A token that says nothing about who asks; the message may be told."""


class Tokens:
    """Verifies tokens against one set of keys, and remembers whose they are until they end."""

    def __init__(
        self, keys: Mapping[str, jwt.PyJWK], settings: AuthSettings, now: Callable[[], float] = time.time
    ) -> None:
        self._keys = keys
        self._settings = settings
        self._now = now
        self._lock = Lock()
        self._known: dict[bytes, tuple[Principal, float]] = {}

    def find(self, token: str) -> Principal:
        """The user whose token it is. Raises BadToken."""
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        principal, ends_at = self._known.get(digest, (None, 0.0))
        if principal is not None and self._now() < ends_at:
            return principal
        claims = self._verified(token)
        found = Principal("user", user_id=claims["sub"])
        self._remember(digest, found, float(claims["exp"]) + self._settings.leeway_seconds)
        return found

    def _verified(self, token: str) -> dict[str, Any]:
        if len(token) > LONGEST:
            raise BadToken(NOT_VALID)
        try:
            key = self._keys[str(jwt.get_unverified_header(token).get("kid"))]
            return jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm_name],  # of the key, never of the token
                issuer=self._settings.issuer,
                audience=self._settings.audience,
                leeway=self._settings.leeway_seconds,
                options={"require": REQUIRED},
            )
        except jwt.InvalidTokenError as error:
            raise BadToken(REASONS.get(type(error), NOT_VALID)) from None
        except (KeyError, RecursionError):  # of a kid that is not known; of a header of brackets in brackets
            raise BadToken(NOT_VALID) from None

    def _remember(self, digest: bytes, principal: Principal, ends_at: float) -> None:
        with self._lock:
            while len(self._known) >= REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[digest] = (principal, ends_at)


def load(path: Path, settings: AuthSettings) -> Tokens:
    """A verifier with the keys of the file. Raises ConfigError where one of them may sign no token here."""
    try:
        found = [jwt.PyJWK(key) for key in json.loads(path.read_bytes())["keys"] if key.get("use", "sig") == "sig"]
        keys = {key.key_id: _checked(key, settings) for key in found if key.key_id}
    except OSError as error:
        raise ConfigError(f"auth.jwks_file = {path} can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, jwt.PyJWTError):
        raise ConfigError(f"auth.jwks_file = {path} is no set of public keys (JWKS, RFC 7517)") from None
    if not found or len(keys) < len(found):
        raise ConfigError(f"auth.jwks_file = {path}: there has to be a key, and each needs a kid of its own")
    return Tokens(keys, settings)


def _checked(key: jwt.PyJWK, settings: AuthSettings) -> jwt.PyJWK:
    if key.algorithm_name not in settings.algorithms:
        allowed = ", ".join(settings.algorithms)
        raise ConfigError(
            f"auth.jwks_file: key {key.key_id!r} is for {key.algorithm_name}; auth.algorithms are {allowed}"
        )
    if hasattr(key.key, "private_numbers") or hasattr(key.key, "private_bytes"):
        raise ConfigError(f"auth.jwks_file: key {key.key_id!r} is a private one; the service needs public keys only")
    if getattr(key.key, "key_size", RSA_BITS) < RSA_BITS and key.key_type == "RSA":
        raise ConfigError(f"auth.jwks_file: key {key.key_id!r} has {key.key.key_size} bits; RSA needs {RSA_BITS}")
    return key
