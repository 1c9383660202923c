"""A night that is larger than any other test's: the bench of nights, on 20,000 users."""

import json
import subprocess
import sys

from tests.commands import ROOT

USERS = 20_000


def test_a_night_of_twenty_thousand_users_ends_live_and_within_its_memory() -> None:
    """Every stage is told with its seconds, Spark and Python take a quarter of 16 GB together, and taste beats popularity."""
    command = [sys.executable, "-m", "tests.bench", "night", "--users", USERS, "--items", 10_000, "--json"]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=900)
    found = json.loads(done.stdout.splitlines()[-1])

    assert found["state"] == "LIVE"
    assert set(found["seconds"]) >= {
        "events",
        "dataset",
        "train",
        "retrieve",
        "rank",
        "rerank",
        "build",
        "gate",
        "publish",
    }
    assert 0.5 < found["peak_gib"] < 4.5
    assert found["metrics"]["holdout"]["ndcg@20"] > 1.5 * found["metrics"]["holdout"]["popular_ndcg@20"]
