"""The demo, and the notebook that looks at its run."""

from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner, Result
from nbclient import NotebookClient

from jobs.cli import cli
from tests.nights import read_json_line

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory, spark) -> tuple[Path, Result, Result]:
    """Its folder, what it shows a person, and what it tells a machine when it is run again."""
    folder = tmp_path_factory.mktemp("demo")
    command = ["demo", "--folder", str(folder), "--users", "400"]
    return folder, CliRunner().invoke(cli, command), CliRunner().invoke(cli, [*command, "--json"])


def test_the_demo_shows_three_users_and_what_to_type_next(demo):
    """Three tables of what was watched and what is given, the margin over popularity, and commands to go on with."""
    _, shown, _ = demo

    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count(" watched") == 3
    assert "popularity alone" in shown.stdout
    assert "nightlist serve" in shown.stdout
    assert shown.stdout.count(": ") > 3 * 8  # what a video is about, before its title


def test_the_demo_tells_machines_the_same(demo):
    """--json prints the night's line last, and nothing else on stdout; lists beat popularity on the held-out day."""
    _, _, told = demo

    line = read_json_line(told.stdout)

    assert len(told.stdout.strip().splitlines()) == 1
    assert (line["state"], line["verdict"]["status"]) == ("LIVE", "pass")
    assert line["users"] == sum(line["outcomes"].values()) > 300
    assert line["metrics"]["holdout"]["ndcg@20"] > line["metrics"]["holdout"]["popular_ndcg@20"]


def test_the_demo_leaves_alone_what_is_not_its_own(demo, tmp_path):
    """A configuration that somebody wrote or changed, and a world of another size: usage errors that name the way out."""
    folder, _, _ = demo
    (tmp_path / "nightlist.toml").write_text("[als]\nfactors = 8\n")
    for where, users, message in (tmp_path, 400, "would be lost"), (folder, 500, "is of 400 users, not of 500"):
        refused = CliRunner().invoke(cli, ["demo", "--folder", str(where), "--users", str(users)])
        assert (type(refused.exception), refused.exit_code) == (SystemExit, 2), refused.output
        assert message in refused.stderr
    assert (tmp_path / "nightlist.toml").read_text() == "[als]\nfactors = 8\n"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(demo, path, monkeypatch):
    """Every notebook runs from top to bottom on the demo's run."""
    folder, _, _ = demo
    monkeypatch.setenv("NIGHTLIST_CONFIG", str(folder / "nightlist.toml"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(path, as_version=4)

    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()

    assert all(cell.get("execution_count") for cell in notebook.cells if cell.cell_type == "code")


def test_notebooks_define_nothing():
    """Notebooks import the project's functions and define none."""
    for path in NOTEBOOKS:
        source = "".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
        assert not any(line.startswith(("def ", "class ")) for line in source.splitlines()), path.name
