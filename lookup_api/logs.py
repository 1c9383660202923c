"""Log lines: JSON for machines, text for a terminal; both tell the request, and neither quotes an exception.

The words of an exception may hold what was asked for, an id above all, so a traceback shows types and places only.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, Literal

from flask import g, has_request_context

Format = Literal["auto", "json", "text"]

_USUAL = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
"""What every record has; the rest was given as `extra`."""


def configuration(format: Format) -> dict[str, Any]:
    """What logging.config.dictConfig makes of it: everything, the servers' messages too, goes to stderr in one format.

    Nobody's access log: servers log paths, and paths hold ids. Nor the driver's repetition of the server's warnings,
    which quote the query with its key.
    """
    as_text = format == "text" or (format == "auto" and sys.stderr.isatty())
    ours = {"handlers": [], "propagate": True, "level": "INFO"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"ours": {"()": TextFormatter if as_text else JsonFormatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": "ours"}},
        "root": {"handlers": ["stderr"], "level": "INFO"},
        "loggers": {
            "_granian": dict(ours),
            "granian.access": {"handlers": [], "propagate": False},
            "gunicorn.error": dict(ours),
            "gunicorn.access": {"handlers": [], "propagate": False},
            "cassandra": {"level": "WARNING"},
            "cassandra.protocol": {"level": "ERROR"},
            "cassandra.connection": {
                "level": "CRITICAL"
            },  # of an answer that it can't read it logs the bytes, ids among them
        },
    }


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, pid, request_id, what was given as extra, exception."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
            **_request(),
            **{name: value for name, value in vars(record).items() if name not in _USUAL},
        }
        if error := _error(record):
            facts["exception"] = without_words(error)
        return json.dumps(facts, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """A line for a person, with the traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        request_id = "".join(f" ({value})" for value in _request().values())
        line = f"{time} [{record.levelname}] {record.name}: {record.getMessage()}{request_id}"
        return f"{line}\n{without_words(error)}" if (error := _error(record)) else line


def without_words(error: BaseException) -> str:
    """The traceback of `error` and of what led to it: files, lines and types, and not what the exceptions say."""
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    before = f"{without_words(earlier)}\nwhich led to\n" if earlier else ""
    kind = type(error)
    return f"{before}{''.join(traceback.format_tb(error.__traceback__))}{kind.__module__}.{kind.__qualname__}"


def _error(record: logging.LogRecord) -> BaseException | None:
    return record.exc_info[1] if record.exc_info else None


def _request() -> dict[str, str]:
    """The id of the request that this thread answers, if it answers one."""
    return {"request_id": g.request_id} if has_request_context() and "request_id" in g else {}
