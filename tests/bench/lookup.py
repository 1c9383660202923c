"""Lookups of one process: the whole HTTP application against the bare read of the store."""

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from jobs.stores import open_store
from lookup_api import create_app
from lookup_api.readers import open_reader
from schemas.lists import ServedList
from schemas.runs import RunState
from schemas.settings import load_service_settings
from tests.bench import interleaved, summary

USERS, ITEMS, READS = 2_000, 50, 500


def measure(rounds: int) -> dict[str, Any]:
    """Reads per second through WSGI (no socket) and straight from the reader, each for the same users."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "nightlist.toml"
        config.write_text('[store]\npath = "store"\n')
        publish(config)
        client = create_app(config).test_client()
        reader = open_reader(load_service_settings(config)[0])
        asked = [f"u{number}" for number in np.random.default_rng(7).integers(0, USERS, READS)]
        seconds = interleaved(
            {
                "http": lambda: [client.get(f"/v1/users/{user}/recommendations") for user in asked],
                "reader": lambda: [reader.get("20261120_00000000", "user", user) for user in asked],
            },
            rounds,
        )
        reader.close()
    rates = {name: READS / figures["median"] for name, figures in summary(seconds).items()}
    return {"ratio_to_reader": rates["http"] / rates["reader"], "per_second": rates, "seconds": summary(seconds)}


def publish(config: Path) -> None:
    """A live run of USERS lists."""
    store = open_store(load_service_settings(config)[0])
    store.prepare()
    fence = store.acquire("bench", 60).fence
    run_id, now = "20261120_00000000", datetime.now(UTC).replace(microsecond=0)
    items, sources = tuple(f"v{number:06d}" for number in range(ITEMS)), ("als",) * ITEMS
    lists = (ServedList("user", f"u{user}", items, (0.5,) * ITEMS, sources, now) for user in range(USERS))
    store.set_state(run_id, None, RunState.LOADING, fence)
    rows = store.load(run_id, lists, fence, lambda _: None)
    for old, new in ((RunState.LOADING, RunState.LOADED), (RunState.LOADED, RunState.VERIFIED)):
        store.set_state(run_id, old, new, fence, rows)
    store.flip(run_id, 0, fence)
    store.close()
