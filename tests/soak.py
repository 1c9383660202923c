"""Half an hour of random faults: `make soak`, or `python -m tests.soak --minutes 30 --seed 7`.

What tests/test_faults.py does in an order, here in a random one; the seed that is logged makes the same faults, not the
same moments. One node is harmed at a time. Progress on stderr, one JSON object with all figures on stdout; ends with 1 where
a promise was not kept.
"""

import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tests.cassandra import Cluster
from tests.under_fire import Site
from tests.verdict import WINDOW, check, judge, table

SHARE = 0.25
CALM = (5.0, 60.0)
"""Seconds from one fault's end to the next one, so that some time lies outside of all windows."""
PAUSE = (2.0, 15.0)
"""Seconds between what is no fault."""


class Soak:
    """Draws what happens next."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site, self.random = site, random.Random(seed)
        self.acts: dict[Callable[[], None], int] = {
            self.kill_and_restart: 2,
            self.freeze: 2,
            site.publish_after_a_killed_load: 1,
            site.publish: 4,
            site.publish_beside_another: 2,
            self.roll_back: 2,
        }

    def act(self) -> None:
        """One thing, and a pause."""
        (drawn,) = self.random.choices(list(self.acts), list(self.acts.values()))
        before = len(self.site.happenings)
        drawn()
        since = self.site.happenings[before:]
        pause = CALM if any(happening.fault for happening in since) else PAUSE
        time.sleep(self.random.uniform(*pause))

    def kill_and_restart(self) -> None:
        """A node is away for a while; a run may be published meanwhile."""
        node = self.random.choice(self.site.cluster.nodes)
        self.site.kill(node)
        if self.random.random() < 0.5:
            self.site.publish()
        time.sleep(self.random.uniform(0, 2 * WINDOW))
        self.site.restart(node)

    def freeze(self) -> None:
        """A node stands still for a while; a run may be published meanwhile."""
        node, seconds = self.random.choice(self.site.cluster.nodes), self.random.uniform(2, 30)
        self.site.freeze(node, seconds, *([self.site.publish] if self.random.random() < 0.5 else []))

    def roll_back(self) -> None:
        """Where there is something to go back to."""
        if self.site.may_roll_back():
            self.site.roll_back()


def play(folder: Path, seconds: float, seed: int) -> dict[str, Any]:
    """All figures."""
    cluster = Cluster(folder / "nodes")
    try:
        with Site(folder / "site", cluster.start()).serving() as site:
            rate = SHARE * site.capacity()
            client = site.load(folder / "answers", rate)
            soak, end = Soak(site, seed), time.monotonic() + seconds
            try:
                while time.monotonic() < end:
                    soak.act()
                    last = site.happenings[-1]
                    say(
                        f"{end - time.monotonic():7.0f} s left: {last.name} took {last.until - last.at:.1f} s {last.note}"
                    )
            finally:
                client.stop()
                told = client.result()
            say(f"the client was late by {told['client_late_p99_ms']:.1f} ms (p99)")
            return {"seed": seed, "rate": rate} | judge(list(client.answers()), site.happenings, site.may_serve)
    finally:
        cluster.kill()


def say(text: str) -> None:
    """Progress."""
    click.echo(text, err=True)


@click.command()
@click.option("--minutes", default=30.0, show_default=True)
@click.option("--seed", type=int, help="Default: another one each time; it is logged.")
def main(minutes: float, seed: int | None) -> None:
    """Three real nodes, requests at a constant rate, and random faults."""
    seed = random.randrange(10**6) if seed is None else seed
    say(f"seed {seed}")
    folder = Path(tempfile.mkdtemp(prefix="nightlist-soak-"))
    try:
        figures = play(folder, 60 * minutes, seed)
        say(table(figures))
        click.echo(json.dumps(figures))
        check(figures)
    except AssertionError as error:
        say(f"not kept: {str(error).splitlines()[0]}")
        sys.exit(1)
    finally:
        if sys.exception() is None:
            shutil.rmtree(folder)
        else:
            say(f"all logs and answers lie in {folder}")


if __name__ == "__main__":
    main()
