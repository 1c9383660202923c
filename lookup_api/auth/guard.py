"""Stands before every view: finds out who asks, and refuses what the route's policy does not allow."""

import logging
from functools import partial
from pathlib import Path

from flask import Response, g, request
from werkzeug.routing import Rule

from lookup_api import problems
from lookup_api.auth import keys, tokens
from lookup_api.auth.local import is_local
from lookup_api.auth.policies import ANYBODY, OWN_LISTS, PUBLIC, GuardedRule, Policy, Principal
from lookup_api.auth.tokens import BadToken
from lookup_api.auth.watched import Watched
from lookup_api.problems import ProblemError
from schemas.keys import PREFIX
from schemas.settings import AuthSettings

CHALLENGE = 'Bearer realm="nightlist"'
REFUSAL = f'{CHALLENGE}, error="invalid_token"'
OPEN = "OPEN MODE: every program on this machine may read every list; [auth] open = true is for a try, not for users"
NOBODY = "nobody may ask: no API key is live, and there is no auth.jwks_file; `nightlist keys create NAME --scope lists:read`"

log = logging.getLogger(__name__)


class Guard:
    """One application's. Files are read when it is made, and again when they change."""

    def __init__(self, settings: AuthSettings, refresh_seconds: float) -> None:
        """Raises ConfigError where a file is damaged."""
        self._open = settings.open
        self._keys: Watched[keys.Known] | None = None
        self._tokens: Watched[tokens.Tokens] | None = None
        if not settings.open:
            self._keys = Watched(settings.keys_file, keys.load, refresh_seconds)
        if settings.jwks_file and not settings.open:
            load = partial(tokens.load, settings=settings)
            self._tokens = Watched(Path(settings.jwks_file), load, refresh_seconds)
        if self._open:
            log.warning(OPEN)
        elif self._tokens is None and not (self._keys and self._keys.current()):
            log.warning(NOBODY)

    def admit(self) -> None:
        """Before a view: refuse, by ProblemError, unless its policy is met. Where no route matches there is no view."""
        rule = request.url_rule
        if rule is None or (policy := _policy(rule)) is PUBLIC:
            return
        principal = _anybody() if self._open else self._principal()
        if policy is None:
            log.error("%s declares no policy: it answers nobody", rule)
        if policy is None or not principal.may_enter(policy):
            raise _forbidden()
        g.principal = principal

    def _principal(self) -> Principal:
        """Whose key or token came along. Raises ProblemError."""
        scheme, _, text = request.headers.get("Authorization", "").strip().partition(" ")
        if scheme.lower() != "bearer" or not text:
            raise _unauthenticated("send `Authorization: Bearer ...` with an API key or a token", CHALLENGE)
        if not text.startswith(f"{PREFIX}_") and self._tokens is not None:
            try:
                return self._tokens.current().find(text)
            except BadToken as error:
                raise _unauthenticated(str(error), REFUSAL) from None
        found = keys.find(self._keys.current(), text) if self._keys else None
        if found is None:
            raise _unauthenticated("the key is not valid, or not any more", REFUSAL)
        return found


def _anybody() -> Principal:
    if not is_local(request.environ):
        raise ProblemError("forbidden", "this service is in open mode: it answers its own machine only, asked as that")
    return ANYBODY


def authorize(*user_ids: str) -> None:
    """Whether who asks may read the lists of all these users; ProblemError, which tells nothing of any, where not.

    A view with the policy OWN_LISTS calls it with every user_id of the request before it reads a list: what it answers
    otherwise is thrown away.
    """
    here = g._get_current_object()
    principal: Principal = here.principal
    if not all(principal.may_read(user_id) for user_id in user_ids):
        raise _forbidden()
    here.authorized = True


def review(response: Response) -> Response:
    """After a view: its answer, unless it forgot to ask whose list it may read."""
    if _policy(request.url_rule) is OWN_LISTS and response.status_code < 400 and not g.get("authorized"):
        log.error("%s answered without a call of authorize: the answer is thrown away", request.url_rule)
        return problems.fault()
    return response


def _policy(rule: Rule | None) -> Policy | None:
    return rule.policy if isinstance(rule, GuardedRule) else None


def _unauthenticated(detail: str, challenge: str) -> ProblemError:
    return ProblemError("unauthenticated", detail, {"WWW-Authenticate": challenge})


def _forbidden() -> ProblemError:
    """One for all reasons: that a user exists, or has a list, is not told."""
    return ProblemError("forbidden", "these credentials do not reach this")
