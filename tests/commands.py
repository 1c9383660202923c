"""The console script as tests call it: in this process, so that it shares Spark, or in one of its own."""

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient

from jobs.cli import main
from lookup_api import create_app
from lookup_api.readers import open_reader
from lookup_api.service import EXTENSION
from schemas.lists import ServedList
from tests.nights import Place, read_json_line

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """The JSON line, which is all that stands on stdout."""
        assert len(self.stdout.splitlines()) == 1, self.stdout
        return read_json_line(self.stdout)


def nightlist(*arguments: object) -> Ended:
    """The console script, in this process, so that it shares Spark."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["nightlist", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Ended(code, out.getvalue(), err.getvalue())


def process(*arguments: object, env: Mapping[str, str] | None = None) -> Ended:
    """The console script in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, env=env
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def all_served(found: Place) -> dict[tuple[str, str], ServedList]:
    """Every list of the live run."""
    reader = open_reader(found.settings().store)
    try:
        release = reader.release()
        return {(served.kind, served.key): served for served in reader.scan(release.run_id)} if release else {}
    finally:
        reader.close()


def free_port(*hosts: str) -> int:
    """A port that nobody listens at, on each of the addresses."""
    first, *others = hosts or ("127.0.0.1",)
    while True:
        with socket.socket() as found, ExitStack() as stack:
            found.bind((first, 0))
            port = int(found.getsockname()[1])
            with suppress(OSError):  # where another address has it taken, the next try finds another one
                for host in others:
                    stack.enter_context(socket.socket()).bind((host, port))
                return port


@contextmanager
def asking(config: Path) -> Iterator[FlaskClient]:
    """A client of the lookup API in this process, which leaves no thread behind."""
    app = create_app(config)
    try:
        yield app.test_client()
    finally:
        app.extensions[EXTENSION].close()


@contextmanager
def serving(config: Path, ready: str = "/readyz", under: Sequence[str] = ()) -> Iterator[int]:
    """`nightlist serve` on loopback, in a process of its own, by way of the command `under`; hands out its port once `ready`
    answers with 200."""
    port = free_port()
    command = [*under, sys.executable, "-m", "jobs.cli", "serve", "--config", str(config), "--port", str(port)]
    with (config.parent / "serve.log").open("w") as log:
        environment = {**os.environ, "NIGHTLIST_SERVE__DRAIN_SECONDS": "0"}
        server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
    try:
        deadline = time.monotonic() + 30
        while not _is_ready(port, ready):
            assert server.poll() is None, (config.parent / "serve.log").read_text()
            assert time.monotonic() < deadline, (config.parent / "serve.log").read_text()
            time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait(20)


def _is_ready(port: int, path: str) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}{path}", timeout=5).status_code == 200
    except requests.RequestException:
        return False
