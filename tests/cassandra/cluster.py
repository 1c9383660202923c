"""Three real Cassandra nodes on loopback."""

import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from cassandra import ConsistencyLevel
from cassandra.query import SimpleStatement

from lookup_api.readers._cassandra import DRIVER_ERRORS, Connection
from schemas.settings import CassandraSettings
from tests.cassandra.node import START_SECONDS, SUPERUSER, Node
from tests.commands import free_port

COMPANY = {
    "auto_bootstrap": "false",
    "dynamic_snitch": "false",
    "permissions_validity": "60s",
    "roles_validity": "60s",
    "credentials_validity": "60s",
}
"""Nodes of a new cluster have nothing to give each other; a node reads rows that it has itself, however busy the machine is;
who may do what is known for a while without a quorum."""


class Cluster:
    """Three nodes on 127.0.0.1 to 127.0.0.3, each with all rows where keyspaces keep three copies."""

    HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.port, storage_port = port or free_port(*self.HOSTS), free_port(*self.HOSTS)
        self.nodes = [
            Node(
                folder / f"node{number}",
                self.port,
                storage_port,
                host=host,
                seeds=self.HOSTS,
                yaml={"initial_token": _tokens(number), **COMPANY},
            )
            for number, host in enumerate(self.HOSTS)
        ]

    def start(self) -> "Cluster":
        """Start all nodes, and return when each sees the others and the superuser can log in to it."""
        for node in self.nodes:
            node.spawn()
        return self.wait()

    def wait(self) -> "Cluster":
        """Return when nodes that were spawned are one cluster."""
        for node in self.nodes:
            node.wait()
        deadline = time.monotonic() + START_SECONDS
        while not self.is_whole():
            if time.monotonic() > deadline:
                raise RuntimeError(f"the nodes in {self.nodes[0].folder.parent} don't see each other")
            time.sleep(0.2)
        return self

    def is_whole(self) -> bool:
        """Whether each node reads what all three have to say."""
        query = SimpleStatement("SELECT role FROM system_auth.roles", consistency_level=ConsistencyLevel.ALL)
        with closing(Connection(self.settings())) as connection:
            try:
                hosts = connection.session().cluster.metadata.all_hosts()
                for host in hosts:
                    connection.session().execute(query, host=host)
            except DRIVER_ERRORS:
                return False
        return len(hosts) == len(self.nodes)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End all nodes, frozen ones too."""
        for node in self.nodes:
            if node.process:
                node.thaw()
                node.process.send_signal(how)
        for node in self.nodes:
            node.stop(how)

    def kill(self) -> None:
        """A power cut, but for what the page cache keeps."""
        self.stop(signal.SIGKILL)

    def settings(self, keyspace: str = "nightlist", user: str = SUPERUSER, **others: Any) -> CassandraSettings:
        """How to reach it; everybody's password is their name."""
        return self.nodes[0].settings(
            keyspace, user, **{"contact_points": self.HOSTS, "replication_factor": 3} | others
        )

    def section(self, keyspace: str, user: str = "publisher") -> dict[str, Any]:
        """[store] of a nightlist.toml that publishes into the keyspace."""
        found = self.nodes[0].section(keyspace, user)
        found["cassandra"] |= {"contact_points": list(self.HOSTS), "replication_factor": 3}
        return found

    def execute(self, statement: str) -> Any:
        """The rows of a statement by the superuser, from any node that is up."""
        with closing(Connection(self.settings(timeout_seconds=60))) as connection:
            return connection.execute(statement).all()


def _tokens(number: int, nodes: int = 3, each: int = 4) -> str:
    """The tokens of one node: all nodes own equal parts of the ring, and nobody has to ask the others first."""
    return ",".join(str(place * 2**64 // (nodes * each) - 2**63) for place in range(number, nodes * each, nodes))
