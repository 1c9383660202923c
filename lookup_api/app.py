"""The WSGI application: made without a look at the store, so that it can be made before a server forks."""

import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from flask import Flask, Response, current_app, g, request
from flask.globals import request_ctx
from werkzeug.routing import MapAdapter
from werkzeug.wrappers import Request

from lookup_api import access, problems, routes
from lookup_api.auth import Guard, GuardedRule, review
from lookup_api.batch import MAX_BATCH_BODY
from lookup_api.problems import ProblemError
from lookup_api.readers import Reader, open_reader
from lookup_api.responses import Answer
from lookup_api.service import EXTENSION, Service, utc_now
from schemas.settings import CONFIG_FILE, CONFIG_VARIABLE, load_auth_settings, load_service_settings

MAX_BODY = 16 * 1024
BATCH = "/v1/recommendations:batch"
USER_RULES = frozenset({"/v1/users/<id:user_id>/recommendations", "/v1/recommendations", BATCH})


class LookupApp(Flask):
    """Flask, whose rules say `policy=`, and whose functions are none of them async: nothing is asked of each of them at
    each request. Nor is the request's host, which no rule depends on and no redirect names."""

    url_rule_class = GuardedRule
    response_class = Answer

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        if request is None:
            return None
        return MapAdapter(self.url_map, "", "", "", "http", request.path, request.method)

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func

    def log_exception(self, exc_info: Any) -> None:
        """As Flask does, but with the rule for the path: no id goes into a log."""
        problems.log_fault(exc_info[1])


def create_app(
    config: Path | str | None = None, *, reader: Reader | None = None, clock: Callable[[], datetime] | None = None
) -> Flask:
    """The lookup API of `config`, else of $NIGHTLIST_CONFIG, else of ./nightlist.toml. Raises ConfigError.

    `reader` takes the place of the configured store's, and is closed with the application; `clock` tells the UTC time
    that ages are counted to.
    """
    path = Path(config or os.environ.get(CONFIG_VARIABLE) or CONFIG_FILE)
    store, serve = load_service_settings(path)
    app = LookupApp("lookup_api", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.config["MAX_CONTENT_LENGTH"] = MAX_BATCH_BODY  # nothing reads more, whatever length was announced
    app.url_map.merge_slashes = False  # a redirect would change the id that was asked for
    app.extensions[EXTENSION] = Service(lambda: reader or open_reader(store, serve), serve, clock or utc_now)
    app.before_request(_begin)
    app.before_request(Guard(load_auth_settings(path), serve.refresh_seconds).admit)
    app.before_request(_check)
    app.after_request(_finish)
    app.after_request(review)  # the last one comes first
    app.teardown_request(_end)
    problems.init(app)
    routes.init(app)
    return app


def _begin() -> None:
    here, environ = g._get_current_object(), request.environ
    here.started = time.perf_counter()
    here.request_id = access.request_id(environ)
    if environ["PATH_INFO"].startswith("/v1/"):
        here.under_way = _service().metrics.under_way
        here.under_way.inc()


def _check() -> None:
    """Refuse what no route may see. No body is read but a batch's: what is not read can't make a request hang."""
    environ = request.environ
    if "CONTENT_LENGTH" in environ:
        _check_length(request.content_length or 0)
    try:
        environ["PATH_INFO"].encode("latin-1").decode("utf-8")
    except UnicodeError:
        raise ProblemError("invalid-id", "the path is not valid UTF-8 where it is decoded") from None


def _check_length(length: int) -> None:
    is_batch = request.url_rule is not None and request.url_rule.rule == BATCH
    most, needed = (
        (MAX_BATCH_BODY, f"at most {MAX_BATCH_BODY} are allowed") if is_batch else (MAX_BODY, "requests here need none")
    )
    if length > most:
        raise ProblemError("body-too-large", f"the body has {length} bytes; {needed}")


def _finish(response: Response) -> Response:
    here, asked = g._get_current_object(), request_ctx.request
    rule = asked.url_rule.rule if asked.url_rule else "unmatched"
    headers = response.headers
    headers.add(access.HEADER, here.request_id)
    if "Cache-Control" not in headers:
        headers["Cache-Control"] = "private, no-store" if rule in USER_RULES else "no-store"
    service, seconds = _service(), time.perf_counter() - here.started
    if service.draining:
        service.metrics.draining(True)
        response.headers["Connection"] = "close"
    service.metrics.observe(rule, asked.method, response.status_code, seconds)
    if "problem" in here:
        service.metrics.problem(here.problem)
    service.access_log.answered(rule, response, seconds)
    return response


def _end(error: BaseException | None) -> None:
    if under_way := g.get("under_way"):
        under_way.dec()


def _service() -> Service:
    service: Service = current_app.extensions[EXTENSION]
    return service
