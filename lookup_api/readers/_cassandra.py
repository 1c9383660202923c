"""One connection to Cassandra, and what the driver's errors mean."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

from cassandra import ConsistencyLevel, DriverException, InvalidRequest, OperationTimedOut, Unauthorized
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import (
    EXEC_PROFILE_DEFAULT,
    Cluster,
    ExecutionProfile,
    NoHostAvailable,
    Session,
    UnresolvableContactPoints,
)
from cassandra.connection import ConnectionException
from cassandra.policies import DCAwareRoundRobinPolicy, ExponentialReconnectionPolicy, TokenAwarePolicy
from cassandra.protocol import ErrorMessage
from cassandra.query import PreparedStatement, tuple_factory

from schemas.errors import StoreUnavailable
from schemas.settings import CassandraSettings

# The driver tells of every try to connect; what came of it is in our errors. Whoever wants to hear it sets up logging.
logging.getLogger("cassandra").addHandler(logging.NullHandler())

PROTOCOL = 5  # of Cassandra 4.0 and newer; else each connection begins by asking for what no Cassandra speaks
RECONNECT_SECONDS = 15.0  # at most; by default a node that is back may stay unused for ten minutes
PREPARED = 8
"""Statements kept: those of the run that is served and of the one before it are in use, those of older runs never again."""
QUORUM, ONE, SERIAL = EXEC_PROFILE_DEFAULT, "one", "serial"
"""Execution profiles: how many replicas of the data centre have to answer. SERIAL sees every transaction that was begun."""
DRIVER_ERRORS = (DriverException, ErrorMessage, NoHostAvailable, UnresolvableContactPoints)


class Connection:
    """The driver's Cluster and Session, made at the first statement: by the process that uses them, after any fork."""

    def __init__(self, settings: CassandraSettings) -> None:
        self.settings = settings
        self._lock = Lock()
        self._session: Session | None = None
        self._prepared: dict[str, PreparedStatement] = {}

    def execute(self, statement: Any, values: Sequence[Any] = (), profile: Any = QUORUM) -> Any:
        """The result of one statement. Raises the driver's errors."""
        return self.session().execute(statement, values or None, execution_profile=profile)

    def prepared(self, cql: str) -> PreparedStatement:
        """The statement, prepared once; one that is safe to send twice."""
        found = self._prepared.get(cql)
        if found is None:
            found = self.session().prepare(cql)
            found.is_idempotent = True
            while len(self._prepared) >= PREPARED:
                self._prepared.pop(next(iter(self._prepared)), None)
            self._prepared[cql] = found
        return found

    def session(self) -> Session:
        """The session, shared by threads. Raises StoreUnavailable and the driver's errors."""
        with self._lock:
            if self._session is None:
                self._session = self._connect()
            return self._session

    def close(self) -> None:
        """Give connections and threads back; the next statement would connect anew."""
        with self._lock:
            session, self._session = self._session, None
            self._prepared = {}
        if session is not None:
            session.cluster.shutdown()

    def _connect(self) -> Session:
        cluster = _cluster(self.settings)
        try:
            return cluster.connect()
        except NoHostAvailable as error:
            centres = sorted({host.datacenter for host in cluster.metadata.all_hosts() if host.datacenter})
            cluster.shutdown()
            if centres and self.settings.local_dc not in centres:
                raise StoreUnavailable(
                    f"store.cassandra.local_dc = {self.settings.local_dc!r}: the nodes are in {', '.join(centres)}"
                ) from error
            raise
        except BaseException:
            cluster.shutdown()
            raise


def _cluster(settings: CassandraSettings) -> Cluster:
    levels = {QUORUM: "LOCAL_QUORUM", ONE: "LOCAL_ONE", SERIAL: "LOCAL_SERIAL"}
    password = settings.password.get_secret_value()
    return Cluster(
        list(settings.contact_points),
        port=settings.port,
        protocol_version=PROTOCOL,
        auth_provider=PlainTextAuthProvider(settings.username, password) if settings.username else None,
        execution_profiles={profile: _profile(settings, level) for profile, level in levels.items()},
        connect_timeout=settings.connect_seconds,
        control_connection_timeout=settings.connect_seconds,
        reconnection_policy=ExponentialReconnectionPolicy(1.0, RECONNECT_SECONDS),
        compression=False,  # rows are about 1 kB
        monitor_reporting_enabled=False,
    )


