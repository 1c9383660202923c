"""The two roles of a keyspace in Cassandra: the night's publisher and the service's reader, each with the rights it needs."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from string import Template

from cassandra import InvalidRequest, Unauthorized

from lookup_api.readers._cassandra import Connection, message_of, telling
from schemas.ddl import statements
from schemas.errors import NightlistError
from schemas.settings import CassandraSettings

DDL = "cassandra.cql"
ROLES = ("publisher", "reader")
PASSWORD_BYTES = 24
UNSEEN = "..."
NOT_SUPPORTED = "not supported by AllowAllAuthorizer"


def planned(settings: CassandraSettings) -> list[str]:
    """Every statement of `nightlist init --store`, to look at: without passwords."""
    names = settings.model_dump(include={"keyspace", "local_dc", "replication_factor"})
    store = [Template(statements(DDL, part)).substitute(names).strip() for part in ("keyspace", "registry")]
    roles = [statement for role in ROLES for statement in (_role(settings, role, UNSEEN), *_rights(settings, role))]
    return [f"{statement.rstrip(';')};" for statement in (*store, *roles)]


def make_roles(settings: CassandraSettings, folder: Path) -> Iterator[str]:
    """Make the roles that are missing, with passwords in new files of the folder, and grant all rights; yields what was
    done, in sentences. Idempotent: a role that is there keeps its password.

    Without effect, and a sentence that says so, where Cassandra asks nobody who they are, and where who asks may not make
    roles. Raises StoreUnavailable; NightlistError where the folder can't be written.
    """
    connection = Connection(settings)
    try:
        with telling(settings):
            yield from _made(connection, folder)
    finally:
        connection.close()


def password_file(settings: CassandraSettings, folder: Path, role: str) -> Path:
    """Where the role's password lies."""
    return folder / _name(settings, role)


def _made(connection: Connection, folder: Path) -> Iterator[str]:
    settings = connection.settings
    try:
        there = {row[0] for row in connection.execute("LIST ROLES")}
        for role in ROLES:
            yield _make(connection, folder, role, _name(settings, role) in there)
            for statement in _rights(settings, role):
                connection.execute(statement)
    except Unauthorized as error:
        if "anonymous" in message_of(error):
            yield "no roles were made: this Cassandra asks nobody who they are, and whoever reaches it may change every list"
        else:
            yield (
                f"roles are not as they should be: {settings.username!r} may not make them ({message_of(error)}); run the "
                "same command as an administrator, or see what is missing with --dry-run"
            )
    except InvalidRequest as error:
        if NOT_SUPPORTED not in message_of(error):
            raise
        yield "no rights were granted: this Cassandra checks none, and every role may change every list"


def _make(connection: Connection, folder: Path, role: str, there: bool) -> str:
    settings = connection.settings
    name, path = _name(settings, role), password_file(settings, folder, role)
    if there:
        known = f"its password is in {path}" if path.exists() else f"its password is not in {folder}"
        return f"role {name} is there already, and has its rights again; {known}"
    kept = path.exists()
    password = _password(path)  # before the role: a role whose password nobody knows would be of no use
    try:
        connection.execute(_role(settings, role, password))
    except (Unauthorized, InvalidRequest):
        if not kept:
            path.unlink()
        raise
    return f"role {name} is made; its password is in {path}"


def _password(path: Path) -> str:
    """The file's, where an earlier try left one; else a new one, for its owner's eyes only."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise NightlistError(f"{path} can't be written: {error.strerror}; choose another folder by --secrets") from None
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    with os.fdopen(file, "w", encoding="utf-8") as open_file:
        open_file.write(password + "\n")
    return password


def _role(settings: CassandraSettings, role: str, password: str) -> str:
    # A file that a person wrote may hold a quote.
    names = {"role": _name(settings, role), "password": password.replace("'", "''")}
    return Template(statements(DDL, "role")).substitute(names).strip()


def _rights(settings: CassandraSettings, role: str) -> list[str]:
    cql = Template(statements(DDL, role)).substitute(keyspace=settings.keyspace, role=_name(settings, role))
    lines = [line for line in cql.splitlines() if not line.startswith("--")]
    return [statement.strip() for statement in "\n".join(lines).split(";") if statement.strip()]


def _name(settings: CassandraSettings, role: str) -> str:
    return f"{settings.keyspace}_{role}"
