"""`nightlist keys`: API keys of the lookup API. What is kept of a key is its hash, in one file."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from jobs.commands.options import config_option, failing, json_option, print_json
from schemas.errors import ConfigError, NightlistError
from schemas.keys import SCOPES, ApiKey, KeyFile, Scope, new_key, read_keys
from schemas.settings import load_auth_settings

LIVE_AT_ONCE = 2
"""Keys of one name: the one in use, and the one that takes its place."""


@click.group()
def keys() -> None:
    """Make, show and revoke API keys of the lookup API. A running service follows within some seconds.

    To change a key: create a second one of the same name, give it to the callers, revoke the first one.
    """


@keys.command()
@click.argument("name")
@click.option(
    "--scope", "scopes", type=click.Choice(SCOPES), multiple=True, required=True, help="What it opens; repeatable."
)
@config_option
@json_option
def create(name: str, scopes: tuple[Scope, ...], config: Path, as_json: bool) -> None:
    """Make a key for NAME, the program that will use it, and print it: this once, it is kept nowhere."""
    with failing(), _changing(config) as (path, known):
        text, key = new_key(name, scopes, datetime.now(UTC).replace(microsecond=0))
        _check_room(name, known)
        write_keys(path, (*known, key))
    if as_json:
        print_json({"key": text} | _shown(key))
    else:
        click.echo(f"key {key.id} of {name}; keep it now, it is shown this once. Callers send it as", err=True)
        click.echo("Authorization: Bearer ", nl=False, err=True)
        click.echo(text)


@keys.command("list")
@config_option
@json_option
def list_(config: Path, as_json: bool) -> None:
    """Show all keys, revoked ones too; never the keys themselves."""
    with failing():
        known = read_keys(load_auth_settings(config).keys_file)
    if as_json:
        print_json({"keys": [_shown(key) for key in known]})
    else:
        Console(highlight=False).print(_table(known) if known else "no keys; `nightlist keys create NAME --scope ...`")


@keys.command()
@click.argument("key_id", metavar="ID")
@config_option
@json_option
def revoke(key_id: str, config: Path, as_json: bool) -> None:
    """End the key ID, for ever."""
    with failing(), _changing(config) as (path, known):
        key = next((key for key in known if key.id == key_id), None)
        if key is None:
            raise ConfigError(f"{path} has no key {key_id!r}; `nightlist keys list` shows the ids")
        revoked = key.model_copy(update={"revoked_at": key.revoked_at or datetime.now(UTC).replace(microsecond=0)})
        write_keys(path, tuple(revoked if each.id == key_id else each for each in known))
    print_json(_shown(revoked)) if as_json else click.echo(f"key {key_id} of {key.name} is revoked")


def write_keys(path: Path, keys: tuple[ApiKey, ...]) -> None:
    """The whole file or nothing of it, for its owner's eyes only; the owner stays. Raises NightlistError."""
    try:
        owner = path.stat() if path.exists() else None
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:  # 0600
            try:
                file.write(KeyFile(keys=keys).model_dump_json(indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
                if owner and os.geteuid() == 0:
                    os.chown(file.name, owner.st_uid, owner.st_gid)  # the service's user goes on reading it
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise NightlistError(f"{path} can't be written: {error.strerror}; run it as the owner of its folder") from None


@contextmanager
def _changing(config: Path) -> Iterator[tuple[Path, tuple[ApiKey, ...]]]:
    """The file and its keys, for one process at a time: a key that one revokes must not come back by another."""
    path = load_auth_settings(config).keys_file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise NightlistError(f"{path.parent} can't be used: {error.strerror}; check auth.keys_file") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield path, read_keys(path)
    finally:
        with suppress(OSError):
            os.close(folder)


def _check_room(name: str, known: tuple[ApiKey, ...]) -> None:
    live = [key for key in known if key.name == name and key.live]
    if len(live) >= LIVE_AT_ONCE:
        oldest = min(live, key=lambda key: key.created_at)
        raise ConfigError(
            f"{name} has {len(live)} live keys ({', '.join(key.id for key in live)}), which is enough to change from one to "
            f"the other; when nobody sends the old one any more: `nightlist keys revoke {oldest.id}`"
        )


def _shown(key: ApiKey) -> dict[str, Any]:
    return key.model_dump(mode="json", exclude={"sha256"}) | {"live": key.live}


def _table(known: tuple[ApiKey, ...]) -> Table:
    table = Table("id", "name", "scopes", "made", "", box=None)
    for key in known:
        state = "live" if key.revoked_at is None else f"revoked {key.revoked_at:%Y-%m-%d %H:%M}"
        table.add_row(key.id, key.name, ", ".join(key.scopes), f"{key.created_at:%Y-%m-%d %H:%M}", state)
    return table
