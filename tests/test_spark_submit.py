"""`spark-submit jobs/nightly.py` does the same as `nightlist nightly`, on machines that don't have the project."""

import zipfile

import pytest

from jobs.config import SparkSettings
from jobs.run import RunFolder
from jobs.spark import _at_start
from tests.nights import DAY, checkerboard, place, read_json_line
from tests.spark_submit import ROOT, run, submit


def test_the_archive_holds_jobs_lookup_api_and_schemas(archive):
    """All sources and the DDL are in it, and no tests."""
    inside = set(zipfile.ZipFile(archive).namelist())

    assert {
        "jobs/nightly.py",
        "lookup_api/readers/sqlite.py",
        "schemas/runs.py",
        "schemas/sqlite.sql",
        "schemas/cassandra.cql",
    } <= inside
    assert {name.split("/")[0] for name in inside if ".dist-info" not in name} == {"jobs", "lookup_api", "schemas"}


def test_the_stranger_does_not_have_the_project(stranger, tmp_path):
    """Else the next test would prove nothing."""
    assert run([stranger, "-c", "import jobs"], tmp_path).code != 0
    assert run([stranger, "-c", "import pyspark, implicit, pyarrow"], tmp_path).code == 0


def test_spark_submit_does_the_same_as_the_command(archive, stranger, tmp_path, spark):
    """From another folder, which has a package `jobs` of its own, with the archive alone: the same run_id, equal lists, the JSON line
    last, exit code 0."""
    by_command = place(tmp_path / "command", checkerboard())
    expected = by_command.night()
    submitted = place(tmp_path / "submitted", checkerboard())
    submitted.settings()
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "jobs").mkdir(parents=True)
    (elsewhere / "jobs" / "__init__.py").write_text("raise RuntimeError('not ours')")

    conf = {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1"}
    script = ["jobs/nightly.py", "--config", submitted.config, "--date", DAY, "--json"]
    done = submit(elsewhere, "local[2]", archive, stranger, script, conf)

    assert done.code == 0, done.stderr[-3000:]
    line = read_json_line(done.stdout)
    assert (line["run_id"], line["state"]) == (expected.run.run_id, "LIVE")
    run_folder = RunFolder(submitted.settings().paths.runs / line["run_id"], "", expected.run.progress)
    assert run_folder.counts("build")["lists_checksum"] == expected.run.counts("build")["lists_checksum"]


def test_spark_starts_with_the_memory_that_the_configuration_names(spark):
    """It can't be changed later; without it, the JVM has 1 GB."""
    assert spark._jvm.Runtime.getRuntime().maxMemory() == pytest.approx(2 * 2**30, rel=0.1)


def test_secrets_are_not_on_the_command_line():
    """Packages are, which a running JVM does not load any more."""
    conf = {"spark.hadoop.fs.s3a.secret.key": "swordfish", "spark.jars.packages": "a:b:1"}

    assert _at_start(SparkSettings(conf=conf)) == [("spark.driver.memory", "4g"), ("spark.jars.packages", "a:b:1")]


def test_spark_submit_ends_with_the_documented_exit_code(archive, stranger, tmp_path):
    """A wrong configuration is 2 under spark-submit too, before any Spark job."""
    (tmp_path / "nightlist.toml").write_text("[als]\nfactrs = 3\n")
    script = [str(ROOT / "jobs" / "nightly.py"), "--config", "nightlist.toml", "--date", "2026-11-20"]

    done = run([stranger, *script], tmp_path, PYTHONPATH=str(archive))

    assert (done.code, "did you mean factors?" in done.stderr) == (2, True)
