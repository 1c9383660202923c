"""`python -m tests.bench NAME --json` runs one benchmark and prints one JSON object last."""

import json
import pkgutil
from importlib import import_module

import click

import tests.bench

NAMES = sorted(module.name for module in pkgutil.iter_modules(tests.bench.__path__) if not module.name.startswith("_"))


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def main(name: str, rounds: int, as_json: bool) -> None:
    """Run one benchmark: medians of interleaved rounds, and the ratios that count."""
    found = import_module(f"tests.bench.{name}").measure(rounds)
    click.echo(json.dumps({"bench": name, "rounds": rounds} | found, indent=None if as_json else 1))


if __name__ == "__main__":
    main()
