"""`python -m tests.cassandra`: Cassandra to try things on."""

import shutil
import signal
import sys
import tempfile
from pathlib import Path

import click

from tests.cassandra import Cluster, Node
from tests.cassandra.jars import VERSION, fetch, java_for_cassandra
from tests.cassandra.node import SUPERUSER


@click.command()
@click.option("--port", default=9042, show_default=True, help="Port for clients.")
@click.option("--nodes", default="1", show_default=True, type=click.Choice(["1", "3"]), help="How many.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where they keep their data; default: a folder that goes with them.",
)
@click.option("--fetch", "only_fetch", is_flag=True, help="Only fetch the jars.")
def main(port: int, nodes: str, folder: Path | None, only_fetch: bool) -> None:
    """Start a Cassandra node with authentication on 127.0.0.1, or three on 127.0.0.1 to 127.0.0.3, until Ctrl-C."""
    click.echo(f"jars in {fetch()}", err=True)
    if only_fetch:
        java_for_cassandra()
        return
    kept = (folder or Path(tempfile.mkdtemp(prefix="nightlist-cassandra-"))).resolve()
    place = Node(kept, port=port) if nodes == "1" else Cluster(kept, port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        place.start()
        click.echo(
            f'Cassandra {VERSION} is up; user and password are "{SUPERUSER}". In nightlist.toml:\n\n'
            f'[store]\nbackend = "cassandra"\n\n[store.cassandra]\nport = {port}\nreplication_factor = {nodes}\n'
            f'username = "{SUPERUSER}"\npassword = "{SUPERUSER}"\n\nthen `nightlist init --store`. Ctrl-C stops it.'
        )
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        place.stop()
        if folder is None:
            shutil.rmtree(kept, ignore_errors=True)


if __name__ == "__main__":
    main()
