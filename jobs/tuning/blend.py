"""The blend's own settings: a weight a model, ranks, scores or distances, smoothing, short_history; on the candidates of each
model's best trial.

A few parameters, judged on thousands of users. What guards against weights that only chance chose: each model alone is one of
the tries, and of blends that are as good as the best the one of fewest models is taken. What is "as good" is held against the best
and not step by step: of models that can stand in for each other each could go, and with them all that they are good for.
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from jobs.config import RankSettings
from jobs.models import NONE, Candidates, personal
from jobs.search import space
from jobs.stages.rank import trust
from jobs.tuning.ground import Ground
from jobs.tuning.studies import Params, Study, distribution

WEIGHT = "weight."
TRIES = 600
"""Blends that are tried, at most, before the last steps."""
STEPS = (0.0, 0.5, 0.75, 1.33, 2.0)
"""What each weight, and the smoothing, of the best blend is multiplied with at last."""
ROUNDS = 3
"""Rounds of such steps, before and after models were left out."""
LEAST = 0.0005
"""A model with such a share of the largest say has none."""
FREE, LITTLE = 0.1, 0.0005
"""Models are left out as long as the blend stays within so many standard errors of the best one, or within such a share of its
figure: nights pay for each, and a gain that is certain may still be next to nothing."""


class Pool:
    """Every item that any model proposes to a user, in ascending order of items: users x width, padded.

    `ranks`: models x users x width, inf where a model does not propose the item; `distances`: the same, how far the score is above
    the list's last, in the model's own unit (jobs.units), 0 where it does not; `scores`: that as a share of the way to the list's
    first.
    """

    def __init__(self, found: Mapping[str, Candidates], units: Mapping[str, float], ground: Ground, k: int) -> None:
        self.names, self.k = tuple(found), k
        self.history = np.diff(ground.users.weights.indptr)
        every = np.concatenate([each.items for each in found.values()], axis=1)
        items, place = _union(every)
        shape = (len(found), *items.shape)
        self.ranks, self.scores = np.full(shape, np.inf, np.float32), np.zeros(shape, np.float32)
        self.distances = np.zeros(shape, np.float32)
        start = 0
        for model, (name, each) in enumerate(found.items()):
            rows, columns = np.nonzero(each.items != NONE)
            places = place[rows, start + columns]
            self.ranks[model, rows, places] = columns + 1
            self.distances[model, rows, places] = distances(each)[rows, columns] / units[name]
            self.scores[model, rows, places] = shares(each)[rows, columns]
            start += each.items.shape[1]
        rows = slice(0, items.shape[0])
        discounts = 1 / np.log2(np.arange(2, k + 2))
        self._hits = ground.hits(items, rows)
        self._discounts, self._ideal = discounts, np.cumsum(discounts)[np.minimum(ground.sizes, k) - 1]

    def gains(self, chosen: RankSettings) -> NDArray[np.float64]:
        """NDCG@k of each user's list under these settings: what jobs.stages.rank.fuse makes of the models with a weight."""
        total = np.zeros(self.ranks.shape[1:], np.float32)
        proposed = np.zeros(total.shape, bool)
        believed = trust(self.history, chosen).astype(np.float32)[:, None]
        for model, name in enumerate(self.names):
            weight = np.float32(chosen.weights.get(name, 0.0))
            if weight:
                total += self._worth(model, chosen) * (weight * believed if personal(name) else weight)
                proposed |= np.isfinite(self.ranks[model])
        total[~proposed] = -np.inf
        best = _first(total, self.k)
        hits = np.take_along_axis(self._hits & proposed, best, axis=1)
        return (hits @ self._discounts[: hits.shape[1]]) / self._ideal

    def _worth(self, model: int, chosen: RankSettings) -> NDArray[np.float32]:
        """What jobs.stages.rank.standing gives, users x width."""
        if chosen.method == "ranks":
            return 1 / (np.float32(chosen.smoothing) + self.ranks[model])
        return self.scores[model] if chosen.method == "scores" else self.distances[model]


