"""The Spark session that every job uses."""

import os
import shutil
import sys
from pathlib import Path
from subprocess import DEVNULL
from typing import TYPE_CHECKING

import jobs
from jobs.config import SparkSettings
from schemas.errors import NightlistError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CONF = {
    "spark.sql.session.timeZone": "UTC",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": "8",  # a start: adaptive execution splits and joins them by size
    "spark.sql.legacy.parquet.nanosAsLong": "true",  # pandas writes nanoseconds; read as numbers, told apart by size
    "spark.sql.autoBroadcastJoinThreshold": "64m",
    "spark.driver.memory": "4g",
    "spark.log.level": "ERROR",
    "spark.executor.extraJavaOptions": "-Ddev.ludovic.netlib.blas.allowNative=false "  # factors by MLlib: the same on
    "-Ddev.ludovic.netlib.lapack.allowNative=false",  # every machine, whatever libraries it has
}


class NoJava(NightlistError):
    """Spark can't start."""


def java() -> str:
    """The path of the Java that Spark will start. Raises NoJava."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if not found:
        where = f"in JAVA_HOME ({home})" if home else "on PATH"
        raise NoJava(f"no Java {where}: Spark needs Java 17 or newer; install it and run `nightlist doctor`")
    return found


def session(settings: SparkSettings) -> "SparkSession":
    """The session, made where there is none; settings that spark-submit gave win over ours.

    Workers use this interpreter, find this project, and have one BLAS thread each.
    """
    java()
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    _let_workers_import_the_project()
    # Without a JVM, SparkConf knows nothing of what spark-submit was given; what Java says on stdout would spoil our JSON.
    at_start = SparkConf(loadDefaults=False).setAll(_at_start(settings))
    SparkContext._ensure_initialized(
        gateway=SparkContext._gateway or launch_gateway(at_start, {"stdout": 2 if sys.stderr else DEVNULL})
    )
    given = SparkConf()
    if not given.get("spark.master") and settings.master.startswith("local"):
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")  # nothing of a local night listens to the network
    conf = {**CONF, **settings.conf} | ({} if given.get("spark.master") else {"spark.master": settings.master})
    builder = SparkSession.builder.appName("nightlist")
    for key, value in conf.items():
        if key in settings.conf or not given.contains(key):
            builder = builder.config(key, value)
    for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
        builder = builder.config(f"spark.executorEnv.{variable}", "1")
    # Else workers would import a folder `jobs` that stands where the night is started.
    builder = builder.config("spark.executorEnv.PYTHONSAFEPATH", "1")
    return builder.getOrCreate()


def _at_start(settings: SparkSettings) -> list[tuple[str, str]]:
    """What a JVM takes only while it starts. Nothing else: everybody on the machine may read its command line."""
    conf = {"spark.driver.memory": CONF["spark.driver.memory"], **settings.conf}
    return [(key, value) for key, value in conf.items() if key.startswith(("spark.driver.", "spark.jars"))]


def _let_workers_import_the_project() -> None:
    """Local workers start with PYTHONPATH only; a zip given by --py-files reaches them by itself."""
    root = Path(jobs.__file__).parents[1]
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root.is_dir() and str(root) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), *paths]))
