"""Three real nodes under faults, in this order: one after another while requests come in, all at once, and rows that one lacks.

`-s` shows what came back, fault by fault.
"""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import requests

from lookup_api.readers._cassandra import DRIVER_ERRORS, ONE, Connection
from tests.cassandra import Cluster, Node
from tests.load import Answer, Client, milliseconds
from tests.under_fire import USERS, Site
from tests.verdict import DELIBERATE, check, during, judge, table

SHARE = 0.25
"""Of what the idle site bears."""
CALM = 8.0
"""Seconds between faults in which nothing happens."""
FROZEN = 20.0
COUNTED = 30.0
"""Seconds in which the service has to be back after all nodes are."""
DEADLINE = 0.5
SLACK = 0.25
"""What server, client and a busy machine may add to a deadline."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes of this module alone: it ends them as it likes."""
    made = Cluster(tmp_path_factory.mktemp("nodes"))
    try:
        yield made.start()
    finally:
        made.kill()


@pytest.fixture(scope="module")
def site(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A service over these nodes, and its first run."""
    with Site(tmp_path_factory.mktemp("site"), cluster).serving() as made:
        yield made


@contextmanager
def loaded(site: Site, out: Path, rate: float) -> Iterator[Client]:
    """Requests come in for as long as the context lasts."""
    client = site.load(out, rate)
    try:
        yield client
    finally:
        client.stop()
        client.result()


def test_every_fault_but_the_loss_of_a_quorum_is_hardly_seen(site: Site, cluster: Cluster, tmp_path: Path) -> None:
    """While lists are asked for at a constant rate: nobody gets a list that is wrong, and nobody a 5xx that is not a
    deliberate 503; nearly all get their own list, all the time."""
    rate = SHARE * site.capacity()
    _, second, third = cluster.nodes
    with loaded(site, tmp_path / "answers", rate) as client:
        time.sleep(CALM)
        site.publish()
        site.roll_back()
        site.publish_beside_another()
        time.sleep(CALM)
        site.kill(second)
        site.publish()
        wait_out(site)
        time.sleep(CALM)
        site.restart(second)
        site.publish_after_a_killed_load()
        wait_out(site)
        time.sleep(CALM)
        frozen_at = time.monotonic()
        site.freeze(third, FROZEN)
        wait_out(site)
        hedges = events(site.port).get("hedge", 0)
        site.roll_back()
        time.sleep(CALM)
    answers = list(client.answers())
    figures = judge(answers, site.happenings, site.may_serve)
    frozen = milliseconds([answer.seconds for answer in during(answers, frozen_at, frozen_at + FROZEN)])
    print(f"\n{rate:.0f} requests/s; frozen: {frozen}; {hedges:.0f} hedges\n{table(figures)}")

    check(figures)
    assert frozen["p99_ms"] <= 1e3 * (DEADLINE + SLACK)
    assert hedges, "the node that was frozen was asked, so that others were, too"


def events(port: int) -> dict[str, float]:
    """What the service's reader did beside one read a list."""
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=15).text
    found = re.findall(r'nightlist_reader_events_total\{event="(\w+)"\} (\S+)', text)
    return {event: float(count) for event, count in found}


def wait_out(site: Site) -> None:
    """Until the window of the last fault is over."""
    last = max(happening.at for happening in site.happenings if happening.fault)
    time.sleep(max(0.0, last + 30 - time.monotonic()))


def test_the_service_is_back_by_itself_after_all_nodes_were_gone(site: Site, cluster: Cluster, tmp_path: Path) -> None:
    """Within 30 s of the nodes; until then every answer is a list or a deliberate 503."""
    with loaded(site, tmp_path / "answers", 20) as client:
        time.sleep(1)
        gone_at = time.monotonic()
        cluster.kill()
        cluster.start()
        there_at = time.monotonic()
        back = there_at + COUNTED
        while time.monotonic() < back + 5:
            time.sleep(0.5)
            recent = list(during(client.answers(), time.monotonic() - 5, time.monotonic() - 0.2))
            if recent and all(map(is_personal, recent)):
                break
    answers = list(client.answers())
    failed_until = max((a.at + a.seconds for a in answers if not is_personal(a)), default=gone_at)
    print(f"\nall nodes: gone for {there_at - gone_at:.1f} s; service back {failed_until - there_at:+.1f} s after them")

    assert not [a for a in answers if a.wrong]
    assert {(a.status, a.what) for a in answers} <= {(200, "personal"), *((503, what) for what in DELIBERATE)}
    assert failed_until - there_at < COUNTED
    assert is_personal(answers[-1])


def is_personal(answer: Answer) -> bool:
    return (answer.status, answer.what) == (200, "personal")


def test_rows_that_a_node_lacks_are_found_on_another(site: Site, cluster: Cluster) -> None:
    """A node was down during the load, and nobody kept hints for it: of its users, none is given the popular list,
    whichever of the others is away."""
    first, second, third = cluster.nodes
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda node: node.nodetool("disablehandoff"), cluster.nodes))
    site.kill(first)
    site.publish()
    run_id = site.tenures[-1].run_id
    site.restart(first)
    for away in (second, third):
        missing = lacking(cluster, first, f"{site.settings.store.cassandra.keyspace}.lists_{run_id}")
        print(f"\n{first.host} lacks {missing} of {USERS} users' lists; {away.host} is away")
        assert missing
        away.freeze()
        try:
            answers = [ask(site.port, f"u{user}") for user in range(USERS)]
        finally:
            away.thaw()
        assert {(answer["run_id"], answer["source"]) for answer in answers} == {(run_id, "personal")}
        owners = [item["item_id"].rsplit(":", 1)[0] for answer in answers for item in answer["items"][:1]]
        assert owners == [f"{run_id}:u{user}" for user in range(USERS)]


def lacking(cluster: Cluster, node: Node, table: str) -> int:
    """How many users' lists the node does not have itself: it reads its own rows where one replica will do."""
    deadline = time.monotonic() + COUNTED
    while True:
        try:
            return _lacking(cluster, node, table)
        except DRIVER_ERRORS:  # a node that just came back has to hear of the table first
            assert time.monotonic() < deadline
            time.sleep(0.5)


def _lacking(cluster: Cluster, node: Node, table: str) -> int:
    with closing(Connection(cluster.settings())) as connection:
        session = connection.session()
        (host,) = (host for host in session.cluster.metadata.all_hosts() if host.address == node.host)
        query = session.prepare(f"SELECT key FROM {table} WHERE kind = 'user' AND key = ?")
        keys = [(f"u{user}",) for user in range(USERS)]
        return sum(not session.execute(query, key, host=host, execution_profile=ONE).all() for key in keys)


def ask(port: int, user: str, seconds: float = 30.0) -> dict[str, object]:
    """The answer for a user, from a service that may need another try."""
    deadline = time.monotonic() + seconds
    while True:
        answer = requests.get(f"http://127.0.0.1:{port}/v1/users/{user}/recommendations", timeout=15)
        if answer.status_code == 200:
            return dict(answer.json())
        assert answer.status_code == 503, answer.text
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)
