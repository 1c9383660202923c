"""Open mode: everybody may ask, on this machine only, and it says so; and what `nightlist serve` refuses to start."""

import logging
from pathlib import Path
from typing import Any

import pytest
import requests

from lookup_api import create_app
from lookup_api.auth.local import check_start, is_local, is_loopback
from schemas.errors import ConfigError
from schemas.settings import AuthSettings
from tests.callers import make_key
from tests.commands import nightlist, serving


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NIGHTLIST_AUTH__OPEN", "false")  # what --open sets is gone after the test
    (tmp_path / "nightlist.toml").write_text("")
    return tmp_path / "nightlist.toml"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "::1"])
def test_on_a_loopback_address_it_starts(host: str) -> None:
    """Under any of its names."""
    check_start(AuthSettings(open=True), host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "192.168.1.1"])
@pytest.mark.parametrize("by", ["option", "file"])
def test_on_another_address_it_does_not(config: Path, monkeypatch: pytest.MonkeyPatch, host: str, by: str) -> None:
    """Exit code 2, with the way to a key."""
    if by == "file":
        config.write_text("[auth]\nopen = true\n")
        monkeypatch.delenv("NIGHTLIST_AUTH__OPEN")
    ended = nightlist("serve", "--config", config, "--host", host, *(["--open"] if by == "option" else []))

    assert (ended.code, ended.stdout) == (2, "")
    assert repr(host) in ended.stderr
    assert "nightlist keys create" in ended.stderr


def test_a_service_that_nobody_could_ask_does_not_start(config: Path) -> None:
    """No key, a revoked one, or one in another file: it says what to type."""
    for prepare in (lambda: None, lambda: make_key(config.parent, "lists:read", revoked=True)):
        prepare()
        ended = nightlist("serve", "--config", config)
        assert (ended.code, ended.stdout) == (2, "")
        for way in ("nightlist keys create NAME --scope lists:read", "auth.jwks_file", "nightlist serve --open"):
            assert way in ended.stderr


def test_a_key_or_a_file_of_public_keys_is_enough(tmp_path: Path) -> None:
    """On any address."""
    auth = AuthSettings(keys_file=tmp_path / "keys.json")
    make_key(tmp_path, "metrics:read")
    check_start(auth, "0.0.0.0")
    check_start(AuthSettings(keys_file=tmp_path / "none", jwks_file="jwks.json"), "0.0.0.0")
    with pytest.raises(ConfigError, match="can't be resolved"):
        check_start(AuthSettings(open=True), "no-such-host.invalid")


@pytest.mark.parametrize(
    ("environ", "local"),
    [
        ({"REMOTE_ADDR": "127.0.0.1"}, True),
        ({"REMOTE_ADDR": "127.0.0.53", "HTTP_HOST": "127.0.0.1:8080"}, True),
        ({"REMOTE_ADDR": "::1", "HTTP_HOST": "[::1]:8080"}, True),
        ({"REMOTE_ADDR": "::ffff:127.0.0.1", "HTTP_HOST": "LOCALHOST"}, True),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": ""}, True),
        ({}, False),
        ({"REMOTE_ADDR": ""}, False),
        ({"REMOTE_ADDR": "localhost"}, False),
        ({"REMOTE_ADDR": "10.0.0.1"}, False),
        ({"REMOTE_ADDR": "::ffff:10.0.0.1"}, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": "127.0.0.1"}, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": ""}, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_FORWARDED": "for=127.0.0.1"}, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "evil.example"}, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost.evil.example:8080"}, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "127.0.0.1.evil.example"}, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost\nx"}, False),
    ],
)
def test_who_is_on_this_machine(environ: dict[str, Any], local: bool) -> None:
    """By where the connection is from, and only when nothing hints at a proxy or at a page from elsewhere."""
    assert is_local(environ) is local


def test_what_is_no_address_is_not_this_machine() -> None:
    """Nor is an address of a unix socket."""
    assert not any(map(is_loopback, ("unix:", "127.0.0.1:80", "127.1", "x")))


def test_it_says_so_loudly(config: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under any server, when the application is made."""
    monkeypatch.setenv("NIGHTLIST_AUTH__OPEN", "true")
    create_app(config)

    assert [record.levelno for record in caplog.records if "OPEN MODE" in record.getMessage()] == [logging.WARNING]


def test_an_open_service_answers_its_own_machine(config: Path) -> None:
    """On a wire: asked as that, and not through a proxy; the log says that it is open."""
    config.write_text("[auth]\nopen = true\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NIGHTLIST_AUTH__OPEN")
        (config.parent / "store").mkdir()
        with serving(config, ready="/livez") as port:
            url = f"http://127.0.0.1:{port}/metrics"
            plain = requests.get(url, timeout=5)
            proxied = requests.get(url, headers={"X-Forwarded-For": "10.0.0.1"}, timeout=5)
            rebound = requests.get(url, headers={"Host": f"evil.example:{port}"}, timeout=5)

    assert [answer.status_code for answer in (plain, proxied, rebound)] == [200, 403, 403]
    assert "OPEN MODE" in (config.parent / "serve.log").read_text()
