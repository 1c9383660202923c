"""`python -m tests.bench NAME --json` runs one benchmark and prints one JSON object last."""

import inspect
import json
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import click

import tests.bench

NAMES = sorted(module.name for module in pkgutil.iter_modules(tests.bench.__path__) if not module.name.startswith("_"))


class Benches(click.Group):
    """A command a benchmark; it is imported when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return NAMES

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return command(cmd_name) if cmd_name in NAMES else None


def command(name: str) -> click.Command:
    """The benchmark's `measure`, each of its parameters an option. Ends with 1 where a figure could not be had."""
    bench = import_module(f"tests.bench.{name}")

    def run(as_json: bool, **given: Any) -> None:
        found = bench.measure(**given)
        click.echo(json.dumps({"bench": name} | given | found, indent=None if as_json else 1))
        if None in found.values():
            raise SystemExit(1)

    as_json = click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object as the last line.")
    return click.Command(name, callback=run, params=[*options(bench), as_json], help=bench.measure.__doc__)


def options(bench: ModuleType) -> Iterator[click.Option]:
    """One a parameter: by default what the function takes by default, or else the benchmark's ROUNDS, or 5; a flag for a bool."""
    for name, parameter in inspect.signature(bench.measure).parameters.items():
        default = getattr(bench, "ROUNDS", 5) if parameter.default is parameter.empty else parameter.default
        flag = isinstance(default, bool)
        yield click.Option([f"--{name.replace('_', '-')}"], default=default, is_flag=flag, show_default=True)


@click.group(cls=Benches)
def main() -> None:
    """Benchmarks: medians of interleaved rounds, and the ratios that count."""


if __name__ == "__main__":
    main()
