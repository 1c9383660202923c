"""`nightlist tune` as a command: its figure is evaluate's, it goes on where it was killed, and it finds what is to be found."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from jobs.config import load_settings
from jobs.run import file_checksum, read_json
from tests.commands import ROOT, nightlist
from tests.nights import write_table

QUICK = ("--set", "dataset.parts=2", "--set", "als.iterations=5", "--seed", 3)


def crowd(folder: Path, users: int = 400, groups: int = 24, seed: int = 1) -> Path:
    """Everybody likes 6 of 8 items of each of three groups: two factors can't tell 24 groups apart."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        for group in rng.choice(groups, 3, replace=False):
            rows += [{"user_id": user, "item_id": int(8 * group + item)} for item in rng.choice(8, 6, replace=False)]
    return write_table(rows, folder / "T.parquet")


def tuned(train: Path, out: Path, *arguments: object, budget: float = 10) -> dict[str, Any]:
    ended = nightlist("tune", "--train", train, "--budget", budget, "--out", out, "--json", *QUICK, *arguments)
    assert ended.code == 0, ended.stderr
    return ended.json


def evaluated(train: Path, test: Path, config: Path, *arguments: object) -> dict[str, Any]:
    ended = nightlist("evaluate", "--train", train, "--test", test, "--config", config, "--json", *arguments)
    assert ended.code == 0, ended.stderr
    return ended.json


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, spark: SparkSession) -> tuple[Path, Path, dict[str, Any]]:
    """A crowd, F.toml, and what tune said."""
    folder = tmp_path_factory.mktemp("tune")
    train, out = crowd(folder), folder / "F.toml"
    # Worse than need be: two factors.
    return train, out, tuned(train, out, "--models", "als,popular", "--set", "als.factors=2")


METRICS = ("recall@20", "ndcg@20", "hit@20", "coverage@20", "users")


def test_its_figure_is_that_of_evaluate(site: tuple[Path, Path, dict[str, Any]]) -> None:
    """Exactly, on the files beside F.toml."""
    _, out, said = site
    found = evaluated(out.with_name("F.train.parquet"), out.with_name("F.valid.parquet"), out)

    assert {name: found[name] for name in METRICS} == {name: said[name] for name in METRICS}
    assert found["model"] == said["model"]


def test_too_few_factors_lose(site: tuple[Path, Path, dict[str, Any]]) -> None:
    """The configuration's two factors are tried first, and left for some that can tell the groups apart."""
    _, out, said = site
    (trials,) = [study for study in studies(out) if study.study_name == "als"]

    assert trials.trials[0].params["als.factors"] == 2
    assert load_settings(out).als.factors > 2
    assert said["ndcg@20"] > 1.2 * trials.trials[0].value


def test_the_search_judges_as_evaluate_does(site: tuple[Path, Path, dict[str, Any]]) -> None:
    """Everybody is judged here, and the best model's figure is the command's to a thousandth."""
    _, out, said = site
    chosen = load_settings(out).retrieve.models
    best = max(said["models"].values())

    assert said["users"] == said["users_known"]
    assert said["ndcg@20"] >= best - 1e-3
    if len(chosen) == 1:
        assert said["ndcg@20"] == pytest.approx(best, abs=1e-3)


def test_the_file_works_on_all_of_the_data(site: tuple[Path, Path, dict[str, Any]]) -> None:
    """F.toml with the whole training file and another test file; its models are those with a weight, taste among them."""
    train, out, _ = site
    found = evaluated(train, crowd(out.parent / "other", seed=2), out)
    settings = load_settings(out)

    assert found["ndcg@20"] > 0
    assert "als" in settings.retrieve.models
    assert all(settings.rank.weights[name] > 0 for name in settings.retrieve.models)


def test_it_says_what_it_tried(site: tuple[Path, Path, dict[str, Any]]) -> None:
    """F.md has a row a model and its best trials, F.png is a picture, and the split is all of the file."""
    train, out, said = site
    report = out.with_suffix(".md").read_text()

    assert f"NDCG@20 {said['ndcg@20']:.4f}" in report
    assert "| als |" in report
    assert "| als.factors |" in report
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    parts = [pq.read_table(out.with_name(f"F.{part}.parquet")) for part in ("train", "valid")]
    assert sum(part.num_rows for part in parts) == pq.read_metadata(train).num_rows


def test_a_search_that_is_done_is_not_done_again(site: tuple[Path, Path, dict[str, Any]]) -> None:
    """The same command says the same at once, and tries nothing."""
    train, out, said = site
    before = file_checksum(out.parent / "F.tune" / "journal.log")

    assert tuned(train, out, "--models", "als,popular", "--set", "als.factors=2") == said
    assert file_checksum(out.parent / "F.tune" / "journal.log") == before


def studies(out: Path) -> list[optuna.Study]:
    journal = optuna.storages.journal.JournalFileBackend(str(out.parent / "F.tune" / "journal.log"))
    storage = optuna.storages.JournalStorage(journal)
    return [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]


