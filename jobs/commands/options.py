"""What commands share: options, how errors end them, and the JSON line for machines."""

import json
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import click
from rich.console import Console

from schemas.errors import ConfigError, NightlistError
from schemas.settings import CONFIG_FILE, CONFIG_VARIABLE

ReportType = TypeVar("ReportType", bound="Reporting")


class Reporting(Protocol):
    """A report that can be printed however its command ends."""

    error: str | None
    shown_after_error: ClassVar[bool]
    """Whether it has something to show to people after an error, too."""

    def line(self) -> dict[str, Any]:
        """For machines: one JSON object."""

    def show(self, console: Console) -> None:
        """For people."""


class Day(click.ParamType):
    """A day such as 2026-11-20."""

    name = "yyyy-mm-dd"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        """The date, or a usage error that names the value."""
        try:
            return date.fromisoformat(value) if isinstance(value, str) else value
        except ValueError:
            self.fail(f"{value!r} is no day; expected e.g. 2026-11-20", param, ctx)


as_day = Day()

config_option = click.option(
    "--config",
    "-c",
    type=click.Path(dir_okay=False, path_type=Path),
    default=CONFIG_FILE,
    show_default=True,
    envvar=CONFIG_VARIABLE,
    help="The configuration; `nightlist init` writes one.",
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Set one setting, e.g. als.factors=128; repeatable.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line of stdout.")


class Terminated(SystemExit):
    """SIGTERM came: the command ends as it does on an error, so that a lease is given back and the summary is printed."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises Terminated in here, once: Python would end on the spot, and a publisher's lease would live on."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


@contextmanager
def interruptible(ended: NightlistError) -> Iterator[None]:
    """Ctrl-C is an end like others: it raises `ended`, whose exit code is what shells make of it.

    To be entered after Spark is up: its handler calls Spark from within a call to Spark, and tells at length that it can't.
    """
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        raise ended from None
    finally:
        signal.signal(signal.SIGINT, before)
        logging.disable(logging.NOTSET)


def _interrupt(*_: object) -> None:
    logging.disable(logging.CRITICAL)  # py4j logs a traceback of every call that it was torn from
    raise KeyboardInterrupt


@contextmanager
def failing() -> Iterator[None]:
    """End the command with the error's message and exit code, without a traceback where the error is one of ours."""
    try:
        yield
    except NightlistError as error:
        _say(error)
        sys.exit(error.exit_code)


@contextmanager
def reporting(report: ReportType, as_json: bool) -> Iterator[ReportType]:
    """Print the report however the command ends (but for errors of usage and configuration), and exit with the error's code."""
    code = 0
    try:
        with terminable():
            yield report
    except ConfigError as error:
        _say(error)
        sys.exit(error.exit_code)
    except Terminated:
        report.error, code = "ended by SIGTERM; the same command goes on from there", 128 + signal.SIGTERM
        click.echo(f"error: {report.error}", err=True)
    except Exception as error:
        report.error, code = told(error)
    if as_json:
        print_json(report.line())
    elif not code or report.shown_after_error:
        report.show(Console(highlight=False))
    sys.exit(code)


def told(error: Exception) -> tuple[str, int]:
    """Says on stderr what went wrong, with a traceback where it is no error of ours; returns its one line and its exit code."""
    if isinstance(error, NightlistError):
        _say(error)
        return str(error), error.exit_code
    traceback.print_exception(error)
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}", 1


@contextmanager
def as_json_line(as_json: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Hands out a function that prints the result: one JSON line, or a line a value; errors of ours end the command."""

    def say(values: dict[str, Any]) -> None:
        if as_json:
            print_json(values)
        else:
            for name, value in values.items():
                click.echo(f"{name:<18}{value:.4f}" if isinstance(value, float) else f"{name:<18}{value}")

    with failing():
        yield say


def print_json(values: dict[str, Any]) -> None:
    """One line on stdout, all that stands there for machines."""
    click.echo(json.dumps(values, ensure_ascii=False, default=str))


def _say(error: NightlistError) -> None:
    click.echo(f"error: {error}", err=True)
