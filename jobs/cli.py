"""The `nightlist` command. Each subcommand's file is imported when it is called: `nightlist --help` starts no Spark.

On a cluster: `spark-submit --py-files dist/nightlist.zip jobs/cli.py COMMAND ...`.
"""

import sys
from importlib import import_module
from pathlib import Path

if __name__ == "__main__":  # a script's own folder comes first on the path, and jobs/ holds names that others use too
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import click

from jobs.commands.options import failing

COMMANDS = {
    "demo": ("jobs.commands.demo", "Run a whole night over a small made-up world and show its lists."),
    "init": ("jobs.commands.init", "Write a commented nightlist.toml."),
    "validate": ("jobs.commands.validate", "Check configuration and input before any long job."),
    "nightly": ("jobs.nightly", "Make one night's lists and publish them."),
    "backfill": ("jobs.backfill", "Rebuild the runs of past days."),
    "runs": ("jobs.commands.runs", "Show the runs: states, ages, rows and sizes."),
    "rollback": ("jobs.commands.rollback", "Serve an earlier run again, and mark the live one BAD."),
    "evaluate": ("jobs.commands.evaluate", "Measure models on a train and a test file."),
    "tune": ("jobs.commands.tune", "Find good settings for the models and their blend."),
    "serve": ("jobs.commands.serve", "Start the lookup API."),
    "keys": ("jobs.commands.keys", "Make, show and revoke API keys of the lookup API."),
    "doctor": ("jobs.commands.doctor", "Check Python, Java, Spark, the store and permissions."),
}
"""Subcommand: (module, one line of help). The module holds a click command of the subcommand's name."""


class LazyGroup(click.Group):
    """A group whose commands are looked up in COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which one meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command, imported now."""
        if name not in COMMANDS:
            return None
        found: click.Command = getattr(import_module(COMMANDS[name][0]), name)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line a command, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in COMMANDS.items()])


@click.group(cls=LazyGroup)
@click.version_option(package_name="nightlist")
def cli() -> None:
    """Nightlist: recommendation lists made at night, published like a release, handed out by day.

    Start with `nightlist demo`, or `nightlist init` for your own data.
    """


def main() -> None:
    """The console script: errors of ours end with one line and their exit code."""
    with failing():
        cli()


if __name__ == "__main__":
    main()
