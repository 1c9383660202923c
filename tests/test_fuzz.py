"""Requests that nobody thought of: made from the API's own description, good ones and bad ones, sent to the real application."""

from collections import Counter
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from lookup_api import create_app
from lookup_api.service import EXTENSION
from schemas.ids import MAX_ID_BYTES
from tests.callers import bearer, make_key
from tests.lookup import NEVER, RUN, World, night

CASES = 5_000
FEW = 20
"""Cases of an operation that takes nothing: there is little to vary."""
KNOWN = {"user_id": ("u1", "é", "a b"), "item_id": ("i1", "日本語"), "segment": ("all", "country=GB")}
"""What is in the store: by chance nobody would ask for it."""

PLAIN = {"Accept-Encoding": "identity"}
"""Without a wire in between, nobody unpacks an answer."""

Counts = Counter[tuple[str, str, int]]


@pytest.fixture
def published(tmp_path: Path) -> Iterator[tuple[Flask, str]]:
    """The service over a published run, and a key that may ask everything."""
    world = World(tmp_path)
    world.publish(RUN, night())
    key = make_key(tmp_path, "lists:read", "metrics:read")
    path = tmp_path / "fuzzed.toml"
    path.write_text(f'[store]\npath = "store"\n[serve]\ndeadline_seconds = 60\nrefresh_seconds = {NEVER}\n')
    app = create_app(path, clock=world.clock)
    yield app, key
    app.extensions[EXTENSION].close()


def test_nothing_that_is_asked_breaks_the_service(published: tuple[Flask, str]) -> None:
    """In 5,000 cases, half of them against the description: no 5xx, no answer that is not described, none without the key."""
    app, key = published
    schema = schemathesis.openapi.from_wsgi("/openapi.json", app)
    operations = [found.ok() for found in schema.get_all_operations()]
    varied = [operation for operation in operations if takes_something(operation.definition.raw)]
    share = -(-CASES // (2 * len(varied)))
    counts: Counts = Counter()
    for operation in operations:
        modes = list(GenerationMode) if operation in varied else [GenerationMode.POSITIVE]
        for mode in modes:
            fuzz(operation, mode, key, share if operation in varied else FEW, counts)
    told = "\n".join(f"{count:5} {mode} {path}: {status}" for (path, mode, status), count in sorted(counts.items()))

    assert counts.total() >= CASES, told
    assert not [status for _, _, status in counts if status >= 500], told
    assert {path for path, _, status in counts if status == 200} == {operation.path for operation in operations}, told
    assert {path for path, _, status in counts if status == 400} == {operation.path for operation in varied}, told


def takes_something(described: dict[str, Any]) -> bool:
    return bool(described.get("parameters") or "requestBody" in described)


def fuzz(operation: Any, mode: GenerationMode, key: str, cases: int, counts: Counts) -> None:
    """Send cases of one operation, and hold each answer against all checks of schemathesis; counts what was sent."""
    known = {name: cycle((*values, None)) for name, values in KNOWN.items()}

    @settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        if mode is GenerationMode.POSITIVE:
            for values in filter(None, (case.query, case.path_parameters)):
                values |= {
                    name: value for name in known.keys() & values.keys() if (value := next(known[name])) is not None
                }
        excluded = [positive_data_acceptance] if too_long(case) else []
        answer = case.call_and_validate(headers=bearer(key) | PLAIN, excluded_checks=excluded)
        counts[operation.path, mode.name, answer.status_code] += 1

    send()


def too_long(case: Any) -> bool:
    """Whether an id has at most 512 characters, as described, but more bytes than an id may have: no schema can say that."""
    given = [*(case.query or {}).values(), *(case.path_parameters or {}).values()]
    texts = [text for value in given for text in (value if isinstance(value, list) else [value])]
    return any(len(str(text).encode("utf-8", "replace")) > MAX_ID_BYTES for text in texts)
