"""Open mode: everybody may ask, who is on this machine and asks it as that."""

import re
import socket
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any

from schemas.errors import ConfigError
from schemas.keys import read_keys
from schemas.settings import AuthSettings

FORWARDED = frozenset({"HTTP_FORWARDED", "HTTP_X_FORWARDED_FOR"})
LOCAL_HOST = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?", re.IGNORECASE)


def is_local(environ: Mapping[str, Any]) -> bool:
    """Whether a request was made on this machine: not through a proxy, and not by a page of elsewhere, whose author gave
    a name of theirs our address and whose visitor's browser says that name."""
    near = is_loopback(environ.get("REMOTE_ADDR", ""))
    named = LOCAL_HOST.fullmatch(environ.get("HTTP_HOST") or "localhost") is not None
    return near and named and not FORWARDED & environ.keys()


@lru_cache(256)
def is_loopback(address: str) -> bool:
    """Whether it is this machine's own."""
    try:
        found = ip_address(address)
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return (mapped or found).is_loopback


def check_start(auth: AuthSettings, host: str) -> None:
    """ConfigError where everybody could ask from elsewhere, or nobody could ask at all."""
    if auth.open and not all(is_loopback(address) for address in _addresses(host)):
        raise ConfigError(
            f"serve.host = {host!r} is no loopback address, and in open mode the service listens on 127.0.0.1 or ::1 only. "
            "For callers elsewhere leave out auth.open (--open) and make a key: `nightlist keys create NAME --scope lists:read`"
        )
    if not (auth.open or auth.jwks_file or any(key.live for key in read_keys(auth.keys_file))):
        raise ConfigError(
            f"nobody could ask: {auth.keys_file} holds no live key, and auth.jwks_file is not set. Make a key: `nightlist "
            "keys create NAME --scope lists:read`; or, to try it on this machine only: `nightlist serve --open`"
        )


def _addresses(host: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise ConfigError(f"serve.host = {host!r} can't be resolved: {error}") from None
