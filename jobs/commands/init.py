"""`nightlist init`: a nightlist.toml that says of every setting what it means and what it is by default."""

import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from jobs.commands.options import config_option, failing
from jobs.config import RootSettings, load_settings, settings_class
from jobs.stores import open_store
from schemas.errors import ConfigError
from schemas.settings import CassandraSettings

HEAD = """\
# Nightlist: recommendation lists made at night, published like a release, handed out by day.
# A line that begins with `#name =` shows a default; take the # away to change it. Paths count from this file.
# The environment wins over this file (NIGHTLIST_ALS__FACTORS=128), and --set over both (--set als.factors=128).
# Next: say in [input] and [events] where your data is, then `nightlist validate`.
"""
BARE = re.compile(r"[A-Za-z0-9_-]+")
"""A key that TOML takes without quotes."""
FIRST = ("input", "events", "items", "users", "blocks")


def template() -> str:
    """The file's text, made from the settings themselves, so that it can't fall behind them."""
    fields = settings_class().model_fields
    names = [*FIRST, *(name for name in fields if name not in FIRST)]
    return HEAD + "".join(_section(name, fields[name]) for name in names)


def _section(name: str, section: FieldInfo) -> str:
    cls = _model(section)
    assert cls, "every section is a model"
    title = (cls.__doc__ or "").strip().splitlines()[0]
    lines = [f"\n# {title}", f"[{name}]"]
    tables = {key: field for key, field in cls.model_fields.items() if _is_table(field)}
    for key, field in cls.model_fields.items():
        if key in tables:
            continue
        lines += [f"# {line.strip()}" for line in (field.description or "").splitlines()]
        shown = "#" if (name, key) != ("input", "events") else ""
        lines.append(f"{shown}{key} = {toml(field.get_default(call_default_factory=True))}")
    if name == "events":
        lines += ["#[[events.reject]]", '#reason = "cancelled"', "#where = \"InvoiceNo LIKE 'C%'\""]
    return "\n".join(lines) + "\n" + "".join(_section(f"{name}.{key}", field) for key, field in tables.items())


def _model(field: FieldInfo) -> type[BaseModel] | None:
    cls = field.annotation
    return cls if isinstance(cls, type) and issubclass(cls, BaseModel) else None


def _is_table(field: FieldInfo) -> bool:
    """Whether the value is worth a table of its own, and not a line."""
    cls = _model(field)
    return cls is not None and len(cls.model_fields) > 2


def toml(value: Any) -> str:
    """A plain value as TOML; None as an empty text, since TOML has no null."""
    if isinstance(value, BaseModel):
        return toml(value.model_dump())
    if isinstance(value, dict):
        members = [f"{key if BARE.fullmatch(key) else toml(key)} = {toml(each)}" for key, each in value.items()]
        return f"{{ {', '.join(members)} }}" if members else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(v) for v in value) + "]"
    if isinstance(value, date):
        return value.isoformat()
    plain = "" if value is None else str(value) if isinstance(value, Path | SecretStr) else value
    return json.dumps(plain, ensure_ascii=False)


@click.command()
@config_option
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@click.option(
    "--store",
    "make_store",
    is_flag=True,
    help="Instead, make the store that the file names: its folder, or its keyspace and the roles of night and service.",
)
@click.option(
    "--secrets",
    type=click.Path(file_okay=False, path_type=Path),
    help="With --store: folder for the roles' passwords; default: secrets/ beside the configuration.",
)
@click.option("--dry-run", is_flag=True, help="With --store: only show what would be made.")
def init(config: Path, force: bool, make_store: bool, secrets: Path | None, dry_run: bool) -> None:
    """Write a commented nightlist.toml, with every setting, its meaning and its default; or make the store."""
    if not make_store and (secrets or dry_run):
        raise click.UsageError("--secrets and --dry-run go with --store")
    with failing():
        if not make_store:
            _write(config, force)
        else:
            _make_store(load_settings(config), secrets or config.parent / "secrets", dry_run)


def _write(config: Path, force: bool) -> None:
    if config.exists() and not force:
        raise ConfigError(f"{config} exists already; --force overwrites it")
    try:
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(template(), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{config} can't be written: {error.strerror}; name another place with --config") from None
    click.echo(f"wrote {config}; next: set [input] events, then `nightlist validate --config {config}`", err=True)


def _make_store(settings: RootSettings, secrets: Path, dry_run: bool) -> None:
    cassandra = settings.store.cassandra if settings.store.backend == "cassandra" else None
    if dry_run:
        click.echo("\n".join(_planned(cassandra)) if cassandra else f"a folder {settings.store.path}")
        return
    store = open_store(settings.store)
    try:
        store.create()
    finally:
        store.close()
    if cassandra:
        _make_roles(cassandra, secrets)
    where = cassandra.keyspace if cassandra else settings.store.path
    click.echo(f"{settings.store.backend} is ready in {where}; next: `nightlist nightly --date ...`", err=True)


def _planned(cassandra: CassandraSettings) -> list[str]:
    from jobs.stores._roles import planned

    return planned(cassandra)


def _make_roles(cassandra: CassandraSettings, secrets: Path) -> None:
    from jobs.stores._roles import make_roles, password_file

    for told in make_roles(cassandra, secrets):
        click.echo(told, err=True)
    written = password_file(cassandra, secrets.resolve(), "publisher")
    if written.exists():
        click.echo(
            "in nightlist.toml of the night; for the service, with reader in the place of publisher:\n", err=True
        )
        click.echo(f'[store.cassandra]\nusername = "{written.name}"\npassword_file = "{written}"')
