"""Users' tokens: which are believed, and which of the many ways to forge one are not."""

import base64
import hashlib
import hmac
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lookup_api.auth import tokens
from lookup_api.auth.policies import Principal
from lookup_api.auth.tokens import BadToken, Tokens
from lookup_api.auth.watched import Watched
from schemas.errors import ConfigError
from schemas.settings import AuthSettings, load_auth_settings
from tests.callers import AUDIENCE, ISSUER, Issuer

OURS, THEIRS = Issuer(), Issuer()
SETTINGS = AuthSettings(issuer=ISSUER, audience=AUDIENCE)


@pytest.fixture
def verifier(tmp_path: Path) -> Tokens:
    OURS.publish(tmp_path)
    return tokens.load(tmp_path / "jwks.json", SETTINGS)


def part(values: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).rstrip(b"=").decode()


def claims(**others: Any) -> dict[str, Any]:
    return {"sub": "u", "iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 600} | others


def by_hand(header: dict[str, Any], secret: bytes = b"", body: dict[str, Any] | None = None) -> str:
    """A token that no library would make."""
    signed = f"{part(header)}.{part(body or claims())}"
    if not secret:
        return f"{signed}."
    signature = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def pem(algorithm: str) -> bytes:
    found: bytes = OURS.keys[algorithm].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return found


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_token_says_who_asks(verifier: Tokens, algorithm: str) -> None:
    """By each of the three algorithms, and by nothing but its subject."""
    found = verifier.find(OURS.token("u1", algorithm, name="Ada", scope="metrics:read", scopes=["lists:read"]))

    assert found == Principal("user", frozenset(), "u1")


def swapped(one: str, other: str) -> str:
    """The head and body of one token with the signature of another."""
    return one.rpartition(".")[0] + "." + other.rpartition(".")[2]


def with_body(token: str, **others: Any) -> str:
    head, body, signature = token.split(".")
    old = json.loads(base64.urlsafe_b64decode(body + "=="))
    return f"{head}.{part(old | others)}.{signature}"


FORGED: dict[str, Callable[[], str]] = {
    "another's key": lambda: THEIRS.token("u"),
    "another's key by our kid": lambda: THEIRS.token("u", "RS256"),
    "no signature": lambda: by_hand({"alg": "none", "kid": "RS256"}),
    "none, in other letters": lambda: by_hand({"alg": "nOnE", "kid": "RS256"}),
    "an empty signature": lambda: OURS.token("u").rpartition(".")[0] + ".",
    "the public key as a secret": lambda: by_hand({"alg": "HS256", "kid": "RS256"}, pem("RS256")),
    "the public key of a curve as a secret": lambda: by_hand({"alg": "HS256", "kid": "ES256"}, pem("ES256")),
    "the modulus as a secret": lambda: by_hand({"alg": "HS256", "kid": "RS256"}, OURS.public("RS256")["n"].encode()),
    "RS256, and a secret": lambda: by_hand({"alg": "RS256", "kid": "RS256"}, pem("RS256")),
    "a key in the token": lambda: THEIRS.token("u", headers={"jwk": THEIRS.public("ES256")}),
    "a place of keys in the token": lambda: THEIRS.token("u", headers={"jku": "https://evil.example/jwks.json"}),
    "an unknown kid": lambda: OURS.token("u", headers={"kid": "next"}),
    "no kid": lambda: jwt.encode(claims(), OURS.keys["ES256"], "ES256"),
    "a kid that is a path": lambda: OURS.token("u", headers={"kid": "../../dev/null"}),
    "an algorithm of another key": lambda: OURS.token("u", "ES256", headers={"kid": "RS256"}),
    "another algorithm of the key": lambda: jwt.encode(claims(), OURS.keys["RS256"], "RS512", {"kid": "RS256"}),
    "another padding of the key": lambda: jwt.encode(claims(), OURS.keys["RS256"], "PS256", {"kid": "RS256"}),
    "another body": lambda: with_body(OURS.token("u"), sub="v"),
    "another token's signature": lambda: swapped(OURS.token("v"), OURS.token("u")),
    "an extension that is critical": lambda: OURS.token("u", headers={"crit": ["exp"], "exp": 1}),
    "expired": lambda: OURS.token("u", exp=int(time.time()) - 11),
    "without an end": lambda: OURS.token("u", exp=None),
    "an end that is no time": lambda: OURS.token("u", exp="tomorrow"),
    "not yet": lambda: OURS.token("u", nbf=int(time.time()) + 60),
    "made in the future": lambda: OURS.token("u", iat=int(time.time()) + 60),
    "another issuer": lambda: OURS.token("u", iss="https://accounts.example.org"),
    "an issuer that is a part of ours": lambda: OURS.token("u", iss="https://accounts"),
    "no issuer": lambda: OURS.token("u", iss=None),
    "another audience": lambda: OURS.token("u", aud="billing"),
    "other audiences": lambda: OURS.token("u", aud=["billing", "search"]),
    "no audience": lambda: OURS.token("u", aud=None),
    "no subject": lambda: OURS.token(None),
    "a subject that is a number": lambda: by_hand({"alg": "none", "kid": "ES256"}, body=claims(sub=42)),
    "a subject that is a list": lambda: jwt.api_jws.encode(
        json.dumps(claims(sub=["u"])).encode(), OURS.keys["ES256"], "ES256", {"kid": "ES256"}
    ),
    "a body that is no object": lambda: jwt.api_jws.encode(b'["u"]', OURS.keys["ES256"], "ES256", {"kid": "ES256"}),
    "a body that is no JSON": lambda: jwt.api_jws.encode(b"u", OURS.keys["ES256"], "ES256", {"kid": "ES256"}),
    "a deep body": lambda: jwt.api_jws.encode(b"[" * 5000, OURS.keys["ES256"], "ES256", {"kid": "ES256"}),
    "a deep header": lambda: base64.urlsafe_b64encode(b"[" * 5000).decode() + "..",
    "too long": lambda: OURS.token("u", name="x" * 9000),
    "nothing": lambda: "",
    "dots": lambda: "..",
    "no base64": lambda: "a.b.c",
    "bytes": lambda: "\xff\xfe.\x00.\x01",
    "a header that is no object": lambda: f"{part([])}.{part(claims())}.",  # type: ignore[arg-type]  # that is the point
    "no algorithm": lambda: by_hand({"kid": "ES256"}),
    "a kid that is a list": lambda: by_hand({"alg": "ES256", "kid": ["ES256"]}),
}  # fmt: skip


@pytest.mark.parametrize("how", FORGED)
def test_a_token_that_proves_nothing_is_refused(verifier: Tokens, how: str) -> None:
    """And what is told of it helps nobody to forge a better one."""
    with pytest.raises(BadToken) as caught:
        verifier.find(FORGED[how]())

    assert str(caught.value) in {tokens.NOT_VALID, *tokens.REASONS.values()}
    assert verifier._known == {}


@pytest.mark.parametrize("how", ["another's key", "another body"])
def test_of_a_forged_token_nothing_is_told(verifier: Tokens, how: str) -> None:
    """The reason is for those whose signature is right."""
    with pytest.raises(BadToken, match=f"^{tokens.NOT_VALID}$"):
        verifier.find(FORGED[how]())
    with pytest.raises(BadToken, match="expired"):
        verifier.find(FORGED["expired"]())


def test_the_issuers_clock_may_be_off_by_the_leeway(verifier: Tokens) -> None:
    """And by no more, see `expired` and `not yet`."""
    now = int(time.time())

    assert verifier.find(OURS.token("u", exp=now - 5)).user_id == "u"
    assert verifier.find(OURS.token("u", nbf=now + 5, iat=now + 5)).user_id == "u"


def test_one_of_several_audiences_is_enough(verifier: Tokens) -> None:
    """As RFC 7519 has it."""
    assert verifier.find(OURS.token("u", aud=["billing", AUDIENCE])).user_id == "u"


def test_a_token_is_verified_once_and_remembered_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a moment longer; and of many tokens the latest ones are."""
    OURS.publish(tmp_path)
    keys = {key["kid"]: jwt.PyJWK(key) for key in json.loads((tmp_path / "jwks.json").read_text())["keys"]}
    now = [time.time()]
    verifier = Tokens(keys, SETTINGS, lambda: now[0])
    token = OURS.token("u")
    verifier.find(token)
    monkeypatch.setattr(tokens, "REMEMBERED", 3)
    real, asked = jwt.decode, []
    monkeypatch.setattr(jwt, "decode", lambda *given, **options: asked.append(1) or real(*given, **options))
    verifier.find(token)
    assert asked == []
    now[0] += 600 + SETTINGS.leeway_seconds + 1
    verifier.find(token)  # in real time it has not ended; what counts is that it was verified again
    assert asked == [1]
    for number in range(10):
        verifier.find(OURS.token(f"u{number}"))

    assert len(verifier._known) == 3
    assert not any(token in str(known) for known in verifier._known)


def test_a_key_that_is_taken_away_ends_its_tokens(tmp_path: Path) -> None:
    """Remembered ones too, when the file is read again; a damaged or missing file changes nothing."""
    now = [0.0]
    OURS.publish(tmp_path)
    watched = Watched(tmp_path / "jwks.json", lambda path: tokens.load(path, SETTINGS), 2.0, lambda: now[0])
    token, other = OURS.token("u", "ES256"), OURS.token("u", "RS256")
    for text in (token, other):
        assert watched.current().find(text)
    for damage in (lambda: (tmp_path / "jwks.json").write_text("{"), (tmp_path / "jwks.json").unlink):
        damage()
        now[0] += 2
        assert watched.current().find(token)
    OURS.publish(tmp_path, ["RS256"])
    now[0] += 2

    assert watched.current().find(other)
    with pytest.raises(BadToken):
        watched.current().find(token)


def secret_key() -> dict[str, Any]:
    return {"kty": "oct", "k": base64.urlsafe_b64encode(os.urandom(32)).decode(), "kid": "s", "alg": "HS256"}


def short_rsa() -> dict[str, Any]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()
    return {**jwt.get_algorithm_by_name("RS256").to_jwk(key, as_dict=True), "kid": "short"}


def other_curve() -> dict[str, Any]:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return {**jwt.get_algorithm_by_name("ES384").to_jwk(key, as_dict=True), "kid": "p384"}


def private() -> dict[str, Any]:
    return {**jwt.get_algorithm_by_name("RS256").to_jwk(OURS.keys["RS256"], as_dict=True), "kid": "private"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no set of public keys"),
        ("[]", "no set of public keys"),
        ('{"keys": 1}', "no set of public keys"),
        ('{"keys": ["x"]}', "no set of public keys"),
        ('{"keys": []}', "there has to be a key"),
        ('{"keys": [{"kty": "RSA", "kid": "x"}]}', "no set of public keys"),
        (lambda: [secret_key()], "'s' is for HS256"),
        (lambda: [OURS.public("RS256", alg="HS256")], "no set of public keys|is for HS256"),
        (lambda: [OURS.public("RS256", alg="RS512")], "is for RS512"),
        (lambda: [other_curve()], "is for ES384"),
        (lambda: [short_rsa()], "has 1024 bits"),
        (lambda: [private()], "is a private one"),
        (lambda: [OURS.public("ES256"), OURS.public("RS256", kid="ES256")], "a kid of its own"),
        (lambda: [OURS.public("ES256", kid=None)], "a kid of its own"),
        (lambda: [OURS.public("ES256", use="enc")], "there has to be a key"),
    ],
)
def test_a_file_of_keys_that_may_not_be_used_is_refused(tmp_path: Path, text: Any, told: str) -> None:
    """By name, before any request."""
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": text()}) if callable(text) else text)
    with pytest.raises(ConfigError, match=told):
        tokens.load(tmp_path / "jwks.json", SETTINGS)


def test_an_algorithm_can_be_left_out(tmp_path: Path) -> None:
    """Then a key for it is a mistake, and so is any algorithm besides the three."""
    OURS.publish(tmp_path)
    with pytest.raises(ConfigError, match=r"'RS256' is for RS256; auth\.algorithms are ES256"):
        tokens.load(tmp_path / "jwks.json", SETTINGS.model_copy(update={"algorithms": ("ES256",)}))
    for name in ("HS256", "none", "RS512"):
        (tmp_path / "nightlist.toml").write_text(f'[auth]\nalgorithms = ["{name}"]\n')
        with pytest.raises(ConfigError, match=r"auth\.algorithms"):
            load_auth_settings(tmp_path / "nightlist.toml")


@pytest.mark.parametrize("missing", ["issuer", "audience"])
def test_issuer_and_audience_are_needed(tmp_path: Path, missing: str) -> None:
    """Without them a token for any other service would do."""
    lines = {"jwks_file": "jwks.json", "issuer": ISSUER, "audience": AUDIENCE} | {missing: ""}
    text = "".join(f'{name} = "{value}"\n' for name, value in lines.items())
    (tmp_path / "nightlist.toml").write_text("[auth]\n" + text)
    with pytest.raises(ConfigError, match=rf"auth\.{missing} is empty"):
        load_auth_settings(tmp_path / "nightlist.toml")
