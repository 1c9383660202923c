"""The search over the models' settings: who is tried next, with how many users, and when to stop.

A trial is fitted on all of the training part and judged on more and more users, of whom three times as many are asked about a
third of the trials (successive halving: Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020). Users,
not iterations or a share of the training: fewer of those move the best regularization and number of factors, and judging is
most of the work where there are many items.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from jobs.config import RootSettings
from jobs.progress import Progress
from jobs.tuning.budget import Budget
from jobs.tuning.plan import DATASET, Whole, first_tries, fit_sections, for_good, for_trial, ranges, with_params
from jobs.tuning.studies import Params, Study, key_of
from jobs.tuning.worker import Failed, Worker

RUNGS = (1, 3)
"""Thirds of the users."""
FEWEST_USERS = 2_000
"""A rung with fewer would end better settings by chance: of so many users the difference of two settings has a standard error of 1 %,
and good settings differ by less."""
FIRST_SHARE = 0.5
"""Of the time for models, for the first model where the dataset's settings are tuned with it; less where others do better."""
LONGEST = 0.12
"""Of the whole budget, for one trial."""
FOR_GOOD = 1 / 8
"""Of the whole budget, for a fit on all items of a model that is tried on fewer; `tune` makes two, one for the blend and one to measure."""
MARGIN = 1.3
"""A trial may take so many times as long as those before let expect."""
GROWTH = 1.0
"""Time grows by this power of a setting that counts something (factors, neighbours), or less; one that takes longer is ended."""
GIVEN_UP = 3
"""After so many trials of a model without a result it is left out; so many that would take too long end its search."""
FAINT = 0.01
"""Merit of a model whose lists nobody wants yet: other settings may do better."""
LEFT_OUT = "left out"


