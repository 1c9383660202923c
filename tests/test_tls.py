"""TLS to Cassandra, with certificates made here: on a node that speaks nothing else, wants a client's, and asks for no password."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs12,
)
from cryptography.x509.oid import NameOID

from jobs.stores.cassandra import CassandraStore
from lookup_api.readers.cassandra import CassandraReader
from schemas.errors import ConfigError, StoreUnavailable
from schemas.settings import CassandraSettings
from tests.cassandra import Node
from tests.commands import nightlist
from tests.nights import checkerboard, place

PASSWORD = "of-the-keystore"


class Authority:
    """Signs certificates for an address."""

    def __init__(self, folder: Path, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self.sign(self.name, self.key, authority=True)
        self.pem = folder / f"{name}.pem"
        self.pem.write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def sign(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, authority: bool = False) -> x509.Certificate:
        now = datetime.now(UTC)
        address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
        builder = x509.CertificateBuilder(self.name, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
        constraint = x509.BasicConstraints(ca=authority, path_length=None)
        return (
            builder.add_extension(address, critical=False)
            .add_extension(constraint, critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def issue(self, folder: Path, name: str, encrypted: bool = False) -> tuple[Path, Path, Path]:
        """A certificate and its key, as PEM files and as one keystore."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.sign(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key)
        paths = folder / f"{name}.crt", folder / f"{name}.key", folder / f"{name}.p12"
        hidden = BestAvailableEncryption(PASSWORD.encode())
        kept = hidden if encrypted else NoEncryption()
        paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
        paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, kept))
        paths[2].write_bytes(
            pkcs12.serialize_key_and_certificates(name.encode(), key, certificate, [self.certificate], hidden)
        )
        return paths


class TlsNode(Node):
    """A node that is reached by TLS, with a client certificate, and without a user."""

    def settings(self, keyspace: str = "nightlist", user: str = "", **others: Any) -> CassandraSettings:
        files = self.folder.parent
        tls = {"ca_file": files / "ours.pem", "cert_file": files / "client.crt", "key_file": files / "client.key"}
        given = {"tls": True, "password": ""} | {name: str(path) for name, path in tls.items()}
        return super().settings(keyspace, user, **(given | others))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsNode]:
    files = tmp_path_factory.mktemp("tls")
    ours = Authority(files, "ours")
    Authority(files, "theirs").issue(files, "stranger")
    ours.issue(files, "client")
    ours.issue(files, "locked", encrypted=True)
    *_, keystore = ours.issue(files, "node")
    trusted = pkcs12.serialize_java_truststore(
        [pkcs12.PKCS12Certificate(ours.certificate, b"ours")], BestAvailableEncryption(PASSWORD.encode())
    )
    (files / "trusted.p12").write_bytes(trusted)
    yaml = {
        "authenticator": "AllowAllAuthenticator",
        "authorizer": "AllowAllAuthorizer",
        "rpc_address": "0.0.0.0",
        "broadcast_rpc_address": "127.0.0.1",
        "client_encryption_options": "{enabled: true, optional: false, require_client_auth: true, store_type: PKCS12, "
        f"keystore: {keystore}, keystore_password: {PASSWORD}, truststore: {files}/trusted.p12, "
        f"truststore_password: {PASSWORD}}}",
    }
    found = TlsNode(files / "node", yaml=yaml).start()
    yield found
    found.kill()


def test_lists_are_published_and_read_by_tls(node: TlsNode, tmp_path: Path, keyspace: str) -> None:
    """By paths that count from nightlist.toml; and where Cassandra asks nobody who they are, `init --store` says so and goes on."""
    known = node.settings(keyspace).model_dump(exclude={"password"})
    for name in ("ca_file", "cert_file", "key_file"):
        (tmp_path / name).write_bytes(Path(known[name]).read_bytes())
        known[name] = name
    there = place(tmp_path, checkerboard(), store={"backend": "cassandra", "cassandra": known})
    there.settings()
    made = nightlist("init", "--store", "--config", there.config)
    assert (made.code, made.stdout) == (0, "")
    assert "no roles were made: this Cassandra asks nobody who they are" in made.stderr
    assert not (tmp_path / "secrets").exists()
    reader = CassandraReader(there.settings().store.cassandra)
    store = CassandraStore(there.settings().store.cassandra)
    store.release(store.acquire("me", 60))

    assert reader.runs() == []
    reader.close()
    store.close()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "untrusted": ({"ca_file": "theirs.pem"}, "not trusted .*ca_file has to hold the certificate of who signed it"),
    "not the machine's": ({"ca_file": ""}, "not trusted .*store.cassandra.ca_file"),
    "another address": ({"contact_points": ["127.0.0.2"]}, "certificate of another name .*check_hostname = false"),
    "no certificate": ({"cert_file": "", "key_file": ""}, "store.cassandra.*cert_file"),
    "another's certificate": ({"cert_file": "stranger.crt", "key_file": "stranger.key"}, "store.cassandra.cert_file"),
    "no TLS": ({"tls": False}, "set store.cassandra.tls = true"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_with_a_certificate_is_said(node: TlsNode, what: str) -> None:
    """Reader and writer name the setting that mends it."""
    wrong, message = WRONG[what]
    files = {name: str(node.folder.parent / value) if value else "" for name, value in wrong.items() if "file" in name}
    settings = node.settings(**(wrong | files))
    for call in (CassandraReader(settings).release, CassandraStore(settings).prepare):
        with pytest.raises(StoreUnavailable, match=f"(?s){message}"):
            call()


def test_the_check_of_the_name_can_be_left_out(node: TlsNode, keyspace: str) -> None:
    """For nodes whose certificates name none of their addresses; who signed them is still checked."""
    reader = CassandraReader(node.settings(keyspace, contact_points=["127.0.0.2"], check_hostname=False))
    with pytest.raises(StoreUnavailable, match="no keyspace"):
        reader.release()
    reader.close()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"ca_file": "nowhere.pem"}, "store.cassandra.ca_file = .*nowhere.pem can't be used: No such file"),
        ({"ca_file": "client.key"}, "store.cassandra.ca_file = .*client.key can't be used"),
        ({"key_file": "stranger.key"}, "store.cassandra.cert_file = .*client.crt with .*stranger.key can't be used"),
        ({"cert_file": "locked.crt", "key_file": "locked.key"}, "locked.key can't be used"),
    ],
)
def test_a_file_that_can_not_be_used_is_named(node: TlsNode, wrong: dict[str, str], named: str) -> None:
    """Nobody is asked for the password of a key, and nothing is connected to."""
    settings = node.settings(**{name: str(node.folder.parent / value) for name, value in wrong.items()})
    with pytest.raises(ConfigError, match=named):
        CassandraReader(settings).release()


def test_tls_to_a_port_that_speaks_none_is_said(node: TlsNode, cassandra: Node) -> None:
    """The other way round, on a node without TLS."""
    with pytest.raises(StoreUnavailable, match="speaks no TLS at this port"):
        CassandraReader(node.settings(port=cassandra.port)).release()
