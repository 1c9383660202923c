"""`nightlist doctor`: is this machine ready for a night?"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import click
from click.core import ParameterSource
from rich.console import Console

from jobs.commands.options import config_option, failing, json_option, print_json
from jobs.config import RootSettings, load_settings, sections
from jobs.inputs import first_line
from jobs.run import now
from jobs.spark import java, session
from jobs.stores import open_store
from lookup_api.readers import open_reader
from schemas.errors import NightlistError

CLOCKS_APART = 5.0
"""Seconds by which machines' clocks may differ; leases and grace are counted by them."""

Check = Callable[[RootSettings], str]
"""Says what it found; raises NightlistError, whose message says what to do."""

NEEDED = ("numpy", "scipy", "numba", "pyarrow", "implicit", "threadpoolctl", "pydantic_settings")
"""What the work on a bucket imports."""
WORKER_PYTHON = "PYSPARK_PYTHON (or spark.pyspark.python)"
JAVA_NEEDED = 17
PYTHON_NEEDED = (3, 11)


def check_python(settings: RootSettings) -> str:
    """The interpreter, and that Spark's workers use the same version."""
    version = platform.python_version()
    if sys.version_info < PYTHON_NEEDED:
        raise NightlistError(f"Python {version}: Nightlist needs 3.11 or newer")
    worker = os.environ.get("PYSPARK_PYTHON", sys.executable)
    found = _version_of(worker)
    if found.split(".")[:2] != version.split(".")[:2]:
        raise NightlistError(
            f"workers run {worker} ({found}), this is Python {version}: set PYSPARK_PYTHON to {sys.executable}, or to one "
            "of the same version"
        )
    return f"{version}, workers too"


def _version_of(interpreter: str) -> str:
    """Its version, or what kept it from telling."""
    question = "import platform; print(platform.python_version())"
    try:
        asked = subprocess.run([interpreter, "-c", question], capture_output=True, text=True)
    except OSError as error:
        return error.strerror or str(error)
    return asked.stdout.strip() or asked.stderr.strip() or "no answer"


def check_java(settings: RootSettings) -> str:
    """Java 17 or newer."""
    version, line = java_version(java())
    if version < JAVA_NEEDED:
        raise NightlistError(
            f"{java()} says {line!r}: Spark needs Java {JAVA_NEEDED} or newer; install it or set JAVA_HOME"
        )
    return line


def java_version(java: str) -> tuple[int, str]:
    """The major version, 0 where it does not tell, and the line in which it tells."""
    asked = subprocess.run([java, "-version"], capture_output=True, text=True)
    line = (asked.stderr or asked.stdout).partition("\n")[0]
    version = re.search(r'"(\d+)', line)
    return int(version[1]) if version else 0, line


def check_spark(settings: RootSettings) -> str:
    """A session starts, and on every worker that answers there are Python, the project and what it needs."""
    context = session(settings.spark).sparkContext
    indexed = any(getattr(sections(settings)[name], "index", "") for name in settings.retrieve.models)
    needed = (
        *NEEDED,
        *(["cassandra"] if settings.store.backend == "cassandra" else []),
        *(["faiss"] if indexed else []),
    )
    try:
        lacking = context.parallelize(range(2 * context.defaultParallelism)).map(partial(_lacks, needed)).collect()
    except Exception as error:
        raise NightlistError(_of_workers(str(error), first_line(error))) from None
    if missing := sorted({name for names in lacking for name in names}):
        raise NightlistError(_lacking(", ".join(missing)))
    return f"{context.version} at {context.master}, and workers have all they need"


def _lacks(needed: tuple[str, ...], _: int) -> list[str]:
    """On a worker: the packages that it can't find."""
    return [name for name in needed if find_spec(name) is None]


def _lacking(packages: str) -> str:
    return f"workers lack {packages}: install what nightlist[jobs,cassandra] depends on into the Python that {WORKER_PYTHON} names"


