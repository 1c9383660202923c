"""`spark-submit jobs/nightly.py` does the same as `nightlist nightly`, on machines that don't have the project."""

import os
import subprocess
import venv
import zipfile
from pathlib import Path

import pyspark
import pytest

from jobs.run import RunFolder
from tests.nights import DAY, checkerboard, place, read_json_line

ROOT = Path(__file__).parents[1]
ARCHIVE = ROOT / "dist" / "nightlist.zip"


@pytest.fixture(scope="module")
def archive() -> Path:
    """What `make wheel` writes. Made anew, so that it holds today's sources."""
    subprocess.run(["make", "--silent", "wheel"], cwd=ROOT, check=True, capture_output=True, timeout=300)
    return ARCHIVE


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> Path:
    """An interpreter that has all dependencies, and not the project."""
    folder = tmp_path_factory.mktemp("stranger")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python3*/site-packages")
    dependencies = Path(pyspark.__file__).parents[1]
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    return folder / "bin" / "python"


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "SPARK", "PYSPARK"))
    }
    return subprocess.run(command, cwd=folder, env=kept | environment, capture_output=True, text=True, timeout=300)


def test_the_archive_holds_jobs_lookup_api_and_schemas(archive):
    """All sources and the DDL are in it, and no tests."""
    inside = set(zipfile.ZipFile(archive).namelist())

    assert {"jobs/nightly.py", "lookup_api/readers/sqlite.py", "schemas/runs.py", "schemas/sqlite.sql"} <= inside
    assert {name.split("/")[0] for name in inside if ".dist-info" not in name} == {"jobs", "lookup_api", "schemas"}


def test_the_stranger_does_not_have_the_project(stranger, tmp_path):
    """Else the next test would prove nothing."""
    assert run([str(stranger), "-c", "import jobs"], tmp_path).returncode != 0
    assert run([str(stranger), "-c", "import pyspark, implicit, pyarrow"], tmp_path).returncode == 0


def test_spark_submit_does_the_same_as_the_command(archive, stranger, tmp_path, spark):
    """From another folder, with the archive alone: the same run_id, equal lists, the JSON line last, exit code 0."""
    by_command = place(tmp_path / "command", checkerboard())
    expected = by_command.night()
    submitted = place(tmp_path / "submitted", checkerboard())
    submitted.settings()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    done = run(
        [
            str(Path(pyspark.__file__).parent / "bin" / "spark-submit"),
            *(
                "--master",
                "local[2]",
                "--conf",
                "spark.driver.bindAddress=127.0.0.1",
                "--conf",
                "spark.driver.host=127.0.0.1",
            ),
            *("--py-files", str(archive), str(ROOT / "jobs" / "nightly.py")),
            *("--config", str(submitted.config), "--date", DAY.isoformat(), "--json"),
        ],
        elsewhere,
        PYSPARK_PYTHON=str(stranger),
        PYSPARK_DRIVER_PYTHON=str(stranger),
    )

    assert done.returncode == 0, done.stderr[-3000:]
    line = read_json_line(done.stdout)
    assert (line["run_id"], line["state"]) == (expected.run.run_id, "LIVE")
    run_folder = RunFolder(submitted.settings().paths.runs / line["run_id"], "", expected.run.progress)
    assert run_folder.counts("build")["lists_checksum"] == expected.run.counts("build")["lists_checksum"]


def test_spark_submit_ends_with_the_documented_exit_code(archive, stranger, tmp_path):
    """A wrong configuration is 2 under spark-submit too, before any Spark job."""
    (tmp_path / "nightlist.toml").write_text("[als]\nfactrs = 3\n")
    script = [str(ROOT / "jobs" / "nightly.py"), "--config", "nightlist.toml", "--date", "2026-11-20"]

    done = run([str(stranger), *script], tmp_path, PYTHONPATH=str(archive))

    assert (done.returncode, "did you mean factors?" in done.stderr) == (2, True)
