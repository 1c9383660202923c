"""`python -m tests.load`: one load, and one JSON object about it."""

import asyncio
import json
import selectors
from pathlib import Path
from typing import Any

import click

from tests.load.engine import Load


@click.command()
@click.option("--port", required=True, type=int)
@click.option("--users", required=True, type=int, help="Lists are asked for of u0 to u<users - 1>.")
@click.option("--seconds", default=10.0, show_default=True)
@click.option("--rate", type=float, help="Requests a second; default: as many as are answered (closed loop).")
@click.option("--connections", default=128, show_default=True)
@click.option("--timeout", default=5.0, show_default=True, help="Seconds after which an answer is given up.")
@click.option("--n", default=20, show_default=True, help="Items asked for.")
@click.option("--seed", default=7, show_default=True)
@click.option("--key", default="", help="An API key.")
@click.option("--lists", default="any", type=click.Choice(["any", "marked"]), help="marked: items are run:user:place.")
@click.option("--out", type=click.Path(path_type=Path), help="File for all answers.")
def main(out: Path | None, lists: str, **options: Any) -> None:
    """Ask for lists, and tell what came back."""
    # select() waits to the microsecond, epoll_wait() to the millisecond.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        file = out.open("w", buffering=1 << 16) if out else None
        told = runner.run(Load({**options, "marked": lists == "marked"}, file).run())
        if file:
            file.close()
    click.echo(json.dumps(told))


if __name__ == "__main__":
    main()
