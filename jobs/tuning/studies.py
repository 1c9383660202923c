"""Optuna's studies, one a model and one for the blend, on a journal that survives a kill.

The n-th trial depends on the seed and on the results before it alone, so that a search that was killed goes on as it would have.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from jobs.search import Between, OneOf

Params = dict[str, Any]
"""Values by the setting's full name, e.g. als.factors."""

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
REDUCTION = 3
"""Of the trials at a rung a third go on to three times the users."""
TRIES_A_SETTING = 20
"""Trials of a study, at most, for each of its settings: by then TPE goes in circles."""
FEWEST_TRIALS = 4
"""Before them TPE has nothing to go by."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Given(optuna.samplers.BaseSampler):
    """Parameters that are not to be drawn."""

    def __init__(self, params: Params) -> None:
        self.params = params

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> Params:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.params[param_name]


class Study:
    """One search. `first`: parameters tried before TPE is asked, those of the configuration first of all."""

    def __init__(
        self,
        journal: Path,
        name: str,
        ranges: Mapping[str, BaseDistribution],
        first: Sequence[Params],
        seed: int,
        most: int | None = None,
    ) -> None:
        self.name, self.ranges, self.seed = name, dict(ranges), seed
        self.first = list(first)
        self.most = most or max(1, TRIES_A_SETTING * len(ranges))
        every = _all_of(self.ranges, self.most)
        if every:
            self.first += [params for params in every if params not in self.first]
            self.most = len(self.first)
        storage = JournalStorage(JournalFileBackend(str(journal)))
        self.study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION),
        )
        for left in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):  # by who was killed
            self.study.tell(left.number, state=TrialState.FAIL)

    def finished(self) -> list[FrozenTrial]:
        """Trials with a result, in their order."""
        return self.study.get_trials(deepcopy=False, states=FINISHED)

    @property
    def done(self) -> bool:
        """Whether there is nothing left to try."""
        return len(self.finished()) >= self.most

    def best(self) -> FrozenTrial | None:
        """The trial that was judged on all users and came out best; of equal ones the first."""
        whole = [trial for trial in self.finished() if trial.state == TrialState.COMPLETE]
        return max(whole, key=lambda trial: (trial.value, -trial.number), default=None)

    def ask(self, params: Params | None = None) -> tuple[Trial, Params]:
        """The next trial: with these parameters, or the next of the first ones, or what TPE proposes."""
        count = len(self.finished())
        given = max(FEWEST_TRIALS, len(self.first))  # TPE begins where they end: Optuna would first draw by lot
        seed = _seed(self.seed, self.name, count)
        sampler: Any = optuna.samplers.TPESampler(n_startup_trials=given, seed=seed, multivariate=True)
        if params is None and count < len(self.first):
            params = self.first[count]
        if params is not None:
            sampler = Given(params)
        self.study.sampler = sampler
        trial = self.study.ask(self.ranges)
        return trial, dict(trial.params)

    def tell(self, trial: Trial, value: float | None, why: str = "") -> None:
        """The result: a value, or None for one that came to none; `why` says so."""
        if why:
            trial.set_user_attr("why", why)
        state = TrialState.COMPLETE if value is not None else TrialState.PRUNED
        self.study.tell(trial, value, state=state)


def key_of(values: Any) -> str:
    """A short digest of plain values."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


def distribution(mark: Between | OneOf, default: Any) -> BaseDistribution:
    """A range for Optuna, widened to hold the value of the configuration."""
    if isinstance(mark, OneOf):
        return CategoricalDistribution(tuple(dict.fromkeys((*mark.values, default))))
    low, high = min(mark.low, default), max(mark.high, default)
    log = mark.log and low > 0
    if isinstance(default, int) and not isinstance(default, bool):
        return IntDistribution(math.floor(low), math.ceil(high), log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _all_of(ranges: Mapping[str, BaseDistribution], most: int) -> list[Params]:
    """Every combination, where there are few enough to try them all; else none."""
    if not ranges or not all(isinstance(each, CategoricalDistribution) for each in ranges.values()):
        return []
    if math.prod(len(each.choices) for each in ranges.values()) > most:
        return []
    return [dict(zip(ranges, values, strict=True)) for values in product(*(each.choices for each in ranges.values()))]


def _seed(seed: int, name: str, count: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {name} {count}".encode(), digest_size=4).digest(), "big")
