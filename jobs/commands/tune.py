"""`nightlist tune`: good settings for every model and for their blend, found on a split of the training file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq

from jobs.buckets import Buckets
from jobs.commands.evaluate import BLEND, choose, cleaned, counting, events_of, for_files, measure, new_pairs
from jobs.commands.options import Terminated, as_json_line, interruptible, json_option, set_option, terminable
from jobs.config import RootSettings, TrainSettings, digest_of, load_settings
from jobs.identity import code_digest
from jobs.inputs import Inputs
from jobs.models import Candidates
from jobs.progress import Progress, Terminal
from jobs.run import RunFolder, file_checksum, read_json, write_json
from jobs.spark import session
from jobs.stages import dataset
from jobs.tuning.blend import Blend, Pool, search, study_of
from jobs.tuning.budget import Budget
from jobs.tuning.files import Files, identity, write_config
from jobs.tuning.ground import PLAIN, Ground
from jobs.tuning.plan import chosen_models, fit_sections
from jobs.tuning.report import values, write_plot, write_report
from jobs.tuning.split import split
from jobs.tuning.studies import Study, key_of
from jobs.tuning.trials import MARGIN, Models
from jobs.tuning.worker import Failed, Worker
from schemas.columns import EVENT, ITEM_ID, TS, USER_ID, VALUE
from schemas.errors import ConfigError, InputError, NightlistError

EVALUATION = 2.5
"""What `evaluate` costs next to fitting and judging, in times of its first two stages, which were done once already."""
SOON = 10.0
"""Seconds that any fit may take, to start what fits it, too."""
BLEND_SHARE, BLEND_SECONDS = 0.1, 120.0
"""What is kept for the blend: of the budget, and at most."""


class Stopped(NightlistError):
    """Ctrl-C."""

    exit_code = 130


@dataclass
class Search:
    """One search, from the files to the settings; what it has found so far stands on disk."""

    files: Files
    settings: RootSettings
    names: tuple[str, ...]
    k: int
    seed: int
    budget: Budget
    progress: Progress
    models: Models | None = None
    blend: Blend | None = None
    blend_study: Study | None = None
    fitted: tuple[str, ...] = ()
    """Models that the blend was found of."""

    @property
    def run(self) -> RunFolder:
        """The stages whose output is searched on."""
        return RunFolder(self.files.work, "tune", self.progress)

    def prepare(self, train: Path) -> None:
        """Split the file, and put its training part through the night's first two stages."""
        spark = session(self.settings.spark)
        self._split(events_of(spark, train, "train", self.settings))
        parts = (self.files.train, self.files.valid)
        known, asked = (events_of(spark, part, "out", RootSettings()) for part in parts)
        settings, day = for_files(self.settings, known)
        buckets = Buckets(spark, self.run.digest, settings.dataset.parts, self.progress)
        plain = settings.dataset.model_copy(update=PLAIN.model_dump(include={"scale", "half_life_days"}))
        kept = cleaned(self.run, known, settings, day)
        self.run.stage("dataset", dataset.assemble, buckets, kept, Inputs(known, None, None, None), plain, day)
        if not self.pairs.exists():
            draft = self.pairs.with_suffix(".draft")
            pq.write_table(new_pairs(known, asked, settings.events), draft)
            draft.replace(self.pairs)
        self.budget.save()

    def search(self) -> None:
        """First the models, then their blend."""
        worker = Worker(*self._ground)
        try:
            about = worker.ask({"do": "about", "with": {}}, max(60.0, self.budget.left))
            if not about["users"]:
                raise InputError(
                    f"nothing to validate on: nobody has an item in {self.files.valid} that is not in {self.files.train}"
                )
            self.progress.note("  ".join(f"{name} {value:,}" for name, value in about.items() if name != "seconds"))
            self.models = Models(
                self.settings,
                self.names,
                worker,
                self.budget,
                self.progress,
                self.files.journal,
                self.seed,
                self.k,
                about,
                self.reserved,
            )
            with self.progress.watch("tune (s)", int(self.budget.seconds), lambda: int(self.budget.used)):
                self.models.search()
                self.blended()
        finally:
            worker.end()

    def blended(self) -> None:
        """Fit each model once more as it was best, the best one first, and search the blend of their candidates."""
        if not self.models.best():
            self.progress.note(
                "no trial ended in time: the settings stay as they were; a larger --budget goes on from here"
            )
        found: dict[str, Candidates] = {}
        units: dict[str, float] = {}
        for name in self.models.best():
            if lists := self.lists(name, (*found, name)):
                found[name], units[name] = lists
        self.fitted = tuple(found)
        if len(found) > 1:
            pool = Pool(found, units, Ground.load(*self._ground), self.k)
            key = key_of([fit_sections(self.models.found(), name) for name in found])  # other candidates, another blend
            study = partial(Study, self.files.journal, f"{BLEND}-{key}", seed=self.seed)
            self.blend_study = study_of(study, pool, self.settings.rank)
            blend = search(pool, self.blend_study, self.settings.rank, self._time_to_blend)
            self.progress.note(f"{BLEND:<12} NDCG@{self.k} {blend.value:.4f}   {self.budget.told()}")
            better = [
                name for name, trial in self.models.best().items() if name not in found and trial.value > blend.value
            ]
            self.blend = None if better else blend
            if better:
                self.progress.note(f"{better[0]:<12} is better alone")

    def lists(self, name: str, beside: Sequence[str]) -> tuple[Candidates, float] | None:
        """The candidates of the users that are judged, by the model under the settings found, and the unit of its scores; None where
        that is no longer possible, or leaves no time to measure a blend of the models `beside` it and its own; the first one gets
        what it takes."""
        sections, path = fit_sections(self.models.found(), name), self.models.lists_of(name)
        try:
            if not path.exists():
                fit, user = self.models.costs(name)
                needed = MARGIN * (fit + user * self.models.about["users"])
                left = self.budget.left - self._evaluation(beside)
                if needed > left and len(beside) > 1:
                    raise Failed("there is no time left to fit it once more, and again when the blend is measured")
                deadline = self.budget.used + max(left, needed, SOON)
                self.models.asked("fit", {"name": name, "sections": sections}, deadline)
                self.models.asked("lists", {"n": self.settings.retrieve.candidates, "path": str(path)}, deadline)
        except Failed as error:
            self.progress.note(f"{name:<12} is not in the blend: {error}")
            return None
        with np.load(path) as found:
            return Candidates(found["items"], found["scores"]), float(found["unit"])

    def found(self) -> RootSettings:
        """The settings to go on with: the best of each model, and a blend, or the best model alone."""
        best = self.models.best()
        if not best:
            return self.settings
        settings = self.models.found()
        rank, chosen = settings.rank, tuple(best)[:1]
        if self.blend:
            rank = self.blend.settings
            chosen = tuple(name for name in best if name in rank.weights)
        retrieve = settings.retrieve.model_copy(update={"models": chosen})
        return settings.model_copy(update={"retrieve": retrieve, "rank": rank})

    def write(self, figure: str) -> RootSettings:
        """F.toml, read back as `evaluate` reads it, F.md and F.png."""
        found = self.found()
        tuned = [key for study in self.models.studies.values() for key in study.ranges]
        tuned += ["retrieve.models", *(f"rank.{key}" for key in type(found.rank).model_fields if self.blend)]
        write_config(self.files, found, tuned, figure, self.k)
        write_report(self.files.beside(".md"), self.models, self.blend, figure, found.retrieve.models)
        write_plot(self.files.beside(".png"), self.models, self.blend_study.finished() if self.blend_study else ())
        return choose(load_settings(self.files.out), None, self.k)

    def stopped(self) -> None:
        """Write the best so far; what a smaller budget found and measured stays."""
        if self.models and not self.result.exists():
            self.files.unlock()
            self.models.open()
            self.blend_study = None
            self.write(f"stopped after {self.budget.told()} and not measured; the same command goes on")

    def told(self, measured: dict[str, Any]) -> dict[str, Any]:
        """The result: what `evaluate` says, and what was found; F.toml and F.md are written anew with the figure."""
        figure = f"NDCG@{self.k} {measured[f'ndcg@{self.k}']:.4f} on the validation part, after {self.budget.told()}"
        chosen = self.found().retrieve.models
        self.write(figure)
        self.budget.save()
        model = BLEND if len(chosen) > 1 else chosen[0]
        return {"model": model, "config": str(self.files.out)} | measured | values(self.models, self.blend)

    def reserved(self, models: Models) -> float:
        """Seconds that are to be left for what comes after the models' search."""
        to_fit = [name for name in models.best() if not models.lists_of(name).exists()]
        again = sum(fit + user * models.about["users"] for fit, user in map(models.costs, to_fit))
        blend = min(BLEND_SHARE * self.budget.seconds, BLEND_SECONDS)
        after = MARGIN * again + blend + self._evaluation(tuple(models.best()))
        return min(after, self.budget.seconds / 2)  # a short budget is better spent late than on nothing

    @property
    def result(self) -> Path:
        """What was measured in the end, of F.toml as it stands."""
        return self.files.work / "result.json"

    @property
    def pairs(self) -> Path:
        """The pairs held out."""
        return self.files.work / "pairs.parquet"

    @property
    def _ground(self) -> tuple[Path, Path, int, TrainSettings]:
        return self.files.work / "dataset", self.pairs, self.seed, self.settings.train

    def _evaluation(self, names: Sequence[str]) -> float:
        """Seconds that the last evaluation of a blend of these models will take: all users."""
        stages = sum(record.seconds for name in ("events", "dataset") if (record := self.run.record(name)))
        costs, everybody = map(self.models.costs, names), self.models.about["everybody"]
        return EVALUATION * stages + MARGIN * sum(fit + user * everybody for fit, user in costs)

    def _time_to_blend(self) -> bool:
        return self.budget.left > self._evaluation(self.fitted)

    def _split(self, events: Any) -> None:
        record, files = self.files.work / "split.json", (self.files.train, self.files.valid)
        if all(path.exists() for path in files) and read_json(record) == self._checksums():
            return
        columns = [name for name in (USER_ID, ITEM_ID, EVENT, VALUE, TS) if name in events.columns]
        rows = counting(events, self.settings.events).select(*columns).dropna(subset=[USER_ID, ITEM_ID]).toArrow()
        parts = split(rows, self.seed)
        for path, part in zip(files, parts, strict=False):
            pq.write_table(part, path)
        write_json(record, self._checksums())
        how = "the latest stretch" if parts.by_time else "a fifth of each user's items"
        self.progress.note(
            f"training part {parts.train.num_rows:,} rows, validation part {parts.valid.num_rows:,}: {how}"
        )

    def _checksums(self) -> dict[str, str]:
        return {path.name: file_checksum(path) for path in (self.files.train, self.files.valid)}


