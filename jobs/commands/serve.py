"""`nightlist serve`: the lookup API under granian."""

import os
from pathlib import Path

import click

from jobs.commands.options import config_option, failing
from schemas.settings import load_service_settings


@click.command()
@config_option
@click.option("--host", help="Address to listen on; default: [serve] host.")
@click.option("--port", type=click.IntRange(1, 65_535), help="Port; default: [serve] port.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default: [serve] workers.")
@click.option("--open", "is_open", is_flag=True, help="Let everybody ask who is on this machine, without a key.")
def serve(config: Path, host: str | None, port: int | None, workers: int | None, is_open: bool) -> None:
    """Start the lookup API; it needs the configuration's [store], [serve] and [auth] and nothing of Spark."""
    from lookup_api.server import serve as start

    with failing():
        if is_open:
            os.environ["NIGHTLIST_AUTH__OPEN"] = "true"  # the processes that it starts read the configuration, too
        _, settings = load_service_settings(config)
        given = {
            name: value for name, value in (("host", host), ("port", port), ("workers", workers)) if value is not None
        }
        start(config, settings.model_copy(update=given))
