"""The lookup service: it only reads lists, so that a recommendation costs one key read.

`create_app` imports Flask when it is called, so that jobs can use `lookup_api.readers` without it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flask import Flask


def create_app(*args: Any, **kwargs: Any) -> "Flask":
    """The WSGI application; see `lookup_api.app.create_app` for the arguments."""
    from lookup_api.app import create_app as create

    return create(*args, **kwargs)