def find(train: Path, search: Search) -> dict[str, Any]:
    """Search, write what was found, and measure it by `evaluate` itself: its figure is the one that counts.

    Ctrl-C and SIGTERM leave the best so far in F.toml.
    """
    files, result = search.files, search.result
    before = read_json(result)
    if before and before["minutes"] * 60 >= search.budget.seconds and files.out.exists():
        search.progress.note(f"this search is done; a larger --budget than {before['minutes']:g} goes on with it")
        return dict(before["found"])
    search.prepare(train)
    with interruptible(Stopped(f"stopped; {files.out} holds the best so far, and the same command goes on from there")):
        try:
            search.search()
            result.unlink(missing_ok=True)
            measured = measure(files.train, files.valid, search.write("not measured yet"), search.progress.quiet())
        except (KeyboardInterrupt, Terminated):
            search.stopped()
            raise
    found = search.told(measured)
    write_json(result, {"minutes": search.budget.seconds / 60, "found": found})
    return found


@click.command()
@click.option(
    "--train",
    type=click.Path(path_type=Path),
    required=True,
    help="Events to train on: user_id, item_id, optionally event, ts and value.",
)
@click.option("--budget", type=float, required=True, metavar="MINUTES", help="How long the search may take in all.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="F.toml: the settings found. F.train.parquet, F.valid.parquet, F.md and F.png are written beside it.",
)
@click.option(
    "--config",
    "-c",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Settings to start from; without it, the defaults.",
)
@set_option
@click.option("--k", default=20, show_default=True, type=click.IntRange(min=1), help="Cut-off of NDCG.")
@click.option(
    "--models", default="", metavar="NAME,NAME", help="Models to tune; all that need no Spark where it is not given."
)
@click.option(
    "--seed",
    default=7,
    show_default=True,
    type=click.IntRange(0, 2**63 - 1),
    help="Seed of the split and of the search.",
)
@json_option
def tune(
    train: Path,
    budget: float,
    out: Path,
    config: Path | None,
    overrides: Sequence[str],
    k: int,
    models: str,
    seed: int,
    as_json: bool,
) -> None:
    """Find good settings for the models and their blend on a part of --train that is held out.

    The latest stretch is held out where rows have times, else a fifth of each user's items. `nightlist evaluate --train
    F.train.parquet --test F.valid.parquet --config F.toml` gives the figure that is printed. The same command goes on with a search
    that was stopped.
    """
    with as_json_line(as_json) as say, terminable():
        if not 0 < budget < math.inf:
            raise ConfigError(f"--budget {budget:g}: expected minutes above 0")
        settings = load_settings(config, overrides)
        asked = tuple(name.strip() for name in models.split(",") if name.strip())
        names = chosen_models(settings, asked)
        files = Files(out)
        arguments = {
            "train": identity(train),
            "code": code_digest(),
            "settings": digest_of(settings),
            "models": list(names),
            "k": k,
            "seed": seed,
        }
        with files.claimed(arguments):
            clock = Budget(files.work / "clock.json", budget)
            say(find(train, Search(files, choose(settings, None, k), names, k, seed, clock, Terminal())))
