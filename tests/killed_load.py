"""Publishes a built run, as often as it is let: `python -m tests.killed_load CONFIG FOLDER`, to be killed on the way."""

import sys
from contextlib import closing
from pathlib import Path

from jobs.lists import BuiltLists
from jobs.progress import Progress
from jobs.run import RunFolder, now
from jobs.stages.publish import publish, publishing
from jobs.stores import open_store
from lookup_api.readers import open_reader
from schemas.runs import Release
from schemas.settings import load_service_settings


def publish_run(config: Path, folder: Path) -> Release:
    """The run in `folder`, without Spark."""
    settings, _ = load_service_settings(config)
    run = RunFolder(folder, "digest", Progress())
    with (
        closing(open_store(settings)) as store,
        closing(open_reader(settings)) as reader,
        publishing(store, reader, settings, now) as publisher,
    ):
        return publish(publisher, run, BuiltLists(folder / "build"), Progress())


if __name__ == "__main__":
    publish_run(*map(Path, sys.argv[1:]))
