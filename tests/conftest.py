"""Fixtures that every test may use. Real components only: one Spark for the whole session, a real store in a folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from pyspark.sql import SparkSession

from jobs.config import SparkSettings
from jobs.spark import session
from tests.nights import SHORT_LIVED

hypothesis_settings.register_profile("nightlist", deadline=None, derandomize=True)
hypothesis_settings.load_profile("nightlist")

SLOWEST = ("test_real_data.py", "test_crashes.py")
"""Files that begin first, so that two processes end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in SLOWEST)


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """The one Spark session of this test process, on two cores."""
    made = session(SparkSettings(master="local[2]", conf=SHORT_LIVED))
    yield made
    made.stop()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data that lie beside the project. Tests that need them skip where they are absent, but never in CI."""
    found = Path(__file__).parents[2] / "shared" / "data"
    if not found.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"CI must have the real data at {found}")
        pytest.skip(f"needs the real data sets (Online Retail, MovieTweetings) at {found}")
    return found