def test_equal_arguments_find_equal_settings(site: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    """From a file with its rows in another order, killed in the middle of its trials and started again."""
    train, out, said = site
    rows = pq.read_table(train)
    pq.write_table(rows.take(np.random.default_rng(5).permutation(rows.num_rows)), tmp_path / "T.parquet")
    arguments = ("--models", "als,popular", "--set", "als.factors=2")
    killed_in_a_trial(tmp_path / "T.parquet", tmp_path / "F.toml", *arguments)
    used = (read_json(tmp_path / "F.tune" / "clock.json") or {})["seconds"]
    again = tuned(tmp_path / "T.parquet", tmp_path / "F.toml", *arguments)

    assert used > 0
    assert read_json(tmp_path / "F.tune" / "clock.json")["seconds"] > used
    for name in ("F.train.parquet", "F.valid.parquet"):
        assert file_checksum(tmp_path / name) == file_checksum(out.with_name(name))
    assert {name: again[name] for name in METRICS} == {name: said[name] for name in METRICS}
    assert load_settings(tmp_path / "F.toml").model_dump(exclude={"paths", "input", "store"}) == load_settings(
        out
    ).model_dump(exclude={"paths", "input", "store"})


def killed_in_a_trial(train: Path, out: Path, *arguments: object) -> None:
    """The command in a process of its own, killed once three trials are done."""
    command = ["tune", "--train", train, "--budget", 10, "--out", out, "--json", *QUICK, *arguments]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *map(str, command)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    wait_for_trials(process, out)
    process.kill()
    process.wait()


def wait_for_trials(process: subprocess.Popen[Any], out: Path) -> None:
    deadline = time.monotonic() + 240
    while not finished(out) >= 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def finished(out: Path) -> int:
    """Trials of `als` that came to a result."""
    if not (out.parent / "F.tune" / "journal.log").exists():
        return 0
    done = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED
    return sum(len(study.get_trials(states=done)) for study in studies(out) if study.study_name == "als")


def test_ctrl_c_leaves_the_best_so_far(site: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    """F.toml is there, and evaluate takes it; the command says how to go on, and ends with 130."""
    train, _, _ = site
    out = tmp_path / "F.toml"
    command = ["tune", "--train", train, "--budget", 10, "--out", out, "--json", *QUICK, "--models", "als,popular"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *map(str, command)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_trials(process, out)
    process.send_signal(signal.SIGINT)
    said, told = process.communicate(timeout=60)

    assert (process.returncode, said) == (130, ""), told
    assert "the same command goes on" in told
    assert evaluated(out.with_name("F.train.parquet"), out.with_name("F.valid.parquet"), out)["ndcg@20"] > 0.1


def test_columns_and_kinds_of_events_are_those_of_the_configuration(spark: SparkSession, tmp_path: Path) -> None:
    """What was only shown is searched on no more than it is measured on, though F.toml stands alone."""
    liked = pq.read_table(crowd(tmp_path, 100)).rename_columns(["who", "item_id"]).to_pylist()
    shown = [{"who": row["who"], "item_id": 1000 + number % 50} for number, row in enumerate(liked)]
    rows = [row | {"event": "like"} for row in liked] + [row | {"event": "impression"} for row in shown]
    train, config, out = write_table(rows, tmp_path / "E.parquet"), tmp_path / "nightlist.toml", tmp_path / "F.toml"
    config.write_text(
        '[events]\ncolumns = { user_id = "who" }\nweights = { like = 3.0, "add to cart" = 4.0, "👍" = 1.0 }\n'
    )

    said = tuned(train, out, "--models", "popular", "--config", config, budget=0.2)
    found = evaluated(out.with_name("F.train.parquet"), out.with_name("F.valid.parquet"), out)

    assert said["users"] == 100
    assert said["hit@20"] > 0, "50 items were shown to more people than any was liked by"
    assert load_settings(out).events.weights == {"like": 3.0, "add to cart": 4.0, "👍": 1.0}
    assert evaluated(train, train, out, "--k", 5)["users"] == 0, "F.toml names the columns of the whole file, too"
    assert {name: found[name] for name in METRICS} == {name: said[name] for name in METRICS}


def test_what_is_wrong_is_named(site: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    """Another file or other arguments under the same --out, models that are none, files that are not there."""
    train, out, _ = site
    other = crowd(tmp_path, seed=9)
    base = {"--train": train, "--budget": 10, "--out": out, "--models": "als,popular", "--seed": 3}
    wrong: list[tuple[dict[str, object], int, str]] = [
        ({"--train": other}, 2, "another train"),
        ({"--seed": 4}, 2, "another seed (3, now 4)"),
        ({"--models": "als"}, 2, "another models"),
        ({"--k": 10}, 2, "another k (20, now 10)"),
        ({"--models": "svd"}, 2, "no model 'svd'"),
        ({"--models": "als_spark"}, 2, "trained by Spark"),
        ({"--budget": 0}, 2, "--budget 0"),
        ({"--budget": "inf"}, 2, "--budget inf"),
        ({"--budget": "nan"}, 2, "--budget nan"),
        ({"--seed": -1}, 2, "-1 is not in the range"),
        ({"--out": train / "F.toml"}, 2, "can't be written to"),
        ({"--out": tmp_path / "F"}, 2, "ends with .toml"),
        ({"--train": tmp_path / "nowhere.parquet", "--out": tmp_path / "G.toml"}, 1, "nowhere.parquet does not exist"),
    ]
    for changed, code, message in wrong:
        arguments = [part for pair in (base | changed).items() for part in pair]
        ended = nightlist(
            "tune",
            *arguments,
            "--json",
            "--set",
            "dataset.parts=2",
            "--set",
            "als.iterations=5",
            "--set",
            "als.factors=2",
        )
        assert (ended.code, ended.stdout) == (code, ""), changed
        assert message in ended.stderr, (changed, ended.stderr)
