"""The rules that hold the project together, executed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = Path(sys.executable).parent
FILES = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    "command",
    ["ruff check .", "ruff format --check .", "mypy", "lint-imports"],
)
def test_lint(command):
    """ruff, mypy (strict on schemas and lookup_api) and import-linter have nothing to say."""
    tool, *arguments = command.split()

    done = subprocess.run([str(TOOLS / tool), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_top_level_holds_what_was_asked_for():
    """Nothing but the packages, and what every repository has."""
    asked = {"pyproject.toml", "README.md", "jobs", "lookup_api", "schemas", "tests", "notebooks"}
    usual = {"Makefile", "LICENSE", "CHANGELOG.md"}

    found = {name.split("/")[0] for name in FILES}

    assert {name for name in found if not name.startswith(".")} <= asked | usual


def test_every_exception_to_a_rule_carries_its_reason():
    """`noqa` and `type: ignore` name the rule and, after two spaces or a dash, why."""
    for name in FILES:
        if name.endswith(".py"):
            for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
                found = re.search(r"#\s*(noqa|type: ignore)(.*)", line)
                if found and "re.search" not in line:
                    assert re.match(r"(: ?[A-Z]+[0-9]+|\[[a-z-]+\])\s+\S+", found[2]), (
                        f"{name}:{number}: {line.strip()}"
                    )


def test_nothing_is_pickled():
    """No pickle in anything stored or received."""
    for name in FILES:
        if name.endswith(".py") and not name.startswith("tests/"):
            assert not re.search(
                r"^\s*(import|from) (pickle|joblib|dill|cloudpickle)\b", (ROOT / name).read_text(), re.M
            )


def test_nightly_defines_no_class_and_no_udf():
    """It runs as __main__ under spark-submit, and what it defined would pickle as __main__'s."""
    text = (ROOT / "jobs" / "nightly.py").read_text()

    assert not re.search(r"^\s*class |\budf\b|lambda", text, re.M)


def test_the_readmes_commands_exist():
    """Every `nightlist X` and every `make X` that a README names is there, and the top README is short."""
    from jobs.cli import COMMANDS

    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for readme in (
        "README.md",
        "jobs/README.md",
        "jobs/CLUSTERS.md",
        "lookup_api/README.md",
        "lookup_api/DECISIONS.md",
    ):
        blocks = "\n".join(re.findall(r"```sh\n(.*?)```", (ROOT / readme).read_text(), re.S))
        assert set(re.findall(r"^nightlist ([a-z]+)", blocks, re.M)) <= set(COMMANDS), readme
        assert set(re.findall(r"^make ([a-z]+)", blocks, re.M)) <= targets, readme
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def test_the_readmes_configuration_is_valid(tmp_path):
    """The example for one's own data is read as it stands."""
    from jobs.config import load_settings

    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (tmp_path / "nightlist.toml").write_text(example)

    settings = load_settings(tmp_path / "nightlist.toml")

    assert [rule.reason for rule in settings.events.reject] == ["no_customer", "cancelled"]


def test_the_readmes_store_is_valid(tmp_path):
    """The examples, of which one is for Cassandra, are read as they stand, but for the place of the password."""
    from jobs.config import load_settings

    pages = "".join((ROOT / "jobs" / page).read_text() for page in ("README.md", "CLUSTERS.md"))
    example = "".join(re.findall(r"```toml\n(.*?)```", pages, re.S))
    (tmp_path / "secret").write_text("swordfish")
    (tmp_path / "nightlist.toml").write_text(example.replace("/run/secrets/cassandra", str(tmp_path / "secret")))

    store = load_settings(tmp_path / "nightlist.toml").store

    assert (store.backend, store.cassandra.password.get_secret_value()) == ("cassandra", "swordfish")


@pytest.mark.parametrize(
    "arguments",
    [
        "lookup --rounds 1 --lists 5000 --seconds 3 --burst-seconds 1 --load-rate 200",
        "retrieve --rounds 1 --users 512 --train-users 1000 --items 3000 --mllib-users 128",
        "train --rounds 1 --users 800 --items 400",
    ],
)
def test_benchmarks_run(arguments):
    """`python -m tests.bench NAME --json` prints one JSON object last, with a ratio that counts."""
    command = [sys.executable, "-m", "tests.bench", *arguments.split(), "--json"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    found = json.loads(done.stdout.splitlines()[-1])
    assert any(value > 0 for key, value in found.items() if key.startswith(("ratio", "speedup")))