def distances(found: Candidates) -> NDArray[np.float64]:
    """How far each score of a list is above its last, as jobs.stages.rank.above_last has it; 0 where there is none."""
    valid = found.items != NONE
    low = np.min(found.scores, axis=1, initial=np.inf, where=valid)[:, None]
    return np.subtract(found.scores, low, out=np.zeros(valid.shape), where=valid)


def shares(found: Candidates) -> NDArray[np.float64]:
    """The same as shares of the way from the last to the first."""
    above = distances(found)
    ones = (found.items != NONE).astype(np.float64)
    longest = above.max(axis=1, keepdims=True, initial=0)
    return np.divide(above, longest, out=ones, where=longest > 0)


@dataclass(frozen=True)
class Blend:
    """What came out: settings whose weights name the models that stay, the figure, and what each model adds to it."""

    settings: RankSettings
    value: float
    alone: dict[str, float]
    """NDCG@k of each model by itself."""
    adds: dict[str, float]
    """By how much the blend is better than without the model, of those that stay."""


def study_of(journal_of: Callable[..., Study], pool: Pool, before: RankSettings) -> Study:
    """The study of the blend; tries first what the configuration says, each model alone, and all alike."""
    names = pool.names
    ranges: dict[str, BaseDistribution] = {f"{WEIGHT}{name}": FloatDistribution(0, 1) for name in names}
    marks = space(type(before))
    ranges |= {key: distribution(mark, getattr(before, key)) for key, mark in marks.items()}
    rest = {key: getattr(before, key) for key in marks}
    largest = max((before.weights.get(name, 1.0) for name in names), default=0.0) or 1.0
    own = {f"{WEIGHT}{name}": before.weights.get(name, 1.0) / largest for name in names}
    alike = {f"{WEIGHT}{name}": 1.0 for name in names}
    single = [{f"{WEIGHT}{name}": float(name == only) for name in names} for only in names]
    first = [own | rest, *(one | rest for one in single)]
    first += [alike | rest | {"method": method} for method in ranges["method"].choices]
    return journal_of(ranges=ranges, first=first, most=TRIES)


def search(pool: Pool, study: Study, before: RankSettings, go_on: Callable[[], bool]) -> Blend:
    """The best blend that was found until `go_on` says no (each model alone is looked at in any case).

    First steps by each method from models of equal say: TPE would settle for the method that was best before any weight was.
    """
    while len(study.finished()) < len(study.first):
        _try(pool, study, before)
    for start in study.first[-len(study.ranges["method"].choices) :]:
        _refined(pool, study, before, start, go_on, fixed=("method",))
    while not study.done and go_on():
        _try(pool, study, before)
    chosen = _leaner(pool, study, before, dict(study.best().params), go_on)
    alone = {name: float(pool.gains(only(chosen, name)).mean()) for name in pool.names}
    return Blend(chosen, float(pool.gains(chosen).mean()), alone, adds(pool, chosen))


def _leaner(pool: Pool, study: Study, before: RankSettings, params: Params, go_on: Callable[[], bool]) -> RankSettings:
    """The best that steps from `params` lead to, without the models that it can do without; other weights may make others so."""
    params = _refined(pool, study, before, params, go_on)
    chosen = settings_of(params, before)
    kept = lean(pool, chosen).weights
    if kept.keys() == chosen.weights.keys():
        return chosen
    fewer = params | {f"{WEIGHT}{name}": 0.0 for name in pool.names if name not in kept}
    return _leaner(pool, study, before, fewer, go_on)


def settings_of(params: Params, before: RankSettings) -> RankSettings:
    """A blend's settings, the largest weight 1; a model whose say is nothing beside the others' is not named."""
    says = {key.removeprefix(WEIGHT): value for key, value in params.items() if key.startswith(WEIGHT)}
    least = LEAST * max(says.values())
    weights = {name: say for name, say in says.items() if say > least}
    largest = max(weights.values(), default=1.0)
    weights = {name: float(f"{value / largest:.3g}") for name, value in weights.items()}
    rest = {key: value for key, value in params.items() if not key.startswith(WEIGHT)}
    rest["smoothing"] = float(f"{rest['smoothing']:.3g}")
    return before.model_copy(update=rest | {"weights": weights})


