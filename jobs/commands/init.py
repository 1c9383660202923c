"""`nightlist init`: a nightlist.toml that says of every setting what it means and what it is by default."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jobs.commands.options import config_option, failing
from jobs.config import settings_class
from schemas.errors import ConfigError

HEAD = """\
# Nightlist: recommendation lists made at night, published like a release, handed out by day.
# A line that begins with `#name =` shows a default; take the # away to change it. Paths count from this file.
# Next: say in [input] and [events] where your data is, then `nightlist validate`.
"""
FIRST = ("input", "events", "items", "users", "blocks")


def template() -> str:
    """The file's text, made from the settings themselves, so that it can't fall behind them."""
    fields = settings_class().model_fields
    names = [*FIRST, *(name for name in fields if name not in FIRST)]
    return HEAD + "".join(_section(name, fields[name]) for name in names)


def _section(name: str, section: FieldInfo) -> str:
    cls = section.annotation
    assert isinstance(cls, type), "every section is a model"
    assert issubclass(cls, BaseModel), "every section is a model"
    title = (cls.__doc__ or "").strip().splitlines()[0]
    lines = [f"\n# {title}", f"[{name}]"]
    for key, field in cls.model_fields.items():
        lines += [f"# {line.strip()}" for line in (field.description or "").splitlines()]
        shown = "#" if (name, key) != ("input", "events") else ""
        lines.append(f"{shown}{key} = {toml(field.get_default(call_default_factory=True))}")
    if name == "events":
        lines += ["#[[events.reject]]", '#reason = "cancelled"', "#where = \"InvoiceNo LIKE 'C%'\""]
    return "\n".join(lines) + "\n"


def toml(value: Any) -> str:
    """A plain value as TOML; None as an empty text, since TOML has no null."""
    if isinstance(value, BaseModel):
        return toml(value.model_dump())
    if isinstance(value, dict):
        return (
            "{ " + ", ".join(f"{json.dumps(k) if '.' in k else k} = {toml(v)}" for k, v in value.items()) + " }"
            if value
            else "{}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(v) for v in value) + "]"
    if isinstance(value, date):
        return value.isoformat()
    return json.dumps("" if value is None else str(value) if isinstance(value, Path) else value)


@click.command()
@config_option
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def init(config: Path, force: bool) -> None:
    """Write a commented nightlist.toml, with every setting, its meaning and its default."""
    with failing():
        if config.exists() and not force:
            raise ConfigError(f"{config} exists already; --force overwrites it")
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(template(), encoding="utf-8")
        click.echo(f"wrote {config}; next: set [input] events, then `nightlist validate --config {config}`", err=True)
