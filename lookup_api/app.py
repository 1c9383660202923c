"""The WSGI application: made without a look at the store, so that it can be made before a server forks."""

import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from flask import Flask, Response, current_app, g, request

from lookup_api import problems, routes
from lookup_api.problems import ProblemError
from lookup_api.readers import Reader, open_reader
from lookup_api.service import EXTENSION, Service, utc_now
from schemas.settings import CONFIG_FILE, CONFIG_VARIABLE, load_service_settings

MAX_BODY = 16 * 1024
USER_RULES = frozenset({"/v1/users/<id:user_id>/recommendations", "/v1/recommendations"})


def create_app(
    config: Path | str | None = None, *, reader: Reader | None = None, clock: Callable[[], datetime] | None = None
) -> Flask:
    """The lookup API of `config`, else of $NIGHTLIST_CONFIG, else of ./nightlist.toml. Raises ConfigError.

    `reader` takes the place of the configured store's, and is closed with the application; `clock` tells the UTC time
    that ages are counted to.
    """
    store, serve = load_service_settings(Path(config or os.environ.get(CONFIG_VARIABLE) or CONFIG_FILE))
    app = Flask("lookup_api", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.merge_slashes = False  # a redirect would change the id that was asked for
    app.extensions[EXTENSION] = Service(lambda: reader or open_reader(store), serve, clock or utc_now)
    app.before_request(_begin)
    app.before_request(_check)
    app.after_request(_finish)
    problems.init(app)
    routes.init(app)
    return app


def _begin() -> None:
    g.started = time.perf_counter()


def _check() -> None:
    """Refuse what no route may see. A body is never read: what is not read can't make a request hang."""
    if (request.content_length or 0) > MAX_BODY:
        raise ProblemError("body-too-large", f"the body has {request.content_length} bytes; requests here need none")
    try:
        request.environ["PATH_INFO"].encode("latin-1").decode("utf-8")
    except UnicodeError:
        raise ProblemError("invalid-id", "the path is not valid UTF-8 where it is decoded") from None


def _finish(response: Response) -> Response:
    rule = request.url_rule.rule if request.url_rule else "unmatched"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cache-Control"] = "private, no-store" if rule in USER_RULES else "no-store"
    service: Service = current_app.extensions[EXTENSION]
    service.metrics.observe(rule, request.method, response.status_code, time.perf_counter() - g.started)
    return response