def _profile(settings: CassandraSettings, level: str) -> ExecutionProfile:
    return ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy(settings.local_dc)),
        consistency_level=getattr(ConsistencyLevel, level),
        serial_consistency_level=ConsistencyLevel.LOCAL_SERIAL,
        request_timeout=settings.timeout_seconds,
        row_factory=tuple_factory,
    )


@contextmanager
def telling(settings: CassandraSettings) -> Iterator[None]:
    """The driver's errors as StoreUnavailable, which says what to do."""
    try:
        yield
    except DRIVER_ERRORS as error:
        raise StoreUnavailable(explain(settings, error)) from error


def is_absent(error: InvalidRequest, what: str) -> bool:
    """Whether the server says that there is no `what`, e.g. "table registry"; it has no code of its own for that."""
    return bool(re.search(rf"{what} does(n't| not) exist", message_of(error), re.IGNORECASE))


def explain(settings: CassandraSettings, error: Exception) -> str:
    """What is wrong with which Cassandra, and what to do."""
    where = f"Cassandra at {', '.join(settings.contact_points)}:{settings.port}"
    causes = _causes(error)
    said = "; ".join(dict.fromkeys(message_of(cause) for cause in causes))
    for matches, sentence in SENTENCES:
        if all(matches(cause, message_of(cause)) for cause in causes):
            return f"{where} " + sentence.format(said=said, user=settings.username, keyspace=settings.keyspace)
    return f"{where} answers: {said}; `nodetool status` shows which nodes are up; then run the same command again"


Matches = Callable[[Exception, str], bool]

SENTENCES: tuple[tuple[Matches, str], ...] = (
    (
        lambda error, said: isinstance(error, UnresolvableContactPoints),
        "has a name that can't be resolved; check store.cassandra.contact_points",
    ),
    (
        lambda error, said: "requires authentication" in said,
        "wants to know who asks: set store.cassandra.username, and its password by NIGHTLIST_STORE__CASSANDRA__PASSWORD "
        "or store.cassandra.password_file",
    ),
    (
        lambda error, said: "Failed to authenticate" in said or "incorrect" in said,
        "refuses {user!r}: wrong user name or password; check store.cassandra.username, and its password in "
        "NIGHTLIST_STORE__CASSANDRA__PASSWORD or store.cassandra.password_file",
    ),
    (
        lambda error, said: isinstance(error, Unauthorized),
        "refuses {user!r} a right: {said}; an administrator can grant it, e.g. on KEYSPACE {keyspace} (SELECT to read; "
        "CREATE, DROP, SELECT and MODIFY to publish)",
    ),
    (
        lambda error, said: isinstance(error, InvalidRequest) and is_absent(error, r"keyspace \S+"),
        "has no keyspace {keyspace!r}: check store.cassandra.keyspace, or make it with `nightlist init --store`",
    ),
    (
        lambda error, said: isinstance(error, InvalidRequest) and is_absent(error, "table registry"),
        "has a keyspace {keyspace!r} that nothing was published to; `nightlist init --store` prepares it",
    ),
    (
        lambda error, said: isinstance(error, OperationTimedOut) or "bootstrap" in said.lower(),
        "takes connections but does not answer: it is starting, or stuck; wait until `nodetool status` says UN, then run "
        "the same command again",
    ),
    (
        lambda error, said: isinstance(error, OSError | ConnectionException | NoHostAvailable),
        "can't be reached ({said}): start it, or check store.cassandra.contact_points and port; then run the same command "
        "again: what is built is not built again",
    ),
)
"""From the first sentence that fits every cause. `said` is what the server, or the system, says."""


def _causes(error: Exception) -> list[Exception]:
    """The error itself, or what each node that was asked said."""
    errors = error.errors if isinstance(error, NoHostAvailable) else None
    return list(errors.values()) if isinstance(errors, dict) and errors else [error]


def message_of(error: Exception) -> str:
    """The server's own words, without the driver's around them."""
    if isinstance(error, NoHostAvailable):
        return "no node answers"
    quoted = re.search(r'message="(.*?)"', str(error), re.DOTALL)
    return quoted[1] if quoted else str(error).strip() or type(error).__name__
