"""Real Cassandra without Docker: one node, or three, on loopback. `python -m tests.cassandra` starts them to try things on."""

from tests.cassandra.cluster import Cluster
from tests.cassandra.node import Node

__all__ = ["Cluster", "Node", "create_roles"]


def create_roles(place: Node | Cluster) -> None:
    """Roles, whose passwords are their names: `publisher` may do all that a publisher does in any keyspace, `reader` may read."""
    for role, rights in (("publisher", ("CREATE", "DROP", "SELECT", "MODIFY")), ("reader", ("SELECT",))):
        place.execute(f"CREATE ROLE {role} WITH PASSWORD = '{role}' AND LOGIN = true")
        for right in rights:
            place.execute(f"GRANT {right} ON ALL KEYSPACES TO {role}")
    place.execute("GRANT SELECT ON KEYSPACE system_views TO publisher")
