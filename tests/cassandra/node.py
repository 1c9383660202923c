"""One real Cassandra node on loopback."""

import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cassandra.cluster import NoHostAvailable

from lookup_api.readers._cassandra import Connection
from schemas.settings import CassandraSettings
from tests.cassandra.jars import JAVA_OPTIONS, SMALL, fetch, java_for_cassandra
from tests.commands import free_port

SUPERUSER = "cassandra"
"""Name and password that every new Cassandra with authentication has."""
START_SECONDS = 120.0

QUICK = {
    "cassandra.skip_wait_for_gossip_to_settle": 0,
    "cassandra.ring_delay_ms": 0,
    "cassandra.superuser_setup_delay_ms": 0,
    "cassandra.auth_bcrypt_gensalt_log2_rounds": 4,
}
"""A node alone has nobody to wait for, and its passwords are known."""
IN_COMPANY = {
    "cassandra.superuser_setup_delay_ms": 500,
    "cassandra.auth_bcrypt_gensalt_log2_rounds": 4,
    "cassandra.system_auth.default_rf": 3,
}
"""Three nodes wait until their gossip has settled, as in production; each of them knows all roles."""
YAML = """\
cluster_name: nightlist
num_tokens: 4
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: GossipingPropertyFileSnitch
seed_provider: [{{class_name: org.apache.cassandra.locator.SimpleSeedProvider, parameters: [{{seeds: "{seeds}"}}]}}]
listen_address: {host}
rpc_address: {host}
storage_port: {storage}
native_transport_port: {port}
data_file_directories: [{folder}/data]
commitlog_directory: {folder}/commitlog
hints_directory: {folder}/hints
saved_caches_directory: {folder}/saved_caches
cdc_raw_directory: {folder}/cdc_raw
commitlog_sync: periodic
commitlog_sync_period: 10000ms
authenticator: PasswordAuthenticator
authorizer: CassandraAuthorizer
role_manager: CassandraRoleManager
storage_compatibility_mode: NONE
sstable: {{selected_format: bti}}
memtable_allocation_type: offheap_objects
memtable_heap_space: 64MiB
memtable_offheap_space: 64MiB
file_cache_size: 64MiB
concurrent_compactors: 1
"""
LOGBACK = """\
<configuration>
  <appender name="file" class="ch.qos.logback.core.FileAppender">
    <file>{folder}/system.log</file>
    <encoder><pattern>%d %level %logger{{20}} %msg%n%ex{{5}}</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="file"/></root>
</configuration>
"""
RACK = "dc=datacenter1\nrack=rack1\n"
"""Of GossipingPropertyFileSnitch: whoever coordinates a read of rows that it has reads them itself."""


@dataclass
class Node:
    """A node with authentication, in a folder that it can be started in again; a cluster of its own unless it has `seeds`."""

    folder: Path
    port: int = field(default_factory=free_port)
    storage_port: int = field(default_factory=free_port)
    jmx_port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None
    admin: Connection | None = None
    host: str = "127.0.0.1"
    seeds: tuple[str, ...] = ("127.0.0.1",)
    yaml: Mapping[str, Any] = field(default_factory=dict)
    """What cassandra.yaml says besides, or instead."""
    java: tuple[str, ...] = SMALL
    """Java's memory, collector and compiler."""

    def start(self) -> "Node":
        """Start the node, and return when its superuser can log in."""
        self.spawn()
        return self.wait()

    def wait(self) -> "Node":
        """Return when the superuser can log in to a node that was spawned."""
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            if (self.process and self.process.poll() is not None) or time.monotonic() > deadline:
                raise RuntimeError(f"Cassandra did not start in {self.folder}: {self._last_words()}")
            time.sleep(0.2)
        return self

    def spawn(self) -> None:
        """Start the node, and return at once."""
        jars, conf = fetch(), self._configured()
        (jamm,) = jars.glob("jamm-*.jar")
        properties = {
            "cassandra.config": f"file://{conf}/cassandra.yaml",
            "cassandra-rackdc.properties": f"file://{conf}/rackdc.properties",
            "logback.configurationFile": f"{conf}/logback.xml",
            "cassandra.storagedir": self.folder,
            "cassandra.jmx.local.port": self.jmx_port,
            **(QUICK if len(self.seeds) == 1 else IN_COMPANY),
        }
        given = [f"-D{name}={value}" for name, value in properties.items()]
        command = [java_for_cassandra(), *self.java, *JAVA_OPTIONS, f"-javaagent:{jamm}", *given, "-cp", f"{jars}/*"]
        with (self.folder / "out.log").open("ab") as out:
            daemon = [*command, "org.apache.cassandra.service.CassandraDaemon"]
            self.process = subprocess.Popen(
                daemon, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process, and wait for it."""
        if self.admin:
            self.admin.close()
            self.admin = None
        if self.process:
            self.process.send_signal(how)
            self.process.wait(60)
            self.process = None

    def kill(self) -> None:
        """A crash."""
        self.stop(signal.SIGKILL)

    def freeze(self) -> None:
        """It takes connections, and answers nothing."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on where it was frozen."""
        assert self.process
        self.process.send_signal(signal.SIGCONT)

    def settings(self, keyspace: str = "nightlist", user: str = SUPERUSER, **others: Any) -> CassandraSettings:
        """How to reach it; everybody's password is their name."""
        values = {"contact_points": (self.host,), "port": self.port, "keyspace": keyspace, "replication_factor": 1}
        return CassandraSettings.model_validate(values | {"username": user, "password": user} | others)

    def section(self, keyspace: str, user: str = "publisher") -> dict[str, Any]:
        """[store] of a nightlist.toml that publishes into the keyspace."""
        reached = {"port": self.port, "keyspace": keyspace, "replication_factor": 1}
        return {"backend": "cassandra", "grace_seconds": 0, "cassandra": reached | {"username": user, "password": user}}

    def execute(self, statement: str) -> Any:
        """The rows of a statement by the superuser."""
        if self.admin is None:
            self.admin = Connection(self.settings(connect_seconds=20, timeout_seconds=60))
        return self.admin.execute(statement).all()

    def nodetool(self, *arguments: str) -> str:
        """Cassandra's own tool, e.g. `flush`."""
        tool = ["-cp", f"{fetch()}/*", "org.apache.cassandra.tools.NodeTool", "-p", str(self.jmx_port)]
        command = [java_for_cassandra(), *SMALL, *JAVA_OPTIONS, *tool]
        return subprocess.run([*command, *arguments], check=True, capture_output=True, text=True).stdout

    def answers(self) -> bool:
        """Whether the superuser can log in."""
        try:
            with socket.create_connection((self.host, self.port), 1):
                pass
            self.execute("SELECT release_version FROM system.local")
        except (OSError, NoHostAvailable):
            return False
        return True

    def _configured(self) -> Path:
        """The folder of its configuration, written."""
        conf = self.folder / "conf"
        conf.mkdir(parents=True, exist_ok=True)
        seeds = ",".join(f"{seed}:{self.storage_port}" for seed in self.seeds)
        names = {"folder": self.folder, "host": self.host, "port": self.port, "storage": self.storage_port}
        lines = dict(line.split(": ", 1) for line in YAML.format(**names, seeds=seeds).splitlines()) | self.yaml
        (conf / "cassandra.yaml").write_text("".join(f"{name}: {value}\n" for name, value in lines.items()))
        (conf / "logback.xml").write_text(LOGBACK.format(folder=self.folder))
        (conf / "rackdc.properties").write_text(RACK)
        return conf

    def _last_words(self) -> str:
        files = (self.folder / "out.log", self.folder / "system.log")
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in files if path.exists())
