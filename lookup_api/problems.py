"""Errors as `application/problem+json` (RFC 9457), one shape for every answer that is not what was asked for."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import quote

from flask import Flask, Response, current_app, g, request
from werkzeug.exceptions import HTTPException

from lookup_api.responses import Answer

MEDIA_TYPE = "application/problem+json"
TYPES = {
    "invalid-id": (400, "The id can't be an id"),
    "invalid-parameter": (400, "A parameter has a value that it can't have"),
    "unknown-parameter": (400, "A parameter is not known here"),
    "invalid-body": (400, "The body is no JSON object"),
    "unauthenticated": (401, "It is not known who asks"),
    "forbidden": (403, "Who asks may not have this"),
    "length-required": (411, "The request does not say how long its body is"),
    "body-too-large": (413, "The request has a body, and a large one"),
    "unsupported-media-type": (415, "The body is not JSON"),
    "no-list": (404, "There is no such list"),
    "no-run": (503, "Nothing was published yet"),
    "unreadable": (503, "The lists can't be read now"),
    "not-ready": (503, "This process serves nothing"),
    "overloaded": (503, "Too many lookups are under way"),
}
"""Each problem of our own: its status and its title. Others are `about:blank`, titled by their status."""


class ProblemError(Exception):
    """Ends a request with the problem `name` of TYPES; `detail` says what is wrong in this one and what helps."""

    def __init__(self, name: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.name = name
        self.detail = detail
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """This problem as an answer."""
        status, title = TYPES[self.name]
        return _answer(status, f"urn:nightlist:problem:{self.name}", title, self.detail, self.headers)


def shown(value: str) -> str:
    """A value for a message: quoted, escaped, and not longer than a line."""
    return repr(value) if len(value) <= 60 else f"{value[:60]!r}..."


def init(app: Flask) -> None:
    """Answer every error of `app` with a problem."""
    app.register_error_handler(ProblemError, ProblemError.response)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected)


def unavailable(name: str, detail: str, retry_seconds: int) -> ProblemError:
    """A problem that passes: the client is told when to come back."""
    return ProblemError(name, detail, {"Retry-After": str(retry_seconds)})


def _http_error(error: HTTPException) -> Response:
    status = error.code or 500
    headers = {name: value for name, value in error.get_headers() if name in ("Allow", "Retry-After")}
    return _answer(status, "about:blank", HTTPStatus(status).phrase, _detail(error), headers)


def _detail(error: HTTPException) -> str:
    if error.code == 404:
        return f"{shown(request.path)} is no route; GET /openapi.json lists them. Ids with a slash need the query forms"
    if error.code == 405:
        return f"{request.method} is not allowed here; GET /openapi.json says what is"
    return error.description or ""


def log_fault(error: BaseException) -> None:
    """Log what nobody thought of, with the rule and not the path: no id goes into a log."""
    rule = request.url_rule.rule if request.url_rule else "no route"
    current_app.logger.error("%s while answering %s", type(error).__name__, rule, exc_info=error)


def _unexpected(error: Exception) -> Response:
    log_fault(error)
    return fault()


def fault() -> Response:
    """The answer to what is our own fault; why is told to the log."""
    return _answer(500, "about:blank", "Internal Server Error", "A fault of the service; its log has the details", {})


def _answer(status: int, type_: str, title: str, detail: str, headers: Mapping[str, str]) -> Response:
    g.problem = (
        type_.rpartition(":")[2] if type_ != "about:blank" else title.lower().replace(" ", "-")
    )  # for the metrics
    body = {"type": type_, "title": title, "status": status, "detail": detail, "instance": quote(request.path)}
    return Answer(json.dumps(body), status, dict(headers), content_type=MEDIA_TYPE)
