"""Starts granian with the lookup API; nothing else of the service knows granian."""

import os
import socket
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING

from granian import Granian
from granian.constants import Interfaces

from lookup_api import create_app, logs, runtime
from lookup_api.auth.local import check_start
from schemas.errors import ConfigError
from schemas.settings import CONFIG_VARIABLE, ServeSettings, load_auth_settings

if TYPE_CHECKING:
    from flask import Flask

CONNECTIONS = 1024
"""Open connections a worker. granian's backpressure counts connections, idle ones too: behind a proxy that keeps a pool
of them open, a figure near the number of threads would lock everybody else out."""
KILL_SECONDS = 10
"""Time for requests under way when the server is told to end; connections that stay open and idle are cut then."""


def serve(config_path: Path, settings: ServeSettings) -> None:
    """Serve until SIGTERM, and from then on for `drain_seconds`, or until SIGINT.

    Raises ConfigError when nothing can listen at the address, when nobody could ask, or when everybody could.
    """
    check_start(load_auth_settings(config_path), settings.host)
    _check_address(settings.host, settings.port)
    os.environ[CONFIG_VARIABLE] = str(config_path.resolve())
    with runtime.shared_folder() as folder:
        server = Granian(
            "lookup_api:create_app",
            address=settings.host,
            port=settings.port,
            interface=Interfaces.WSGI,
            workers=settings.workers,
            blocking_threads=settings.threads,
            backpressure=max(CONNECTIONS, 2 * settings.threads),
            respawn_failed_workers=True,
            workers_kill_timeout=KILL_SECONDS,
            websockets=False,
            factory=True,
            log_dictconfig=logs.configuration(settings.log_format),
        )
        server.on_startup(lambda: runtime.drain_on_sigterm(folder, settings.drain_seconds))
        # Our own loader: granian's looks for the package in the working folder first, and takes whatever lies there.
        server.serve(target_loader=load, wrap_loader=False)


def load() -> "Flask":
    """The application, in a worker. Workers leave without running atexit, so closing is said to multiprocessing."""
    from lookup_api.service import EXTENSION  # imports prometheus_client, which the parent must not

    app = create_app()
    Finalize(app, app.extensions[EXTENSION].close, exitpriority=1)
    app.extensions[EXTENSION].begin()
    return app


def _check_address(host: str, port: int) -> None:
    """granian shares its port: a second server would start, and silently take half of the first one's requests."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(f"can't listen at {host}:{port}: {error}; choose another [serve] host or port") from None
