"""A JVM that starts quickly: Spark's classes as an earlier JVM had loaded them, kept beside the environment's packages.

Each test process, and each process that a test kills, starts Spark anew: 7 s for the session and 14 s for the first small
night, of which the archive saves 8. Java takes no harm where it is missing or another Java's: it loads the classes itself.
"""

import fcntl
import os
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

ROOT = Path(__file__).parents[1]
ARCHIVE = Path(sys.prefix) / "spark.jsa"
"""Good for this environment's jars only: Java compares their paths and times."""
QUICK_START = f"-XX:TieredStopAtLevel=1 -XX:SharedArchiveFile={ARCHIVE}"
"""Java options for jobs of seconds: what the second compiler would gain, they do not live to see."""


def prepare() -> None:
    """Begin to make the archive where there is none, in another process."""
    if not ARCHIVE.exists():
        subprocess.Popen(
            [sys.executable, "-m", "tests.jvm"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )


def make() -> None:
    """Run two small nights in a JVM that writes down its classes as it ends."""
    from pyspark import SparkContext

    from jobs.config import SparkSettings
    from jobs.spark import session
    from tests.nights import DAY, SHORT_LIVED, checkerboard, place

    with ARCHIVE.with_suffix(".lock").open("w") as lock, tempfile.TemporaryDirectory(dir=sys.prefix) as folder:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # whoever comes second has nothing to do
        made = Path(folder) / "archive.jsa"
        options = {"spark.driver.extraJavaOptions": f"-XX:TieredStopAtLevel=1 -XX:ArchiveClassesAtExit={made}"}
        spark = session(SparkSettings(master="local[2]", conf=SHORT_LIVED | options))
        there = place(Path(folder) / "night", checkerboard())
        there.night(DAY - timedelta(days=1))
        there.night()
        jvm = SparkContext._gateway.proc
        try:
            spark._jvm.System.exit(0)
        except Exception:  # whatever py4j says of a JVM that has gone
            jvm.wait(120)
        made.replace(ARCHIVE)
    os._exit(0)  # Spark is gone: nothing is left to stop


if __name__ == "__main__":
    make()
