"""One connection to Cassandra, and what the driver's errors mean."""

import logging
import math
import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

from cassandra import ConsistencyLevel, DriverException, InvalidRequest, OperationTimedOut, ReadFailure, Unauthorized
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import (
    EXEC_PROFILE_DEFAULT,
    Cluster,
    DefaultConnection,
    ExecutionProfile,
    NoHostAvailable,
    Session,
    UnresolvableContactPoints,
)
from cassandra.connection import ConnectionException
from cassandra.cython_deps import HAVE_CYTHON
from cassandra.policies import (
    DCAwareRoundRobinPolicy,
    ExponentialReconnectionPolicy,
    TokenAwarePolicy,
)
from cassandra.pool import Host
from cassandra.protocol import ErrorMessage
from cassandra.query import PreparedStatement, tuple_factory

from lookup_api.readers._reads import DriverRead, Key, Read, Reply, read_all
from lookup_api.readers._watchdog import Watchdog
from schemas.errors import ConfigError, StoreUnavailable
from schemas.settings import CassandraSettings, ServeSettings

log = logging.getLogger(__name__)

# The driver tells of every try to connect; what came of it is in our errors. Whoever wants to hear it sets up logging.
logging.getLogger("cassandra").addHandler(logging.NullHandler())

PROTOCOL = 5  # of Cassandra 4.0 and newer; else each connection begins by asking for what no Cassandra speaks
RECONNECT_SECONDS = 5.0  # at most; by default a node that is back may stay unused for ten minutes
HEARTBEAT_SECONDS = 5.0
"""A service asks an idle connection for a sign of life this often, and gives it as long: a frozen node costs each of its
reads a hedge, until it is known as down. (The driver's own figures, which jobs keep: 30 seconds each.)"""
BACKGROUND_SECONDS = 2.0
"""Most that a service's own thread waits for a statement: what it follows changes meanwhile."""
LEARN_SECONDS = 75.0
"""Most that a scan waits for a node to learn of a table: Cassandra asks others for what it missed every minute."""
PREPARED = 8
"""Statements kept: those of the run that is served and of the one before it are in use, those of older runs never again."""
QUORUM, ONE, SERIAL = EXEC_PROFILE_DEFAULT, "one", "serial"
"""Execution profiles: how many replicas of the data centre have to answer. SERIAL sees every transaction that was begun."""
EVENTS = ("hedge", "confirmation", "retry", "rebuild")
"""What happens beside one read a list: a silent replica's read sent to another, "none" asked of a quorum, a failure asked of
a quorum, a Cluster made anew."""
DRIVER_ERRORS = (DriverException, ErrorMessage, NoHostAvailable, UnresolvableContactPoints, ConnectionException)
UNREACHED = (OperationTimedOut, NoHostAvailable, ConnectionException)
"""Errors that no node told us."""