def _of_workers(said: str, summary: str) -> str:
    """What keeps workers from working, in words."""
    if versions := re.search(r"different version.*?(\d+[., ]+\d+).*?than.*?(\d+[., ]+\d+)", said, re.DOTALL):
        worker, driver = (".".join(re.findall(r"\d+", version)) for version in versions.groups())
        return f"workers run Python {worker}, this is {driver}: give them one of the same version, by {WORKER_PYTHON}"
    if program := re.search(r'Cannot run program "([^"]+)"', said):
        return f"workers have no {program[1]}: set {WORKER_PYTHON} to a Python that is on their machines"
    if re.search(r"No module named '(jobs|schemas|lookup_api)'", said):
        return "workers do not find the project: `make wheel`, then spark-submit --py-files dist/nightlist.zip"
    if package := re.search(r"No module named '(\w+)", said):
        return _lacking(package[1])
    return f"workers do not answer as they should: {summary}"


def check_store(settings: RootSettings) -> str:
    """The store can be read."""
    reader = open_reader(settings.store)
    try:
        release = reader.release()
    finally:
        reader.close()
    return (
        f"{settings.store.backend}, live: {release.run_id}"
        if release
        else f"{settings.store.backend}, nothing published yet"
    )


def check_clock(settings: RootSettings) -> str:
    """This machine's clock is not behind those of the machines that published; one that is ahead shows on the others."""
    store = open_store(settings.store)
    try:
        pointer, held, at = store.pointer(), store.holder(), now()
        times = [record.changed_at for record in store.runs()]
    finally:
        store.close()
    times += [pointer.published_at] if pointer else []
    times += [held.expires_at - timedelta(seconds=settings.store.lease_seconds)] if held else []
    ahead = max(((time - at).total_seconds() for time in times), default=0.0)
    if ahead > CLOCKS_APART:
        raise NightlistError(
            f"the store holds a time {ahead:.0f} s from now: this machine's clock is behind, or one that published was ahead; "
            "compare `date -u` on all machines that publish, and keep them by NTP"
        )
    return f"{at:%Y-%m-%d %H:%M:%S} UTC, nothing in the store is later"


def check_permissions(settings: RootSettings) -> str:
    """Folders that a night writes to can be written to."""
    folders = [settings.paths.runs, *([settings.store.path] if settings.store.backend == "sqlite" else [])]
    for folder in folders:
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            raise NightlistError(
                f"{folder} can't be written to: {error.strerror}; change its owner or [paths] and [store]"
            ) from None
    free = shutil.disk_usage(there).free / 1e9
    return f"{', '.join(map(str, folders))} ({free:.0f} GB free)"


CHECKS: dict[str, Check] = {
    "python": check_python,
    "java": check_java,
    "spark": check_spark,
    "store": check_store,
    "clock": check_clock,
    "permissions": check_permissions,
}


def examine(settings: RootSettings) -> dict[str, dict[str, object]]:
    """Every check's outcome: {ok, found}."""
    outcomes = {}
    for name, check in CHECKS.items():
        try:
            outcomes[name] = {"ok": True, "found": check(settings)}
        except NightlistError as error:
            outcomes[name] = {"ok": False, "found": str(error)}
        except Exception as error:
            outcomes[name] = {"ok": False, "found": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    return outcomes


@click.command()
@config_option
@json_option
def doctor(config: Path, as_json: bool) -> None:
    """Check Python, Java, Spark, the store and permissions. Exit code 1 when one of them is not as it should be."""
    with failing():
        named = click.get_current_context().get_parameter_source("config") is not ParameterSource.DEFAULT
        outcomes = examine(load_settings(config if named or config.exists() else None))
        if as_json:
            print_json({"ok": all(outcome["ok"] for outcome in outcomes.values()), "checks": outcomes})
        else:
            console = Console(highlight=False)
            for name, outcome in outcomes.items():
                mark = "[green]ok[/green]  " if outcome["ok"] else "[red]FAIL[/red]"
                console.print(f"{mark}  {name:<12} ", end="")
                console.print(str(outcome["found"]), markup=False, soft_wrap=True)
        raise SystemExit(0 if all(outcome["ok"] for outcome in outcomes.values()) else 1)
