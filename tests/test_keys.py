"""API keys: the command that makes and revokes them, the file that keeps their hashes, and the service that follows it."""

import json
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs.commands.keys import write_keys
from lookup_api import create_app
from lookup_api.auth import keys as known_keys
from lookup_api.auth.watched import Watched
from lookup_api.service import EXTENSION
from schemas.errors import ConfigError, NightlistError
from schemas.keys import SCOPES, hash_of, id_of, new_key, read_keys
from tests.callers import AUTH, bearer, make_key
from tests.commands import Ended, nightlist, process
from tests.lookup import RUN, World, until


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "nightlist.toml"
    path.write_text("")
    return path


def keys(config: Path, *arguments: str) -> Ended:
    return nightlist("keys", *arguments, "--config", config)


def create(config: Path, name: str = "web", scope: str = "lists:read") -> str:
    made = keys(config, "create", name, "--scope", scope)
    assert made.code == 0, made.stderr
    return made.stdout.strip()


def test_a_key_is_shown_once_and_kept_nowhere(config: Path) -> None:
    """On stdout alone, to be caught by a script; the file holds its SHA-256, and is its owner's alone."""
    text = create(config)
    file = config.parent / "keys.json"
    (kept,) = read_keys(file)

    assert text.startswith(f"nl_{kept.id}_")
    assert len(text.split("_", 2)[2]) * 6 >= 128
    assert kept.sha256 == hash_of(text)
    assert text.split("_", 2)[2] not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in config.parent.iterdir() if path != config] == ["keys.json"]
    assert text not in keys(config, "list").stdout + keys(config, "list", "--json").stdout


def test_no_two_keys_are_alike(config: Path) -> None:
    """Neither id nor secret."""
    made = [new_key("web", SCOPES, datetime.now(UTC)) for _ in range(500)]

    assert len({key.id for _, key in made}) == len({text.split("_", 2)[2] for text, _ in made}) == 500


def test_machines_are_told_the_same(config: Path) -> None:
    """One JSON line of each command, which holds no hash."""
    made = keys(config, "create", "web", "--scope", "metrics:read", "--scope", "lists:read", "--json").json
    listed = keys(config, "list", "--json").json["keys"]
    revoked = keys(config, "revoke", made["id"], "--json").json

    assert (made["key"][:12], made["scopes"], made["live"]) == (
        f"nl_{made['id']}_",
        ["lists:read", "metrics:read"],
        True,
    )
    assert listed == [{name: value for name, value in made.items() if name != "key"}]
    assert revoked == listed[0] | {"live": False, "revoked_at": revoked["revoked_at"]}
    assert "sha256" not in made


def test_two_keys_of_a_name_may_live_at_once_to_change_from_one_to_the_other(config: Path) -> None:
    """A third is refused with the way out, and is possible once the first is revoked; other names don't count."""
    first, _ = create(config), create(config)
    create(config, "other")
    third = keys(config, "create", "web", "--scope", "lists:read")
    way_out = f"nightlist keys revoke {id_of(first)}"

    assert (third.code, third.stdout) == (2, "")
    assert way_out in third.stderr
    assert nightlist(*way_out.split()[1:], "--config", config).code == 0
    assert create(config)
    assert [key.live for key in read_keys(config.parent / "keys.json")] == [False, True, True, True]


def test_a_revoked_key_stays_revoked_since_then(config: Path) -> None:
    """Revoking it again changes nothing; the list says that it is."""
    key_id = id_of(create(config)) or ""
    assert "live" in keys(config, "list").stdout
    before = keys(config, "revoke", key_id, "--json").json
    after = keys(config, "revoke", key_id, "--json").json

    assert before == after
    assert "revoked" in keys(config, "list").stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("revoke", "0badcafe"), "no key '0badcafe'; `nightlist keys list`"),
        (("create", "a b", "--scope", "lists:read"), "'a b' is no name of a key"),
        (("create", "x" * 65, "--scope", "lists:read"), "is no name of a key"),
    ],
)
def test_what_can_not_be_done_is_said(config: Path, arguments: tuple[str, ...], told: str) -> None:
    """With the code of a wrong command line, and without a file."""
    ended = keys(config, *arguments)

    assert (ended.code, ended.stdout) == (2, "")
    assert told in ended.stderr
    assert not (config.parent / "keys.json").exists()


def test_a_scope_is_needed_and_known(config: Path) -> None:
    """A key that opens nothing, or something that is not there, is a mistake."""
    for arguments in (("create", "web"), ("create", "web", "--scope", "lists:write")):
        ended = process("keys", *arguments, "--config", config)
        assert ended.code == 2
        assert "lists:read" in ended.stderr


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"version": 2, "keys": []}', '{"version": 1, "keys": [{"id": "x"}]}', '{"version": 1, "keyz": []}', "\xff"],
)  # fmt: skip
def test_a_damaged_file_is_not_written_over(config: Path, text: str) -> None:
    """It is named, with what to do; nothing of it is lost, and nothing of it is told."""
    (config.parent / "keys.json").write_text(text, encoding="latin-1")
    for arguments in (("list",), ("create", "web", "--scope", "lists:read"), ("revoke", "0badcafe")):
        ended = keys(config, *arguments)
        assert ended.code == 2
        assert f"{config.parent / 'keys.json'} is damaged" in ended.stderr
    assert (config.parent / "keys.json").read_text(encoding="latin-1") == text


