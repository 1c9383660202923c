"""The lookup API under gunicorn, as [serve] says:

NIGHTLIST_CONFIG=nightlist.toml gunicorn -c python:lookup_api.gunicorn_conf 'lookup_api:create_app()'

The names are gunicorn's settings and hooks; what the command line says overrules them, but for preloading.
"""

import os
from logging.config import dictConfig
from pathlib import Path
from typing import Any

from gunicorn.glogging import Logger

from lookup_api import logs, runtime
from lookup_api.auth.local import check_start
from schemas.settings import CONFIG_FILE, CONFIG_VARIABLE, load_auth_settings, load_service_settings

_config = Path(os.environ.get(CONFIG_VARIABLE) or CONFIG_FILE)
_settings = load_service_settings(_config)[1]

_host = _settings.host.strip("[]")
bind = f"[{_host}]:{_settings.port}" if ":" in _host else f"{_host}:{_settings.port}"
workers = _settings.workers
threads = _settings.threads
worker_class = "gthread"
worker_connections = 1024
keepalive = 75
"""Seconds that an idle connection stays open: longer than the proxy in front keeps it (nginx: 60), which then ends it."""
graceful_timeout = 10
control_socket_disable = True


class _Logger(Logger):  # type: ignore[misc]  # its base has no types
    """gunicorn's messages among ours, without the words of clients, which may hold an id."""

    def setup(self, cfg: Any) -> None:
        """Configure logging; gunicorn's own handler goes."""
        super().setup(cfg)
        dictConfig(logs.configuration(_settings.log_format))

    def warning(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Of a request that is none, gunicorn would log the first line."""
        super().warning(msg.partition(":")[0] if msg.startswith("Invalid request") else msg, *args, **kwargs)

    def exception(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Of one that it could not answer, the path."""
        found = msg.startswith("Error handling request")
        super().exception(*(("Error handling a request",) if found else (msg, *args)), **kwargs)


logger_class = _Logger


def on_starting(server: Any) -> None:
    """In the parent, before anything else."""
    if server.cfg.preload_app:
        raise RuntimeError("gunicorn's preload_app can't be used here: workers would share what each needs for itself")
    auth = load_auth_settings(_config)
    for address in server.cfg.address:
        if auth.open and isinstance(address, tuple):  # else a socket's path
            check_start(auth, address[0])
    runtime.begin()


def when_ready(server: Any) -> None:
    """In the parent, before the first worker."""
    runtime.drain_on_sigterm(_folder(), _settings.drain_seconds)


def post_worker_init(worker: Any) -> None:
    """In a worker, before it takes a request."""
    from lookup_api.service import EXTENSION  # imports prometheus_client, which the parent must not

    worker.wsgi.extensions[EXTENSION].begin()


def pre_request(worker: Any, request: Any) -> None:
    """gunicorn writes the header `Connection` by itself, whatever the application says."""
    if (_folder() / runtime.DRAINING).exists():
        request.force_close()


def child_exit(server: Any, worker: Any) -> None:
    """In the parent, when a worker is no more."""
    runtime.forget(_folder(), worker.pid)


def on_exit(server: Any) -> None:
    """In the parent, at the end."""
    runtime.end(_folder())


def _folder() -> Path:
    return Path(os.environ[runtime.VARIABLE])
