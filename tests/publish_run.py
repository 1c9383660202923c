"""Publish a run whose lists are built: `python -m tests.publish_run CONFIG RUN_ID`; it ends with a night's exit codes.

A process of its own, so that a test may kill it, or start two of them.
"""

import sys
from contextlib import closing
from pathlib import Path

from jobs.commands.options import failing
from jobs.config import load_settings
from jobs.lists import BuiltLists
from jobs.progress import Progress
from jobs.run import RunFolder, now
from jobs.stages.publish import publish, publishing
from jobs.stores import open_store
from lookup_api.readers import open_reader


def main(config: Path, run_id: str) -> None:
    settings = load_settings(config)
    run = RunFolder(settings.paths.runs / run_id, "digest", Progress())
    with (
        closing(open_store(settings.store)) as store,
        closing(open_reader(settings.store)) as reader,
        publishing(store, reader, settings.store, now) as publisher,
    ):
        publish(publisher, run, BuiltLists(run.folder / "build"), Progress())


if __name__ == "__main__":
    with failing():
        main(Path(sys.argv[1]), sys.argv[2])
