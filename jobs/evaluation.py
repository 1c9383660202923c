"""Measuring lists on events that they were not trained on: the holdout, last night's lists, and `nightlist evaluate`.

The holdout goes through the same stages as the night, in a folder of its own.
"""

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.buckets import Buckets, read_all
from jobs.config import RootSettings, sections
from jobs.dataset import Dataset, column
from jobs.identity import end_of
from jobs.inputs import Inputs
from jobs.metrics import Metrics, measure
from jobs.models import CandidateModel, columns
from jobs.models.popular import Model as Popular
from jobs.run import Counts, RunFolder
from jobs.stages import dataset, rank, rerank, retrieve, train
from jobs.units import Proposers
from schemas.columns import ITEM_ID, ITEMS, TS, USER_ID
from schemas.lists import ALL
from schemas.settings import Section

WEIGHT = "weight"


def holdout(
    out: Path,
    run: RunFolder,
    buckets: Buckets,
    events: DataFrame,
    users: int,
    inputs: Inputs,
    settings: RootSettings,
    day: date,
) -> Counts:
    """Train on a seeded sample of users' events before `day`, by the night's code and settings, and score on `day`.

    `users` is how many there are. Counts hold the metrics, those of popularity alone among them, or none where nothing can be measured.
    """
    if not settings.holdout.users:
        return {"rows": 0, "metrics": None, "off": True}
    sampled = events.where(_in_sample(min(1.0, settings.holdout.users / max(users, 1)), settings.train.seed))
    before, test = split(sampled, day)
    if not test.num_rows or not before.where(F.col(WEIGHT) > 0).head(1):
        return {"rows": 0, "metrics": None}
    inner = run.within(out.name)
    lists = recommend(inner, buckets, before, inputs, settings, day - timedelta(days=1))
    return {"rows": test.num_rows, "metrics": score(inner.folder, lists, test, settings)}


def split(events: DataFrame, day: date) -> tuple[DataFrame, pa.Table]:
    """Events before `day`, and the (user_id, item_id) pairs that are new on `day`: positive then, and not before."""
    begin = F.lit(end_of(day) - timedelta(days=1))
    before = events.where(F.col(TS) < begin)
    pairs = [
        events.where(when & (F.col(WEIGHT) > 0)).select(USER_ID, ITEM_ID)
        for when in (F.col(TS) >= begin, F.col(TS) < begin)
    ]
    new = pairs[0].distinct().join(pairs[1], [USER_ID, ITEM_ID], "left_anti")
    return before, new.orderBy(USER_ID, ITEM_ID).toArrow()


def recommend(
    run: RunFolder, buckets: Buckets, events: DataFrame, inputs: Inputs, settings: RootSettings, day: date
) -> Path:
    """Stages 2 to 6 on these events; returns the folder of lists."""
    names = settings.retrieve.models
    everybody = _without_shared_lists(sections(settings), inputs)
    segments = columns(names, everybody)
    data = run.stage("dataset", dataset.assemble, buckets, events, inputs, settings.dataset, day, segments)
    trained = run.stage("train", train.fit, data, (*names, "popular"), everybody, segments, settings.train)
    n, seed = settings.retrieve.candidates, settings.train.seed
    found = run.stage("retrieve", retrieve.find, buckets, data, trained, names, n, seed, False)
    proposers = Proposers(data, trained, names, n, seed)
    ranked = run.stage("rank", rank.blend, buckets, data, found, proposers, settings.rank)
    return run.stage("rerank", rerank.rules, buckets, data, ranked, settings.rerank.n)


def _without_shared_lists(models: dict[str, Section], inputs: Inputs) -> dict[str, Section]:
    """The models' sections, but only personal lists are measured; and files have no table of users to take segments from."""
    unused = ["popular"] if inputs.users else ["popular", "segment"]
    return models | {name: models[name].model_copy(update={"segments": ()}) for name in unused}


def score(folder: Path, lists: Path, test: pa.Table, settings: RootSettings) -> Metrics:
    """Metrics of the lists, and the same of popularity alone (`popular_ndcg@k`), from a folder that `recommend` filled."""
    data, k = Dataset(folder / "dataset"), settings.holdout.k
    item_ids, popular = data.item_ids(), Popular.load(folder / "train" / "popular")
    top = next(iter(popular.lists(data.eligible(), k)))
    fallback = item_ids.take(pa.array(top.items)).to_pylist()
    metrics = measure(_personal(lists, item_ids), test, fallback, len(item_ids), k)
    baseline = measure(_by_model(data, popular, k), test, fallback, len(item_ids), k)
    return metrics | {f"popular_ndcg@{k}": baseline[f"ndcg@{k}"], "items": len(item_ids)}


def served_previous(
    out: Path, parent: RunFolder | None, events: DataFrame, settings: RootSettings, day: date
) -> Counts:
    """Score last night's live lists on what users did on `day`; written to that run's folder too."""
    if parent is None:
        return {"rows": 0, "metrics": None}
    if not parent.whole("build"):
        return {"rows": 0, "metrics": None, "why": f"build of {parent.run_id} is not what was written"}
    built, k = parent.folder / "build", settings.holdout.k
    _, test = split(events, day)
    popular = pq.read_table(built / "popular.parquet", filters=[("key", "=", ALL)])[ITEMS].to_pylist()
    items = parent.record("dataset")
    catalogue = items.counts["items"] if items else 0
    metrics = measure(_served(built), test, popular[0] if popular else [], catalogue, k)
    parent.write("served.json", {"day": day.isoformat(), "metrics": metrics})
    return {"rows": test.num_rows, "run_id": parent.run_id, "metrics": metrics if test.num_rows else None}


def _in_sample(share: float, seed: int) -> Column:
    return F.pmod(F.xxhash64(F.lit(seed), USER_ID), F.lit(1_000_000)) < int(share * 1_000_000)


def _personal(lists: Path, item_ids: pa.StringArray) -> Iterator[pa.Table]:
    """Lists of item numbers as lists of ids; users who have none at all are left to the fallback."""
    for table in read_all(lists, [USER_ID, ITEMS]):
        yield _with_ids(table, item_ids)


def _by_model(data: Dataset, model: CandidateModel, k: int) -> Iterator[pa.Table]:
    """One model's lists of the dataset's users."""
    item_ids = data.item_ids()
    for bucket in range(data.parts):
        user_ids, users = data.bucket(bucket)
        entries = retrieve.merge(users, {"": model}, k)
        yield _with_ids(entries.table(user_ids), item_ids)


def _with_ids(table: pa.Table, item_ids: pa.StringArray) -> pa.Table:
    numbers = column(table, ITEMS)
    ids = pa.ListArray.from_arrays(numbers.offsets, item_ids.take(numbers.values))
    return pa.table({USER_ID: column(table, USER_ID), ITEMS: ids})


def _served(built: Path) -> Iterator[pa.Table]:
    for table in read_all(built, ["key", ITEMS]):
        yield table.rename_columns([USER_ID, ITEMS])