def lean(pool: Pool, best: RankSettings) -> RankSettings:
    """The best blend without the models that it can do without, the least useful first; one stays."""
    whole, chosen = pool.gains(best), best
    while len(chosen.weights) > 1:
        fewer = max((without(chosen, name) for name in chosen.weights), key=lambda each: pool.gains(each).mean())
        lost = whole - pool.gains(fewer)
        if lost.mean() > max(FREE * lost.std() / np.sqrt(lost.size), LITTLE * whole.mean()):
            break
        chosen = fewer
    return chosen


def adds(pool: Pool, chosen: RankSettings) -> dict[str, float]:
    """Per model of the blend how much better the blend is with it than without."""
    if len(chosen.weights) < 2:
        return {}
    whole = pool.gains(chosen).mean()
    return {name: float(whole - pool.gains(without(chosen, name)).mean()) for name in chosen.weights}


def only(chosen: RankSettings, name: str) -> RankSettings:
    """One model by itself."""
    return chosen.model_copy(update={"weights": {name: 1.0}, "method": "ranks"})


def without(chosen: RankSettings, name: str) -> RankSettings:
    """All models but this one."""
    return chosen.model_copy(update={"weights": {each: w for each, w in chosen.weights.items() if each != name}})


def _try(pool: Pool, study: Study, before: RankSettings, params: Params | None = None) -> float:
    trial, params = study.ask(params)
    chosen = settings_of(params, before)
    value = float(pool.gains(chosen).mean()) if chosen.weights else 0.0
    study.tell(trial, value)
    return value


def _refined(
    pool: Pool,
    study: Study,
    before: RankSettings,
    params: Params,
    go_on: Callable[[], bool],
    fixed: Container[str] = (),
) -> Params:
    """One parameter after the other (but those `fixed`), the best of a few steps from where it stands, as long as that helps."""
    known = {_key(each.params): each.value for each in study.finished()}

    def value(tried: Params) -> float:
        if _key(tried) not in known and go_on():
            known[_key(tried)] = _try(pool, study, before, tried)
        return known.get(_key(tried), -1.0)

    for _ in range(ROUNDS):
        start = params
        for key in (key for key in start if key not in fixed):
            if key == "smoothing" and params["method"] != "ranks":
                continue  # it says nothing there
            params = max((params, *_steps(params, key, study.ranges[key])), key=value)
        if params == start:
            break
    return params


def _steps(params: Params, key: str, range_: BaseDistribution) -> list[Params]:
    """The parameters with one of them changed a little; a weight of 0 stays. Where a weight would rise above 1, the others fall."""
    if isinstance(range_, CategoricalDistribution):
        return [params | {key: choice} for choice in range_.choices if choice != params[key]]
    values = sorted({params[key] * step for step in STEPS} - {params[key]})
    if not key.startswith(WEIGHT):
        return [params | {key: min(max(value, range_.low), range_.high)} for value in values]
    return [_scaled(params | {key: value}) for value in values]


def _scaled(params: Params) -> Params:
    """No weight above 1, their ratios as they are."""
    largest = max(1.0, *(value for key, value in params.items() if key.startswith(WEIGHT)))
    return {key: value / largest if key.startswith(WEIGHT) else value for key, value in params.items()}


def _key(params: Params) -> tuple[tuple[str, object], ...]:
    return tuple(sorted(params.items()))


def _union(items: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
    """Each row's distinct items, ascending, padded with NONE, and the place of each entry there."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    new = (ordered != NONE) & np.diff(ordered, axis=1, prepend=NONE).astype(bool)
    places = np.cumsum(new, axis=1) - 1
    union = np.full((items.shape[0], max(1, int(places.max(initial=0)) + 1)), NONE, np.int32)
    rows, columns = np.nonzero(new)
    union[rows, places[rows, columns]] = ordered[rows, columns]
    place = np.empty_like(places)
    np.put_along_axis(place, order, places, axis=1)
    return union, place


def _first(total: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Columns of the k largest of each row, largest first, the lower column on a tie (but for ties across the k-th place)."""
    if total.shape[1] > k:
        best = np.sort(np.argpartition(total, total.shape[1] - k, axis=1)[:, -k:], axis=1)
    else:
        best = np.broadcast_to(np.arange(total.shape[1]), total.shape)
    order = np.argsort(-np.take_along_axis(total, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)
