"""What the scores of a blend are measured in: the same for every user of a night, and none of the weights' business."""

from pathlib import Path

import numpy as np
import pytest

from jobs.buckets import read_bucket, write_bucket
from jobs.config import RankSettings
from jobs.dataset import Dataset
from jobs.models import NONE, Candidates, popular, similar, some
from jobs.stages import retrieve
from jobs.stages.rank import bucket_ranked
from jobs.units import Proposers, median_way, unit
from schemas.columns import ITEMS
from tests.test_lists import write_dataset

ITEMS_THERE, USERS, N = 30, 120, 6


def test_a_way_goes_from_the_first_score_to_the_last() -> None:
    """By hand: ways of 4, 0, 10 and none at all; lists without a way tell nothing."""
    items = np.array([[1, 2, 3], [4, 5, NONE], [6, 7, NONE], [NONE, NONE, NONE]], np.int32)
    scores = np.array([[6, 3, 2], [4, 4, -np.inf], [9, -1, -np.inf], [-np.inf] * 3], np.float32)

    assert median_way(Candidates(items, scores)) == 7
    assert median_way(Candidates(items[1:2], scores[1:2])) == 1


class TestBlend:
    """`similar` and `popular` trained on users of two buckets."""

    @pytest.fixture
    def proposers(self, tmp_path: Path) -> Proposers:
        rng = np.random.default_rng(5)
        users = [(f"u{u:03d}", sorted(rng.choice(ITEMS_THERE, 5, replace=False).tolist())) for u in range(USERS)]
        data = write_dataset(tmp_path / "dataset", [users[:50], [*users[50:], ("u999", [])]], [True] * ITEMS_THERE)
        training = Dataset(data).training((), 7)
        fitted = {
            "similar": similar.Model.fit(training, similar.Settings()),
            "popular": popular.Model.fit(training, popular.Settings()),
        }
        for name, model in fitted.items():
            (tmp_path / "train" / name).mkdir(parents=True)
            model.save(tmp_path / "train" / name)
        return Proposers(data, tmp_path / "train", ("similar", "popular"), N, 7)

    def test_it_is_the_median_of_the_users_with_a_history(self, proposers: Proposers) -> None:
        """All of them, where there are no more than are drawn."""
        everybody = [users for _, users in map(Dataset(proposers.dataset).bucket, (0, 1))]
        known = [some(users, np.flatnonzero(np.diff(users.weights.indptr))) for users in everybody]
        model = similar.Model.load(proposers.trained / "similar")
        found = [model.candidates(users, N) for users in known]
        ways = np.concatenate([each.scores[:, 0] - each.scores[:, -1] for each in found])

        assert proposers.units()["similar"] == pytest.approx(float(np.median(ways)))
        assert unit(model, some(known[0], slice(0, 0)), N) == 1.0

    def test_what_a_model_counts_in_does_not_matter(self, proposers: Proposers, tmp_path: Path) -> None:
        """Similarities, and with them scores, a million times as small make the same blend; without units they would not."""
        settings = RankSettings(weights={"similar": 1.0, "popular": 0.4}, method="distances")
        similarities = proposers.trained / "similar" / "data.npy"

        def lists(where: str) -> tuple[list[list[int]], list[list[int]]]:
            found = retrieve.bucket_candidates(proposers.dataset, proposers.trained, proposers.names, N, 0)
            (tmp_path / where).mkdir()
            write_bucket(tmp_path / where, "", 0, found, 0.0)
            by_units = (
                bucket_ranked(proposers.dataset, tmp_path / where, settings, units, 0)[ITEMS].to_pylist()
                for units in (proposers.units(), {})
            )
            return next(by_units), next(by_units)

        before = lists("before")
        np.save(similarities, np.load(similarities) * np.float32(2**-20))
        retrieve.load.cache_clear()
        after = lists("after")

        assert read_bucket(tmp_path / "before", 0) != read_bucket(tmp_path / "after", 0)
        assert after[0] == before[0]
        assert after[1] != before[1]