class Connection:
    """The driver's Cluster and Session, made at the first statement: by the process that uses them, after any fork.

    A service's gets its timings from `serve`, and is made anew when it reaches nobody for `settings.rebuild_seconds`: when
    all nodes restart at once, the driver may never find them again.
    """

    def __init__(self, settings: CassandraSettings, serve: ServeSettings | None = None) -> None:
        self.settings = settings
        self._serve = serve
        self._watchdog = Watchdog(settings.rebuild_seconds if serve else math.inf)
        self._lock = Lock()
        self._session: Session | None = None
        self._prepared: dict[str, PreparedStatement] = {}
        self._direct: dict[PreparedStatement, tuple[Session, Read]] = {}
        self.events = dict.fromkeys(EVENTS, 0)
        self._counting = Lock()

    def count(self, event: str, times: int = 1) -> None:
        """Count one of EVENTS; they are rare."""
        with self._counting:
            self.events[event] += times

    def execute(
        self,
        statement: Any,
        values: Sequence[Any] = (),
        profile: Any = QUORUM,
        host: Host | None = None,
        paging_state: bytes | None = None,
    ) -> Any:
        """The result of one statement, by one node or any. Raises the driver's errors."""
        try:
            result = self.session().execute(
                statement, values or None, execution_profile=profile, host=host, paging_state=paging_state
            )
        except UNREACHED:
            self._unreached()
            raise
        self._watchdog.reached()
        return result

    def pages(self, statement: Any) -> Iterator[list[Any]]:
        """The rows of a statement, page by page, each from the first node that can read it. Raises the driver's errors.

        A node that was away, or stood still, when a table was made does not know it until up to a minute after it is back:
        it says so of itself, and what a quorum with it is asked for fails. That is waited for.
        """
        state, patience = None, time.monotonic() + LEARN_SECONDS
        while True:
            try:
                page = self._page(statement, state)
            except ReadFailure:
                if time.monotonic() > patience:
                    raise
                time.sleep(1)
                continue
            yield page.current_rows
            if not page.has_more_pages:
                return
            state = page.paging_state

    def _page(self, statement: Any, state: bytes | None) -> Any:
        try:
            return self.execute(statement, paging_state=state)
        except (InvalidRequest, ReadFailure) as error:
            failed: Exception = error
        for host in self.session().cluster.metadata.all_hosts():
            try:
                return self.execute(statement, host=host, paging_state=state)
            except ReadFailure as error:  # it knows the table
                failed = error
            except (InvalidRequest, *UNREACHED):
                pass
        raise failed

    def read(
        self, statement: PreparedStatement, keys: Iterable[Key], profile: str, until: float | None
    ) -> dict[Key, Reply]:
        """The row of each key, None where there is none, or the driver's error; after `until` nobody waits for one.
        Raises StoreUnavailable where none can be asked."""
        session, now, serve = self._session, time.monotonic(), self._serve
        seconds = serve.read_seconds if serve and until else self.settings.timeout_seconds
        if until is not None and (session is None or until <= now):
            raise StoreUnavailable("no time is left to ask Cassandra" if session else "Cassandra was not reached yet")
        last = min(now + seconds, until or math.inf)
        read = self._read_of(session or self.session(), statement, profile)
        found, hedges = read_all(read, keys, serve.hedge_seconds if serve else 0, last)
        if hedges:
            self.count("hedge", hedges)
        if not all(isinstance(reply, Exception) for reply in found.values()):
            self._watchdog.reached()
        return found

    def prepared(self, cql: str) -> PreparedStatement:
        """The statement, prepared once; one that is safe to send twice."""
        found = self._prepared.get(cql)
        if found is None:
            found = self.session().prepare(cql)
            found.is_idempotent = True
            while len(self._prepared) >= PREPARED:
                self._direct.pop(self._prepared.pop(next(iter(self._prepared)), None), None)
            self._prepared[cql] = found
        return found

    def _read_of(self, session: Session, statement: PreparedStatement, profile: str) -> Read:
        """One replica is asked the short way, where the driver was built with what that takes."""
        if profile != ONE or not HAVE_CYTHON:
            return DriverRead(session, statement, profile)
        made_for, read = self._direct.get(statement, (None, None))
        if read is None or made_for is not session:
            read = _direct_read()(session, statement, profile)
            self._direct[statement] = session, read
        return read

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
            self._prepared, self._direct = {}, {}
        if session is not None:
            session.cluster.shutdown()

    def _unreached(self) -> None:
        """Connect anew where nobody was reached for too long: only when that worked is the old Cluster given up."""
        if self._session is None or not self._watchdog.failed():
            return
        log.warning("Cassandra was not reached for %g s; connecting anew", self.settings.rebuild_seconds)
        try:
            session = self._connect()
        except (StoreUnavailable, *DRIVER_ERRORS) as error:
            log.warning("that failed: %s", error)
            return
        with self._lock:
            given_up, self._session = (self._session, session) if self._session else (session, None)  # closed meanwhile
        self.count("rebuild")
        log.warning("connected anew")
        given_up.cluster.shutdown()

    def _connect(self) -> Session:
        cluster = _cluster(self.settings, self._serve)
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


