"""Who asks in tests: keys and tokens, good ones and bad ones, made as their issuers make them."""

import json
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from jobs.commands.keys import write_keys
from schemas.keys import Scope, new_key, read_keys

ISSUER, AUDIENCE = "https://accounts.example.com", "nightlist"
AUTH = f'[auth]\nkeys_file = "keys.json"\njwks_file = "jwks.json"\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"\n'
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def make_key(folder: Path, *scopes: Scope, name: str = "web", revoked: bool = False) -> str:
    """A key of `scopes`, in the folder's keys.json."""
    text, key = new_key(name, scopes, NOW)
    kept = key.model_copy(update={"revoked_at": NOW if revoked else None})
    write_keys(folder / "keys.json", (*read_keys(folder / "keys.json"), kept))
    return text


class Issuer:
    """Signs users' tokens, with a key for each of the three algorithms."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {
            "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
            "ES256": ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        }

    def publish(self, folder: Path, algorithms: Iterable[str] = ("RS256", "ES256", "EdDSA")) -> None:
        """The public keys, as the folder's jwks.json; each one's kid is its algorithm."""
        (folder / "jwks.json").write_text(json.dumps({"keys": [self.public(name) for name in algorithms]}))

    def public(self, algorithm: str, **others: Any) -> dict[str, Any]:
        """One public key as a JWK."""
        made = jwt.get_algorithm_by_name(algorithm).to_jwk(self.keys[algorithm].public_key(), as_dict=True)
        return {**made, "kid": algorithm, "use": "sig"} | others

    def token(
        self, user_id: object, algorithm: str = "ES256", headers: dict[str, Any] | None = None, **claims: Any
    ) -> str:
        """A token of the user for the next ten minutes; claims that are None are left out."""
        now = int(time.time())
        whole = {"sub": user_id, "iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + 600} | claims
        payload = {name: value for name, value in whole.items() if value is not None}
        return jwt.encode(payload, self.keys[algorithm], algorithm, headers={"kid": algorithm} | (headers or {}))


def bearer(text: str) -> dict[str, str]:
    """The header that carries a key or a token."""
    return {"Authorization": f"Bearer {text}"}
