"""What was tried, for people: F.md with tables, F.png with a point a trial."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from jobs.tuning.blend import Blend
from jobs.tuning.trials import Models

LISTED = 10
"""Best trials of each model in the report."""


def write_report(path: Path, models: Models, blend: Blend | None, figure: str, chosen: Sequence[str]) -> None:
    """F.md."""
    parts = [f"# What `nightlist tune` tried\n\n{figure}\n", _overview(models, blend, chosen)]
    if blend and len(blend.settings.weights) > 1:
        parts.append(_blend(blend))
    parts += [_trials(name, models) for name in models.names if models.studies[name].finished()]
    path.write_text("\n".join(parts), encoding="utf-8")


def write_plot(path: Path, models: Models, blend_trials: Sequence[FrozenTrial]) -> None:
    """F.png: NDCG of each trial in the order in which they were begun; small points were stopped early, on few users."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    studies = {name: study.finished() for name, study in models.studies.items()} | {"blend": list(blend_trials)}
    begun = sorted(trial.datetime_start for trials in studies.values() for trial in trials)
    for name, trials in studies.items():
        points = [(begun.index(trial.datetime_start), trial) for trial in trials if trial.value is not None]
        whole = [(place, trial.value) for place, trial in points if trial.state == TrialState.COMPLETE]
        early = [(place, trial.value) for place, trial in points if trial.state != TrialState.COMPLETE]
        if whole:
            color = axes.scatter(*zip(*whole, strict=True), s=26, label=name).get_facecolor()
            if early:
                axes.scatter(*zip(*early, strict=True), s=7, color=color)
    axes.set_xlabel("trial")
    axes.set_ylabel(f"NDCG@{models.k} on the validation part")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _overview(models: Models, blend: Blend | None, chosen: Sequence[str]) -> str:
    rows, best = [], models.best()
    for name in sorted(models.names, key=lambda name: -(best[name].value if name in best else -1)):
        finished = models.studies[name].finished()
        early = sum(trial.state == TrialState.PRUNED for trial in finished)
        first = finished[0].value if finished and finished[0].state == TrialState.COMPLETE else None
        weight = blend.settings.weights.get(name, 0) if blend else ""
        adds = _number(blend.adds.get(name)) if blend else ""
        found = _number(best[name].value) if name in best else models.left_out.get(name, "no trial ended in time")
        used = "yes" if name in chosen else ""
        rows.append(
            [name, found, _number(first), len(finished), early, f"{models.spent[name]:.0f}", used, weight, adds]
        )
    head = ["model", f"NDCG@{models.k}", "before", "trials", "stopped early", "seconds", "used", "weight", "adds"]
    note = "before: under the settings of the configuration. adds: by how much the blend is better than without the model.\n"
    return _table(head, rows) + "\n" + note


def _blend(blend: Blend) -> str:
    chosen = blend.settings
    how = {
        "ranks": f"smoothing {chosen.smoothing:g}",
        "scores": "shares of the way from a list's last to its first",
    }.get(chosen.method, "ways from a list's last to its first, in each model's median one")
    best = max(blend.alone.values())
    return (
        f"## Blend\n\nNDCG {blend.value:.4f} by {chosen.method} ({how}), short_history {chosen.short_history:g}; "
        f"the best model alone {best:.4f}.\n"
    )


def _trials(name: str, models: Models) -> str:
    study = models.studies[name]
    trials = sorted(study.finished(), key=_place)[:LISTED]
    keys = list(study.ranges)
    rows = [
        [each.number, _number(each.value) or each.user_attrs.get("why", ""), f"{each.user_attrs.get('seconds', 0):.1f}"]
        + [_plain(each.params[key]) for key in keys]
        for each in trials
    ]
    return f"## {name}\n\n" + _table(["trial", f"NDCG@{models.k}", "seconds", *keys], rows)


def _place(trial: FrozenTrial) -> tuple[bool, float]:
    """Trials judged on all users first, best first."""
    return trial.state != TrialState.COMPLETE, -(trial.value or 0.0)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def values(models: Models, blend: Blend | None) -> Mapping[str, Any]:
    """For machines: what each model came to by itself, and what it adds to the blend."""
    return {
        "models": {name: trial.value for name, trial in models.best().items()},
        "left_out": models.left_out,
        "weights": blend.settings.weights if blend else {},
        "adds": blend.adds if blend else {},
    }
