"""`nightlist serve`: the lookup API under granian."""

from pathlib import Path

import click

from jobs.commands.options import config_option, failing
from schemas.settings import load_service_settings


@click.command()
@config_option
@click.option("--host", help="Address to listen on; default: [serve] host.")
@click.option("--port", type=click.IntRange(1, 65_535), help="Port; default: [serve] port.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default: [serve] workers.")
def serve(config: Path, host: str | None, port: int | None, workers: int | None) -> None:
    """Start the lookup API; it needs the configuration's [store] and [serve] and nothing of Spark."""
    from lookup_api.server import serve as start

    with failing():
        _, settings = load_service_settings(config)
        given = {
            name: value for name, value in (("host", host), ("port", port), ("workers", workers)) if value is not None
        }
        start(config, settings.model_copy(update=given))