def test_an_error_about_the_file_holds_no_hash(config: Path) -> None:
    """Logs are read by more people than the file is."""
    create(config)
    file = config.parent / "keys.json"
    (kept,) = json.loads(file.read_text())["keys"]
    for damage in ({"scopes": ["all"]}, {"sha256": kept["sha256"].upper()}):
        file.write_text(json.dumps({"version": 1, "keys": [kept | damage]}))
        assert kept["sha256"][:12] not in keys(config, "list").stderr.lower()


def test_two_keys_of_one_id_are_damage(config: Path) -> None:
    """Which of them would a revocation end?"""
    create(config)
    (kept,) = read_keys(config.parent / "keys.json")
    write_keys(config.parent / "keys.json", (kept, kept.model_copy(update={"name": "other"})))

    assert keys(config, "list").code == 2


def test_changes_at_the_same_time_lose_none(config: Path) -> None:
    """Eight processes' worth of keys are eight keys: a revocation can't be undone by somebody else's creation."""
    with ThreadPoolExecutor(4) as pool:
        ended = list(
            pool.map(lambda n: process("keys", "create", f"n{n}", "--scope", "lists:read", "-c", config), range(8))
        )

    assert [one.code for one in ended] == [0] * 8
    assert {key.name for key in read_keys(config.parent / "keys.json")} == {f"n{n}" for n in range(8)}


def test_a_write_that_fails_leaves_the_file_as_it_was(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing half-written, and nothing beside it."""
    create(config)
    before = sorted((path.name, path.read_text()) for path in config.parent.iterdir())
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(NightlistError, match="No space left"):
        write_keys(config.parent / "keys.json", ())

    assert sorted((path.name, path.read_text()) for path in config.parent.iterdir()) == before


def test_keys_start_no_spark(config: Path) -> None:
    """The machine that serves has none."""
    code = (
        "import sys; from jobs.cli import cli\n"
        f"try: cli(['keys', 'list', '--config', {str(config)!r}])\nexcept SystemExit: pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'pyspark', 'numpy', 'pyarrow', 'flask'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


# The service


def test_a_service_follows_the_file_without_a_restart(tmp_path: Path) -> None:
    """A new key opens, a revoked one closes, within some refresh periods; a damaged file changes nothing."""
    world = World(tmp_path)
    world.publish(RUN)
    config = tmp_path / "nightlist.toml"
    config.write_text(
        '[store]\npath = "store"\n[serve]\ndeadline_seconds = 60\nrefresh_seconds = 0.02\n[auth]\nkeys_file = "keys.json"\n'
    )
    app = create_app(config, clock=world.clock)

    def status(text: str) -> int:
        return app.test_client().get("/v1/popular", headers=bearer(text)).status_code

    first = create(config)
    assert until(lambda: status(first) == 200)
    second = create(config)
    assert until(lambda: status(second) == 200)
    keys(config, "revoke", id_of(first) or "")
    assert until(lambda: status(first) == 401)
    assert status(second) == 200
    good = (tmp_path / "keys.json").read_bytes()
    (tmp_path / "keys.json").write_bytes(good[:-30])
    for _ in range(30):
        time.sleep(0.01)
        assert status(second) == 200
    (tmp_path / "keys.json").write_bytes(good)
    keys(config, "revoke", id_of(second) or "")
    assert until(lambda: status(second) == 401)
    third = create(config)
    assert until(lambda: status(third) == 200)
    (tmp_path / "keys.json").unlink()
    assert until(lambda: status(third) == 401)
    app.extensions[EXTENSION].close()


def test_a_file_is_looked_at_once_a_period(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However many ask; and what is wrong with it is logged once, not once a request."""
    now, reads = [0.0], []
    text = make_key(tmp_path, "lists:read")

    def load(path: Path) -> known_keys.Known:
        reads.append(path)
        return known_keys.load(path)

    watched = Watched(tmp_path / "keys.json", load, 2.0, lambda: now[0])
    (tmp_path / "keys.json").write_text("damaged")
    for now[0] in (0.0, 1.9):
        assert known_keys.find(watched.current(), text)
    assert len(reads) == 1
    for now[0] in (2.0, 2.1, 4.2, 6.3, 100.0):
        assert known_keys.find(watched.current(), text)
    assert len(reads) == 2
    assert caplog.text.count("is damaged") == 1
    assert "stays in force" in caplog.text


def test_a_file_that_is_damaged_when_the_service_starts_is_told(tmp_path: Path) -> None:
    """There is no last good one."""
    (tmp_path / "nightlist.toml").write_text(AUTH)
    (tmp_path / "keys.json").write_text("{")
    with pytest.raises(ConfigError, match=r"keys\.json is damaged"):
        create_app(tmp_path / "nightlist.toml")


@pytest.mark.parametrize("change", [
    lambda text: text + "x", lambda text: text[:-1], lambda text: text.upper(), lambda text: text.replace("nl_", "nk_"),
    lambda text: text.rpartition("_")[0], lambda text: id_of(text), lambda text: hash_of(text),
    lambda text: f"nl_{id_of(text)}_{hash_of(text)}", lambda text: f"nl_{id_of(text)}_", lambda text: "", lambda text: "nl__",
    lambda text: "é" * 40, lambda text: text + "\x00",
])  # fmt: skip
def test_only_the_whole_key_opens(tmp_path: Path, change: object) -> None:
    """Nothing that is kept of it, and nothing that looks like it."""
    text = make_key(tmp_path, "lists:read")
    known = known_keys.load(tmp_path / "keys.json")

    assert known_keys.find(known, text)
    assert callable(change)
    assert known_keys.find(known, change(text)) is None
