"""A Spark standalone cluster of two workers, whose machines have Python's packages but not the project, into Cassandra."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cassandra import Node
from tests.commands import all_served, free_port, nightlist
from tests.nights import DAY, Place, built, checkerboard, place, read_json_line
from tests.spark_submit import BIN, Ended, bare_environment, submit

START_SECONDS = 180
PARTS = 16
QUICK: dict[str, dict[str, Any]] = {
    "dataset": {"parts": PARTS},
    "retrieve": {"models": ["als", "als_spark"]},
    "als_spark": {"factors": 8, "iterations": 3},
    "holdout": {"users": 0},
}
"""Both implementations of ALS, trained once, and enough buckets to be killed between two of them."""
TOO_LITTLE = {"spark.executor.pyspark.memory": "256m", "spark.task.maxFailures": "1"}
"""A limit that the kernel holds the Python workers to, and one try."""
PRETENDS = """
import sys
class Version(tuple):
    major, minor, micro, releaselevel, serial = 3, 10, 0, "final", 0
sys.version_info = Version((3, 10, 0, "final", 0))
"""


@dataclass(frozen=True)
class Cluster:
    """A master with two workers of one core each."""

    address: str
    folder: Path

    def executors(self) -> int:
        """How many were started so far: each has a folder of its own."""
        return len(list(self.folder.glob("worker*/app-*/*/stderr")))

    def kill_executor(self) -> None:
        """SIGKILL, to one that is at work."""
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended, or is somebody else's
                ours = (process / "cwd").readlink().is_relative_to(self.folder)
                if ours and b"CoarseGrainedExecutorBackend" in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
                    return
        raise AssertionError(f"no executor is at work in {self.folder}")


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory, stranger: Path) -> Iterator[Cluster]:
    folder, port, web = tmp_path_factory.mktemp("cluster"), free_port(), free_port()
    address = f"spark://127.0.0.1:{port}"
    commands = {"master": ["Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", str(web)]}
    for number in (1, 2):
        ours = ["--host", "127.0.0.1", "--webui-port", str(free_port()), "--work-dir", str(folder / f"worker{number}")]
        commands[f"worker{number}"] = ["Worker", *ours, "--cores", "1", "--memory", "1g", address]
    processes = []
    for name, (role, *arguments) in commands.items():
        command = [str(BIN / "spark-class"), f"org.apache.spark.deploy.{role.lower()}.{role}", *arguments]
        with (folder / f"{name}.log").open("wb") as log:
            environment = bare_environment(
                PYSPARK_PYTHON=str(stranger), SPARK_DAEMON_MEMORY="256m", SPARK_LOCAL_IP="127.0.0.1"
            )
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder))
    _wait(folder / "master.log", "Registering worker", 2)
    yield Cluster(address, folder)
    for process in processes:
        process.terminate()
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)


def _wait(log: Path, words: str, times: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while log.read_text().count(words) < times:
        assert time.monotonic() < deadline, f"Spark's cluster did not start: {log.read_text()[-2000:]}"
        time.sleep(0.2)


@pytest.fixture
def there(tmp_path: Path, cassandra: Node, keyspace: str) -> Place:
    found = place(
        tmp_path / "place",
        checkerboard(),
        store=cassandra.section(keyspace),
        **QUICK,
    )
    found.settings()
    assert nightlist("init", "--store", "--config", found.config).code == 0
    return found


def submitted(
    there: Place,
    master: Cluster,
    archive: Path | None,
    stranger: Path,
    *command: object,
    conf: Mapping[str, str] | None = None,
    **environment: str,
) -> Ended:
    """The command on the cluster, from a folder that knows nothing."""
    there.settings()
    elsewhere = there.folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    ours = {"spark.executor.memory": "512m", "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
    return submit(elsewhere, master.address, archive, stranger, command, ours | dict(conf or {}), **environment)


def test_a_night_on_a_cluster_is_the_night_of_one_machine(
    there: Place, master: Cluster, archive: Path, stranger: Path, tmp_path: Path, spark: Any
) -> None:
    """Two executors that have only the archive make, load and publish the run that this process makes alone: the same
    run_id and lists, MLlib's ALS among their models; and Cassandra holds what the Parquet holds. Nor does it matter that a
    first start ended for want of memory, saying so, or that one of the executors is killed while it scores."""
    script = ["jobs/nightly.py", "--config", there.config, "--date", DAY, "--json"]
    starved = submitted(there, master, archive, stranger, *script, conf=TOO_LITTLE)
    before, runs = master.executors(), there.settings().paths.runs
    with ThreadPoolExecutor(1) as pool:
        scored = pool.submit(kill_while_scoring, runs, master)
        done = submitted(there, master, archive, stranger, *script)
    assert done.code == 0, done.stderr[-3000:]
    line = read_json_line(done.stdout)
    alone = place(tmp_path / "alone", checkerboard(), **QUICK)
    report = alone.night()

    error = read_json_line(starved.stdout)["error"]
    assert starved.code == 1
    assert error.startswith("stage retrieve")
    assert "a Python worker" in error
    assert "spark.executor.pyspark.memory" in error
    assert 0 < scored.result() < PARTS
    assert (line["run_id"], line["state"]) == (alone.run(report).run_id, "LIVE")
    assert line["run_id"] == there.live()
    made = {key: (served.items, served.scores, served.sources) for key, served in all_served(there).items()}
    assert made == {
        key: (served.items, served.scores, served.sources) for key, served in built(alone.run(report)).items()
    }
    assert master.executors() == before + 3


def kill_while_scoring(runs: Path, master: Cluster) -> int:
    """Kill an executor when the first buckets are scored; returns how many they are."""
    deadline = time.monotonic() + 4 * START_SECONDS
    while not (scored := len(list(runs.glob("*/retrieve/bucket-*.json")))):
        assert time.monotonic() < deadline, "no bucket was scored"
        time.sleep(0.002)
    master.kill_executor()
    return scored


def test_the_doctor_finds_a_cluster_ready(there: Place, master: Cluster, archive: Path, stranger: Path) -> None:
    """With the archive, all is well; without it, workers do not find the project, and the way out is named."""
    doctor = ["jobs/cli.py", "doctor", "--config", there.config, "--json"]
    ready = submitted(there, master, archive, stranger, *doctor)
    assert (ready.code, read_json_line(ready.stdout)["ok"]) == (0, True), ready.stdout

    alone = submitted(there, master, None, stranger, *doctor, PYTHONPATH=str(archive))

    found = read_json_line(alone.stdout)["checks"]["spark"]
    assert (alone.code, found["ok"]) == (1, False)
    assert "make wheel" in found["found"]
    assert "--py-files dist/nightlist.zip" in found["found"]


def test_the_doctor_sees_that_workers_run_another_python(
    there: Place, master: Cluster, archive: Path, stranger: Path, older: Path
) -> None:
    """Both versions are named, and the variable to set."""
    doctor = ["jobs/cli.py", "doctor", "--config", there.config, "--json"]
    done = submitted(there, master, archive, stranger, *doctor, PYSPARK_PYTHON=str(older))

    found = read_json_line(done.stdout)["checks"]["spark"]
    assert (done.code, found["ok"]) == (1, False)
    assert "workers run Python 3.10, this is 3." in found["found"]
    assert "PYSPARK_PYTHON" in found["found"]


@pytest.fixture
def older(tmp_path: Path, stranger: Path) -> Path:
    """The same interpreter, saying that it is Python 3.10."""
    pretends = tmp_path / "pretends"
    pretends.mkdir()
    (pretends / "sitecustomize.py").write_text(PRETENDS)
    script = tmp_path / "python3.10"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={pretends}:$PYTHONPATH exec {stranger} "$@"\n')
    script.chmod(0o755)
    return script
