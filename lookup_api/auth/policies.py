"""What a route may demand of who asks, and the rules that carry the demand."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from werkzeug.routing import Rule

from schemas.keys import LISTS_READ, METRICS_READ, SCOPES


class Policy(Enum):
    """Who may ask a route."""

    PUBLIC = "everybody"
    ANY_LISTS = "whoever may read lists of any kind: a key with lists:read, or a user"
    OWN_LISTS = "a key with lists:read, or the user whose list it is"
    METRICS = "a key with metrics:read"


PUBLIC, ANY_LISTS, OWN_LISTS, METRICS = Policy


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a program with scopes, or one user."""

    name: str
    scopes: frozenset[str] = frozenset()
    user_id: str | None = None

    def may_enter(self, policy: Policy) -> bool:
        """Whether a view of this policy may run; whose lists it then reads, `may_read` says."""
        if policy is METRICS:
            return METRICS_READ in self.scopes
        return policy is PUBLIC or LISTS_READ in self.scopes or self.user_id is not None

    def may_read(self, user_id: str) -> bool:
        """Whether this user's list may be read."""
        return LISTS_READ in self.scopes or user_id == self.user_id


ANYBODY = Principal("anybody", frozenset(SCOPES))
"""Who asks in open mode."""


class GuardedRule(Rule):
    """A rule that says who may ask: `app.get("/v1/popular", policy=ANY_LISTS)(popular)`."""

    def __init__(self, *arguments: Any, policy: Policy | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.policy = policy
