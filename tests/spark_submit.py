"""spark-submit as tests call it: from elsewhere, with an interpreter that does not have the project."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyspark

from tests.commands import ROOT, Ended

BIN = Path(pyspark.__file__).parent / "bin"


def bare_environment(**given: str) -> dict[str, str]:
    """This process's environment without what would lead Spark's processes to the project."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "SPARK", "PYSPARK"))
    }
    return kept | given


def run(command: Sequence[object], folder: Path, **environment: str) -> Ended:
    """A command from that folder, in a bare environment."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=bare_environment(**environment),
        capture_output=True,
        text=True,
        timeout=900,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def submit(
    folder: Path,
    master: str,
    archive: Path | None,
    interpreter: Path,
    script: Sequence[object],
    conf: Mapping[str, str],
    **environment: str,
) -> Ended:
    """`spark-submit --master MASTER --py-files ARCHIVE script...` for a script of the project, with this interpreter."""
    options = [word for key, value in conf.items() for word in ("--conf", f"{key}={value}")]
    shipped = ["--py-files", archive] if archive else []
    command = [BIN / "spark-submit", "--master", master, *options, *shipped, ROOT / str(script[0]), *script[1:]]
    pythons = {"PYSPARK_PYTHON": str(interpreter), "PYSPARK_DRIVER_PYTHON": str(interpreter)}
    return run(command, folder, **(pythons | environment))
