"""What the driver alone reads: `python -m tests.bench._raw CONFIG TABLE LISTS SECONDS`, one process with 16 threads.

The same prepared statement as the service's reader, of one replica, by `execute`, as everybody uses the driver (the service's
reader goes a shorter way); the driver decodes all columns into tuples, and nothing is made of them.
"""

import json
import random
import sys
import time
from pathlib import Path
from threading import Thread

from lookup_api.readers._cassandra import ONE, Connection
from lookup_api.readers.cassandra import LISTS
from schemas.settings import CassandraSettings, load_service_settings

THREADS = 16
WARM_UP_SECONDS = 1.0


def main(settings: CassandraSettings, table: str, lists: int, seconds: float) -> float:
    """Reads a second."""
    connection = Connection(settings)
    session = connection.session()
    statement = connection.prepared(f"{LISTS} {settings.keyspace}.{table} WHERE kind = ? AND key = ?")
    start = time.monotonic() + WARM_UP_SECONDS
    done = [0] * THREADS

    def read(thread: int) -> None:
        rng = random.Random(thread)
        while (now := time.monotonic()) < start + seconds:
            row = session.execute(statement, ("user", f"u{rng.randrange(lists)}"), execution_profile=ONE).one()
            assert row
            done[thread] += now >= start

    threads = [Thread(target=read, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    connection.close()
    return sum(done) / seconds


if __name__ == "__main__":
    config, table, lists, seconds = sys.argv[1:]
    settings = load_service_settings(Path(config))[0].cassandra
    print(json.dumps(main(settings, table, int(lists), float(seconds))))
