"""One night: from raw events to published lists. `spark-submit jobs/nightly.py` and `nightlist nightly` both run this file.

It runs as `__main__` under spark-submit, where what it defined would pickle as `__main__`'s: no classes and no UDFs here.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # a script's own folder comes first on the path, and jobs/ holds names that others use too
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import hashlib
import time
from collections.abc import Callable
from datetime import date, datetime
from typing import TYPE_CHECKING

import click

from jobs.buckets import Buckets
from jobs.commands.options import as_day, config_option, json_option, reporting, set_option
from jobs.config import RootSettings, load_settings, sections
from jobs.evaluation import holdout, served_previous
from jobs.identity import Identity, identify
from jobs.inputs import Inputs, check_rules, read_inputs
from jobs.lists import BuiltLists
from jobs.manifest import Report, facts_of, write_manifest
from jobs.models import columns
from jobs.origin import Origin, origin_of
from jobs.progress import Progress, Terminal
from jobs.run import MANIFEST, ROLLED_BACK, STARTED, RunFolder, now, parent_of
from jobs.spark import session
from jobs.stages import build, dataset, due, events, gate, publish, rank, rerank, retrieve, train
from jobs.stores import open_store
from jobs.units import Proposers
from lookup_api.readers import open_reader
from schemas.runs import RunState

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def make(
    settings: RootSettings,
    day: date,
    report: Report,
    progress: Progress,
    clock: Callable[[], datetime] = now,
    override: str | None = None,
) -> None:
    """Make the night of `day` and publish it; what an earlier try of the same run finished is not done again.

    `report` is filled on the way. Raises NightlistError; whatever it is, last night's lists go on being served.
    """
    spark, inputs = opened(settings)
    parent = parent_of(settings.paths.runs, day)
    origin = origin_of(parent, settings)
    identity = identify(inputs, settings, day, origin.taken)
    run, buckets = begun(spark, identity, settings, progress)
    report.run = run
    with run.lock():
        if run.read(ROLLED_BACK):
            report.state = RunState.BAD
            raise publish.bad(run.run_id)
        lists(run, identity, buckets, inputs, parent, origin, settings, clock)
        judge(run, identity, buckets, parent, settings, report, override)
        release(run, buckets, settings, report, clock)


def opened(settings: RootSettings) -> tuple["SparkSession", Inputs]:
    """Spark, and the tables with their columns. Raises ConfigError and InputError: what is wrong here is wrong for every day."""
    spark = session(settings.spark)
    inputs = read_inputs(spark, settings)
    check_rules(inputs, settings)
    return spark, inputs


def begun(
    spark: "SparkSession", identity: Identity, settings: RootSettings, progress: Progress
) -> tuple[RunFolder, Buckets]:
    """The run's folder, which is not made yet, and its buckets."""
    run = RunFolder(settings.paths.runs / identity.run_id, identity.digest, progress)
    progress.note(f"run {run.run_id} in {run.folder}")
    return run, Buckets(spark, run.digest, settings.dataset.parts, progress)


def lists(
    run: RunFolder,
    identity: Identity,
    buckets: Buckets,
    inputs: Inputs,
    parent: RunFolder | None,
    origin: Origin,
    settings: RootSettings,
    clock: Callable[[], datetime],
) -> None:
    """Stages 1 to 7, and the night's two measurements: the run exists, with its manifest."""
    day, models, n = identity.day, settings.retrieve.models, settings.rerank.n
    everyone = tuple(dict.fromkeys((*models, "popular", "similar")))  # also those whose own lists are served
    segments = columns(everyone, sections(settings))
    started = _started(run, clock)

    cleaned = run.stage("events", events.clean, inputs.events, settings.events, day)
    kept = buckets.spark.read.parquet(str(cleaned / events.KEPT))
    data = run.stage("dataset", dataset.assemble, buckets, kept, inputs, settings.dataset, day, segments)
    run.stage("served_previous", served_previous, parent, kept, settings, day, salt=parent.run_id if parent else "")
    trained = run.stage("train", train.fit, data, everyone, sections(settings), segments, settings.train, origin.models)
    chosen = run.stage("due", due.select, buckets, data, origin, settings.incremental, n, day)
    scored = chosen if origin.folder else data
    wanted, seed = settings.retrieve.candidates, settings.train.seed
    candidates = run.stage("retrieve", retrieve.find, buckets, scored, trained, models, wanted, seed, True)
    proposers = Proposers(data, trained, models, wanted, seed)
    ranked = run.stage("rank", rank.blend, buckets, scored, candidates, proposers, settings.rank)
    reranked = run.stage("rerank", rerank.rules, buckets, scored, ranked, n)
    users = run.counts("dataset")["rows"]
    run.stage("holdout", holdout, run, buckets, kept, users, inputs, settings, day)
    run.stage("build", build.assemble, buckets, data, reranked, origin.lists, trained, everyone, n, started)
    if not run.read(MANIFEST):
        write_manifest(run, identity, RunState.BUILT, verdict=None)


