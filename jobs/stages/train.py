"""Stage 3: candidate models learn from the dataset."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs import models
from jobs.config import TrainSettings
from jobs.dataset import Dataset
from jobs.models import Before, CandidateModel
from jobs.run import Counts, clear
from schemas.settings import Section


def fit(
    out: Path,
    dataset: Path,
    names: Sequence[str],
    sections: Mapping[str, Section],
    segments: Sequence[str],
    settings: TrainSettings,
    last: Path | None = None,
) -> Counts:
    """Train the named models, and those that they build on, each into a folder of its name; `sections` are the models', `last`
    is the run of last night, where models may begin from its.

    Counts hold what the models note.
    """
    data = Dataset(dataset)
    before = Before(last / "train", data.numbers_in(Dataset(last / "dataset"))) if last else None
    training = data.training(segments, settings.seed, out, settings.max_train_users, before)
    clear(out)
    fitted: dict[str, CandidateModel] = {}
    for name in in_order(names, sections):
        fitted[name] = models.module(name).Model.fit(training, sections[name], fitted)
        (out / name).mkdir()
        fitted[name].save(out / name)
    notes = {f"{name}_{note}": value for name in fitted for note, value in models.notes(fitted[name]).items()}
    return {**data.size(), "models": list(fitted), **notes}


def in_order(names: Sequence[str], settings: Mapping[str, Section]) -> list[str]:
    """The named models with what they require, each after what it requires."""
    ordered: list[str] = []
    for name in names:
        for model in (*models.requires(name, settings[name]), name):
            if model not in ordered:
                ordered.append(model)
    return ordered