@dataclass
class Models:
    """The search over all models. `found`: the settings of each model's best trial, [dataset]'s among those of the first."""

    settings: RootSettings
    names: tuple[str, ...]
    worker: Worker
    budget: Budget
    progress: Progress
    journal: Path
    seed: int
    k: int
    about: Mapping[str, Any]
    reserved: Callable[["Models"], float]
    """Seconds that what comes after the search will take."""
    studies: dict[str, Study] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    """Why, by model."""
    spent: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        """Read what stands in the journal; again, after an interrupt that tore Optuna from its work."""
        for name in self.names:
            found = ranges(self.settings, name, name == self.names[0], self.about)
            first = first_tries(self.settings, name, found)
            self.studies[name] = Study(self.journal, name, found, first, self.seed)
            why, until = self.studies[name].study.user_attrs.get(LEFT_OUT, (None, None))
            if why and (until is None or self.budget.seconds <= until):
                self.left_out[name] = why
            self.spent[name] = sum(trial.user_attrs.get("seconds", 0.0) for trial in self.studies[name].finished())

    def search(self) -> None:
        """Try until the time is up or there is nothing left to try."""
        while self.time > 0 and (name := self._next()):
            self.one(name)

    @property
    def time(self) -> float:
        """Seconds left for trials."""
        return self.budget.left - self.reserved(self)

    def best(self) -> dict[str, FrozenTrial]:
        """The best trial of each model that has one, best model first."""
        trials = {
            name: best for name in self.names if name not in self.left_out and (best := self.studies[name].best())
        }
        return dict(sorted(trials.items(), key=lambda each: -each[1].value))

    def found(self) -> RootSettings:
        """The settings with those of every model's best trial, for a fit on all items, or as many as there is time for."""
        found = self.settings
        for name in reversed(self.names):  # the first one's [dataset] counts
            if name in self.best():
                found = with_params(found, self.best()[name].params | self._whole(name).changed)
        return found

    def costs(self, name: str) -> tuple[float, float]:
        """Seconds to fit a model for good, under the settings of its best trial, and to find one user's candidates then."""
        trial, whole = self.best()[name].user_attrs, self._whole(name)
        return trial["fit"] * whole.fit, trial["user"] * whole.judge

    def _whole(self, name: str) -> Whole:
        seconds = self.best()[name].user_attrs.get("fit", 0.0)
        return for_good(self.settings, name, self.about["items"], seconds, FOR_GOOD * self.budget.seconds / MARGIN)

    def one(self, name: str) -> None:
        """One trial of one model."""
        study, before = self.studies[name], self.studies[name].best()
        trial, params = study.ask()
        same = next((each for each in study.finished() if each.params == params and each.value is not None), None)
        if same:
            study.tell(trial, same.value if same.state == TrialState.COMPLETE else None, "tried before")
            return
        start = self.budget.used
        expected = self.expected(name, params)
        if MARGIN * expected > self.time or MARGIN * expected > LONGEST * self.budget.seconds:
            study.tell(trial, None, "would take too long")
        else:
            self._tried(name, trial, params)
        self.spent[name] += self.budget.used - start
        self._settle(name, before)

    def expected(self, name: str, params: Params) -> float:
        """Seconds at most that judging these settings on all users takes, by the trials before; 0 where there were none."""
        study = self.studies[name]
        guesses = [
            each.user_attrs["whole"] * _growth(study, each.params, params)
            for each in study.finished()
            if "whole" in each.user_attrs
        ]
        return min(guesses, default=0.0)

    def _next(self) -> str | None:
        """First every model once; then the first model for its share of the time, where [dataset] goes by it; then who had least for
        its merit.

        Merit is the number of settings times the square of the figure. What a model had is the geometric mean of its trials and
        their time: by time alone a model of slow trials would have one or two, by number alone it would take it all.
        """
        open_ = [name for name in self.names if name not in self.left_out and not self.studies[name].done]
        untried = [name for name in open_ if not self.studies[name].finished()]
        if untried or not open_:
            return untried[0] if untried else None
        first = self.names[0]
        top = max((best.value for best in self.best().values()), default=0.0) or 1.0
        # What is tried on fewer items is better than it looks by as much as nobody knows.
        worth = {
            name: 1.0 if self._whole(name).judge > 1 else (best.value / top) ** 2 for name, best in self.best().items()
        }
        decides = any(key.startswith(f"{DATASET}.") for key in self.studies[first].ranges)
        share = FIRST_SHARE * worth.get(first, 1.0) if decides else 0.0
        if first in open_ and self.spent[first] < share * (sum(self.spent.values()) + self.time):
            return first
        had = {name: sqrt(self.spent[name] * len(self.studies[name].finished())) for name in open_}
        merit = {name: (1 + len(self.studies[name].ranges)) * (worth.get(name, 0.0) + FAINT) for name in open_}
        others = [name for name in open_ if name != first or not decides] or open_
        return min(others, key=lambda name: had[name] / merit[name])

    def _tried(self, name: str, trial: Trial, params: Params) -> None:
        """Fit and judge; whatever comes of it is told to the study."""
        study = self.studies[name]
        # [dataset] is the first model's to choose.
        settings = self.settings if name == self.names[0] else self.dataset_of_first()
        deadline = min(self.time, LONGEST * self.budget.seconds) + self.budget.used
        try:
            tried = for_trial(with_params(settings, params), name)
            fit = {"name": name, "sections": fit_sections(tried, name)}
            seconds = self.asked("fit", fit, deadline)["seconds"]
            study.tell(trial, self._judged(trial, seconds, deadline))
            self._keep(name, trial, deadline)
        except Failed as error:
            study.tell(trial, None, str(error))
        except BaseException:
            self.worker.end()
            raise

    def _keep(self, name: str, trial: Trial, deadline: float) -> None:
        """Write the lists of what is the best trial now: the blend needs them, and would have to fit it once more."""
        best = self.studies[name].best()
        if best is None or best.number != trial.number or self._whole(name).judge > 1:
            return
        path = self.lists_of(name)
        for before in path.parent.glob(f"lists-{name}-*.npz"):
            before.unlink()
        with suppress(Failed):  # no time: they are made later, or not at all
            self.asked("lists", {"n": self.settings.retrieve.candidates, "path": str(path)}, deadline)

    def lists_of(self, name: str) -> Path:
        """Where the lists of a model under the settings found are, or will be."""
        return self.journal.with_name(f"lists-{name}-{key_of(fit_sections(self.found(), name))}.npz")

    def _judged(self, trial: Trial, fitted: float, deadline: float) -> float | None:
        """The mean over all users, or None where a rung was the last."""
        users = int(self.about["users"])
        total, start, seconds = 0.0, 0, 0.0
        rungs = [step for step in RUNGS if users * step // RUNGS[-1] >= FEWEST_USERS or step == RUNGS[-1]]
        for step in rungs:
            stop = users * step // RUNGS[-1]
            answer = self.asked("judge", {"start": start, "stop": stop, "k": self.k}, deadline)
            total, start, seconds = total + answer["sum"], stop, seconds + answer["seconds"]
            trial.set_user_attr("seconds", fitted + seconds)
            trial.set_user_attr("fit", fitted)
            trial.set_user_attr("user", seconds / stop)
            trial.set_user_attr("whole", fitted + seconds * users / stop)
            trial.report(total / stop, step)
            if step != rungs[-1] and trial.should_prune():
                return None
        return total / users

    def asked(self, what: str, arguments: Mapping[str, Any], deadline: float) -> dict[str, Any]:
        """The worker's answer; what it took is counted at once."""
        answer = self.worker.ask({"do": what, "with": arguments}, deadline - self.budget.used)
        self.budget.save()
        return answer

    def dataset_of_first(self) -> RootSettings:
        """The configuration with the [dataset] of the first model's best trial."""
        best = self.studies[self.names[0]].best()
        chosen = {key: value for key, value in (best.params if best else {}).items() if key.startswith(f"{DATASET}.")}
        return with_params(self.settings, chosen)

    def _settle(self, name: str, before: FrozenTrial | None) -> None:
        """Tell of a new best; leave out a model that comes to nothing, or to just what another one does."""
        study, best = self.studies[name], self.studies[name].best()
        finished = study.finished()
        reasons = [each.user_attrs.get("why", "") for each in finished]
        if best is None and len(finished) >= GIVEN_UP:
            self._leave_out(name, reasons[-1])
        elif len(finished) == 1 and best and (twin := self._twin(name, best)):
            self._leave_out(name, f"gives what {twin} gives here", for_ever=True)
        elif reasons[-GIVEN_UP:] == ["would take too long"] * GIVEN_UP:
            study.most = len(finished)
        if best and best != before and name not in self.left_out:
            self.progress.note(
                f"{name:<12} trial {len(finished):>3} of {study.most:<3}  NDCG@{self.k} {best.value:.4f}   {self.budget.told()}"
            )

    def _leave_out(self, name: str, why: str, for_ever: bool = False) -> None:
        """A larger budget tries it again, unless it is `for_ever`."""
        self.left_out[name] = why
        self.studies[name].study.set_user_attr(LEFT_OUT, (why, None if for_ever else self.budget.seconds))
        self.progress.note(f"{name:<12} left out: {why}")

    def _twin(self, name: str, best: FrozenTrial) -> str | None:
        """Another model whose first trial came to the same figure to the last digit: its lists are the same."""
        others = [other for other in self.names if other != name and other not in self.left_out]
        firsts = {other: self.studies[other].finished()[:1] for other in others}
        return next((other for other, trials in firsts.items() if trials and trials[0].value == best.value > 0), None)


def _growth(study: Study, before: Params, after: Params) -> float:
    grown = 1.0
    for name, each in study.ranges.items():
        if isinstance(each, IntDistribution) or (isinstance(after[name], int) and isinstance(before[name], int)):
            grown *= max(1.0, after[name] / max(before[name], 1)) ** GROWTH
    return grown
