"""`nightlist rollback`: serve an earlier run again."""

from pathlib import Path

import click

from jobs.commands.options import config_option, failing, json_option, print_json
from jobs.config import load_settings
from jobs.progress import Progress
from jobs.run import RunFolder, now
from jobs.stages import publish
from jobs.stores import open_store
from lookup_api.readers import open_reader


@click.command()
@config_option
@click.option("--to", "target", metavar="RUN_ID", help="The run to go back to; default: the newest retired one.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@json_option
def rollback(config: Path, target: str | None, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Serve an earlier run again. The run that is live becomes BAD, for ever: the same input and settings won't be published again."""
    with failing():
        settings = load_settings(config)
        store, reader = open_store(settings.store), open_reader(settings.store)
        with publish.publishing(store, reader, settings.store, now) as publisher:
            chosen = publish.rollback_target(publisher, target)
            live = store.pointer()
            assert live, "rollback_target found a pointer"
            click.echo(f"serve {chosen} again, instead of {live.run_id}, which becomes BAD for ever", err=True)
            if dry_run or not (yes or click.confirm("go on?", err=True)):
                raise SystemExit(0 if dry_run else 1)
            folder = RunFolder(settings.paths.runs / live.run_id, "", Progress())
            release = publish.rollback(publisher, chosen, folder)
        done = {"run_id": release.run_id, "sequence": release.sequence, "bad": live.run_id}
        print_json(done) if as_json else click.echo(f"live: {release.run_id} (sequence {release.sequence})")
