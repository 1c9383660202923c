"""What every answer of this service is made of."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flask import Response

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from werkzeug.datastructures import Headers

SECURITY = (
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
)
"""Headers of every answer."""


class Answer(Response):
    """An answer whose body is there as a whole. Nothing in it is streamed, redirected or closed, so what is found goes out as
    it is; werkzeug goes over every header three times for what might be."""

    def get_wsgi_headers(self, environ: "WSGIEnvironment") -> "Headers":
        headers = super().get_wsgi_headers(environ)
        headers.extend(SECURITY)
        return headers

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if self.status_code != 200 or environ["REQUEST_METHOD"] == "HEAD":
            return super().__call__(environ, start_response)
        start_response(self.status, [*self.headers, *SECURITY])
        body: Iterable[bytes] = self.response  # type: ignore[assignment]  # set_data has made bytes of it
        return body
