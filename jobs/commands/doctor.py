"""`nightlist doctor`: is this machine ready for a night?"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console

from jobs.commands.options import config_option, failing, json_option, print_json
from jobs.config import RootSettings, load_settings
from jobs.spark import java, session
from lookup_api.readers import open_reader
from schemas.errors import NightlistError

Check = Callable[[RootSettings], str]
"""Says what it found; raises NightlistError, whose message says what to do."""

JAVA_NEEDED = 17
PYTHON_NEEDED = (3, 11)


def check_python(settings: RootSettings) -> str:
    """The interpreter, and that Spark's workers use the same version."""
    version = platform.python_version()
    if sys.version_info < PYTHON_NEEDED:
        raise NightlistError(f"Python {version}: Nightlist needs 3.11 or newer")
    worker = os.environ.get("PYSPARK_PYTHON", sys.executable)
    asked = subprocess.run(
        [worker, "-c", "import platform; print(platform.python_version())"], capture_output=True, text=True
    )
    if asked.returncode or asked.stdout.strip().split(".")[:2] != version.split(".")[:2]:
        found = asked.stdout.strip() or asked.stderr.strip() or "nothing"
        raise NightlistError(
            f"workers run {worker} ({found}), this is Python {version}: set PYSPARK_PYTHON to {sys.executable}"
        )
    return f"{version}, workers too"


def check_java(settings: RootSettings) -> str:
    """Java 17 or newer."""
    asked = subprocess.run([java(), "-version"], capture_output=True, text=True)
    line = (asked.stderr or asked.stdout).splitlines()[0] if asked.stderr or asked.stdout else ""
    version = re.search(r'"(\d+)', line)
    if not version or int(version[1]) < JAVA_NEEDED:
        raise NightlistError(
            f"{java()} says {line!r}: Spark needs Java {JAVA_NEEDED} or newer; install it or set JAVA_HOME"
        )
    return line


def check_spark(settings: RootSettings) -> str:
    """A session starts and a worker answers."""
    spark = session(settings.spark)
    if spark.sparkContext.parallelize([1, 2], 2).map(abs).sum() != 3:
        raise NightlistError("Spark's workers do not answer as they should")
    return f"{spark.version} at {spark.sparkContext.master}"


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
        outcomes = examine(load_settings(config if config.exists() else None))
        if as_json:
            print_json({"ok": all(outcome["ok"] for outcome in outcomes.values()), "checks": outcomes})
        else:
            console = Console(highlight=False)
            for name, outcome in outcomes.items():
                mark = "[green]ok[/green]  " if outcome["ok"] else "[red]FAIL[/red]"
                console.print(f"{mark}  {name:<12} ", end="")
                console.print(str(outcome["found"]), markup=False, soft_wrap=True)
        raise SystemExit(0 if all(outcome["ok"] for outcome in outcomes.values()) else 1)