def _cluster(settings: CassandraSettings, serve: ServeSettings | None) -> Cluster:
    levels = {QUORUM: "LOCAL_QUORUM", ONE: "LOCAL_ONE", SERIAL: "LOCAL_SERIAL"}
    password = settings.password.get_secret_value()
    heartbeat = {"idle_heartbeat_interval": HEARTBEAT_SECONDS, "idle_heartbeat_timeout": HEARTBEAT_SECONDS}
    return Cluster(
        list(settings.contact_points),
        port=settings.port,
        protocol_version=PROTOCOL,
        auth_provider=PlainTextAuthProvider(settings.username, password) if settings.username else None,
        execution_profiles={profile: _profile(settings, serve, level) for profile, level in levels.items()},
        connect_timeout=settings.connect_seconds,
        control_connection_timeout=settings.connect_seconds,
        reconnection_policy=ExponentialReconnectionPolicy(1.0, RECONNECT_SECONDS),
        ssl_context=tls_context(settings) if settings.tls else None,
        compression=False,  # rows are about 1 kB
        monitor_reporting_enabled=False,
        connection_class=_connection_class() if serve else DefaultConnection,
        **(heartbeat if serve else {}),
    )


def _direct_read() -> type[Any]:
    from lookup_api.readers._direct import DirectRead  # can't be imported where the driver has no Cython

    return DirectRead


def _connection_class() -> type[Any]:
    """What a service connects by."""
    if DefaultConnection.__module__ != "cassandra.io.libevreactor":
        return DefaultConnection  # type: ignore[no-any-return]  # the driver has no types
    from lookup_api.readers._libev import DirectConnection  # can't be imported where the driver has no libev

    return DirectConnection


def tls_context(settings: CassandraSettings) -> ssl.SSLContext:
    """Whom to trust, and who we are. Raises ConfigError, which names the file that can't be used."""
    key, file = "ca_file", settings.ca_file
    try:
        context = ssl.create_default_context(cafile=file or None)
        context.check_hostname = settings.check_hostname
        if settings.cert_file:
            key, file = "cert_file", " with ".join(filter(None, (settings.cert_file, settings.key_file)))
            # An encrypted key would ask at the terminal.
            context.load_cert_chain(settings.cert_file, settings.key_file or None, password="")
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        said = error.strerror or error if isinstance(error, OSError) else "its key is encrypted"
        raise ConfigError(f"store.cassandra.{key} = {file} can't be used: {said}; it has to be PEM") from None
    return context


def _profile(settings: CassandraSettings, serve: ServeSettings | None, level: str) -> ExecutionProfile:
    # One replica: always the same one, whose caches are warm. More: any of them leads, so that what one of them could not
    # answer is not asked of it first again.
    nodes = TokenAwarePolicy(DCAwareRoundRobinPolicy(settings.local_dc), shuffle_replicas=level != "LOCAL_ONE")
    return ExecutionProfile(
        load_balancing_policy=nodes,
        consistency_level=getattr(ConsistencyLevel, level),
        serial_consistency_level=ConsistencyLevel.LOCAL_SERIAL,
        request_timeout=min(settings.timeout_seconds, BACKGROUND_SECONDS) if serve else settings.timeout_seconds,
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
        lambda error, said: "mismatch" in said or "is not valid for" in said,
        "shows a certificate of another name ({said}): store.cassandra.contact_points has to hold, and the nodes to tell "
        "(rpc_address), addresses that the certificates name; or set store.cassandra.check_hostname = false",
    ),
    (
        lambda error, said: "CERTIFICATE_VERIFY_FAILED" in said,
        "shows a certificate that is not trusted ({said}): store.cassandra.ca_file has to hold the certificate of who "
        "signed it",
    ),
    (
        lambda error, said: "WRONG_VERSION_NUMBER" in said or "RECORD_LAYER_FAILURE" in said,
        "speaks no TLS at this port ({said}): set store.cassandra.tls = false, or check store.cassandra.port",
    ),
    (
        lambda error, said: isinstance(error, ssl.SSLError) or "[SSL" in said,
        "breaks the TLS connection off ({said}): where it wants a client certificate, store.cassandra.cert_file and key_file "
        "have to be of one that it trusts",
    ),
    (
        lambda error, said: isinstance(error, ConnectionResetError),
        "breaks the connection off ({said}): where it speaks TLS, set store.cassandra.tls = true, and cert_file where it "
        "wants a client certificate; else it is starting",
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
