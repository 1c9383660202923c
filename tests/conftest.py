"""Fixtures that every test may use. Real components only: one Spark for the whole session, a real store in a folder."""

import fcntl
import os
import shutil
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pyspark
import pytest
from hypothesis import settings as hypothesis_settings
from pyspark.sql import SparkSession

from jobs.config import SparkSettings
from jobs.spark import session
from lookup_api.service import EXTENSION
from tests import jvm
from tests.cassandra import Node, create_roles
from tests.cassandra.jars import prefetch
from tests.lookup import RUN, Api, World, night
from tests.nights import SHORT_LIVED

hypothesis_settings.register_profile("nightlist", deadline=None, derandomize=True)
hypothesis_settings.load_profile("nightlist")

ROOT = Path(__file__).parents[1]
BESIDE_FAULTS = ("stores", "protocol", "fuzz")
"""What the other process does while nodes fail under load and a service has to keep its time: none of it takes all cores."""
SLOWEST = ("faults", *BESIDE_FAULTS, "real_data", "crashes", "backfill", "cluster", "cassandra", "als_spark")
"""Files that begin first, the slowest first, so that two processes end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}.py": place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    if any("spark" in getattr(item, "fixturenames", ()) for item in items):
        jvm.prepare()
    if any({"cassandra", "cluster"} & set(getattr(item, "fixturenames", ())) for item in items):
        prefetch()


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """The one Spark session of this test process, on two cores."""
    made = session(SparkSettings(master="local[2]", conf=SHORT_LIVED))
    yield made
    made.stop()


@pytest.fixture(scope="session")
def cassandra(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The one Cassandra node of this test process, real and with authentication. A test that ends it starts it again."""
    node = Node(tmp_path_factory.mktemp("cassandra")).start()
    create_roles(node)
    yield node
    node.kill()


@pytest.fixture
def keyspace() -> str:
    """The name of a keyspace that nobody has."""
    return f"k{uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data that lie beside the project. Tests that need them skip where they are absent, but never in CI."""
    found = Path(__file__).parents[2] / "shared" / "data"
    if not found.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"CI must have the real data at {found}")
        pytest.skip(f"needs the real data sets (Online Retail, MovieTweetings) at {found}")
    return found


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheel` writes. Made anew, so that it holds today's sources."""
    copied = tmp_path_factory.mktemp("archive") / "nightlist.zip"
    with (tmp_path_factory.getbasetemp().parent / "wheel.lock").open(
        "w"
    ) as lock:  # of several test processes, one at a time
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["make", "--silent", "wheel"], cwd=ROOT, check=True, capture_output=True, timeout=300)
        shutil.copy(ROOT / "dist" / "nightlist.zip", copied)
    return copied


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has all dependencies, and not the project."""
    folder = tmp_path_factory.mktemp("stranger")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python3*/site-packages")
    (site / "dependencies.pth").write_text(f"{Path(pyspark.__file__).parents[1]}\n")
    return folder / "bin" / "python"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A store with its publisher; the services that are made over it end with the test."""
    found = World(tmp_path)
    yield found
    for app in found.apps:
        app.extensions[EXTENSION].close()


@pytest.fixture
def api(world: World) -> Api:
    """The service over one published run, which reads the pointer at the first request and then only when told."""
    world.publish(RUN, night())
    return Api(world.app())