def judge(
    run: RunFolder,
    identity: Identity,
    buckets: Buckets,
    parent: RunFolder | None,
    settings: RootSettings,
    report: Report,
    override: str | None,
) -> None:
    """Stage 8. Raises Refused where the verdict is stop and nobody overrode it."""
    report.state = RunState.BUILT
    against = f"{settings.gate.model_dump_json()} {parent.run_id if parent else ''}"
    last = facts_of(parent) if parent else None
    salt = hashlib.sha256(against.encode()).hexdigest()
    data, built = run.folder / "dataset", run.folder / "build"
    run.stage("gate", gate.judge, buckets, data, built, facts_of(run), last, settings.gate, salt=salt)
    verdict = run.counts("gate")["verdict"]
    if verdict["status"] == "stop" and override:
        verdict = verdict | {"status": "overridden", "reason": override}
    report.verdict = verdict
    refused = verdict["status"] == "stop"
    report.state = RunState.REFUSED if refused else RunState.BUILT
    write_manifest(run, identity, report.state, verdict)
    if refused:
        raise gate.refusal(run.run_id, verdict)


def release(
    run: RunFolder, buckets: Buckets, settings: RootSettings, report: Report, clock: Callable[[], datetime]
) -> None:
    """Stage 9: the run is live."""
    start = time.monotonic()
    store, reader = open_store(settings.store), open_reader(settings.store)
    try:
        with publish.publishing(store, reader, settings.store, clock) as publisher:
            built = BuiltLists(run.folder / "build", buckets.spark)
            publish.publish(publisher, run, built, run.progress)
    except Exception as error:
        report.state = getattr(error, "state", None) or report.state
        raise
    finally:
        reader.close()
        store.close()
    report.state = RunState.LIVE
    report.seconds["publish"] = round(time.monotonic() - start, 3)
    run.progress.finished("publish", {"rows": run.counts("build")["rows"]}, report.seconds["publish"])


def _started(run: RunFolder, clock: Callable[[], datetime]) -> datetime:
    """When the run was first started: the time its lists carry, however often it is started again."""
    if not run.read(STARTED):
        run.write(STARTED, {"at": clock().isoformat(timespec="milliseconds")})
    return datetime.fromisoformat((run.read(STARTED) or {})["at"])


@click.command()
@config_option
@click.option("--date", "day", required=True, type=as_day, help="The day D whose events are the last that count (UTC).")
@set_option
@click.option("--override", metavar="REASON", help="Publish although the gate says stop; the reason is recorded.")
@json_option
def nightly(config: Path, day: date, overrides: tuple[str, ...], override: str | None, as_json: bool) -> None:
    """Make one night's lists and publish them.

    Started again after a crash, it goes on where it stopped. Exit codes: 0 live, 1 bad input or another error, 2 usage or
    configuration, 3 refused, 4 another night or publisher is at work, 5 the store can't be reached.
    """
    with reporting(Report(), as_json) as report:
        make(load_settings(config, overrides), day, report, Terminal(), override=override)


if __name__ == "__main__":
    nightly()
