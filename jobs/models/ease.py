"""EASE: every item is predicted from a user's other items by one linear model, solved in closed form.

With X users x items, G = X'X and P = (G + L)^-1, the weights that minimise |X - XB|^2 + sum of L_ii |B_i|^2 with a zero diagonal are
B_ij = -P_ij / P_jj (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019, eq. 8). The penalty is

    L_ii = lambda * (n_i / mean n) ** v + p / (1 - p) * G_ii

n_i: the item's users; mean n is that of all items that anybody has, so that lambda means the same for a part of them. The
second part is what leaving out each pair with probability p comes to (Steck, "Autoencoders that don't overfit towards the
Identity", NeurIPS 2020, sec. 3). A user's row of X is divided by (items they have) ** a. Dividing columns by n_i ** b before
and putting that right in B afterwards is the same as v = 2 b, so there is no setting of its own.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import csr_matrix, diags_array

from jobs.models import CandidateModel, Candidates, ItemList, Training, Users, rows_of
from jobs.models._inverse import invert
from jobs.models._pairs import powered
from jobs.models._top import empty, top_n
from jobs.search import Between, Smaller
from schemas.errors import InputError
from schemas.settings import Section

BLOCK = 256
"""Users scored at a time, and rows of G made at a time: the block's scores against all items bound the memory."""

FIRST = (
    {"regularization": 300.0, "frequency_exponent": 0.3, "user_exponent": 0.15},
    {"regularization": 1500.0, "frequency_exponent": 0.9, "dropout": 0.2, "user_exponent": 0.35},
    {"regularization": 100.0, "frequency_exponent": 0.3, "user_exponent": 0.15},
    {"regularization": 1000.0, "frequency_exponent": 0.5},
)
"""What `nightlist tune` tries first."""


class Settings(Section):
    """Item-to-item weights in closed form, for catalogues of up to some 40,000 items."""

    regularization: Annotated[float, Between(1, 10_000)] = Field(100.0, gt=0)
    """lambda, for an item with as many users as the mean; it grows with the number of users."""
    frequency_exponent: Annotated[float, Between(0, 1, log=False)] = Field(0.5, ge=0)
    """v: lambda is scaled by (an item's users / their mean) ** v."""
    dropout: Annotated[float, Between(0, 0.7, log=False)] = Field(0.0, ge=0, lt=1)
    """p: each pair is as if left out with this probability while the others predict it."""
    user_exponent: Annotated[float, Between(0, 0.5, log=False)] = Field(0.25, ge=0)
    """a: a user with n items counts 1 / n ** (2 a) in G, so that long histories do not drown the rest."""
    weight_exponent: Annotated[float, Between(0, 1, log=False)] = Field(0.5, ge=0)
    """A pair's entry in X, and what an item of the history counts, is r to this power; 0: all pairs count alike."""
    max_items: Annotated[int, Smaller(10_000, power=3)] = Field(40_000, ge=1)
    """Items at most, those with most users; training takes items ** 2 * 4 bytes, and time that grows with items ** 3."""


class Model:
    """B, of the items that are in it."""

    def __init__(
        self, items: NDArray[np.int32], between: NDArray[np.float32], weight_exponent: float, left_out: int = 0
    ) -> None:
        """`items`: their numbers, ascending; `between`: B, one row and column each; `left_out`: items beyond max_items."""
        self.items, self.between, self.weight_exponent, self.left_out = items, between, weight_exponent, left_out

    @classmethod
    def fit(cls, training: Training, settings: Settings, fitted: Mapping[str, CandidateModel] | None = None) -> Self:
        """Deterministic, whatever the number of cores. Raises InputError where lambda is too small for float32."""
        counts = np.bincount(training.weights.indices, minlength=training.items)
        items = most_used(counts, settings.max_items)
        pairs = powered(training.weights, settings.weight_exponent)
        lengths = np.maximum(np.diff(pairs.indptr), 1).astype(np.float64)
        histories = (diags_array((lengths**-settings.user_exponent).astype(np.float32)) @ pairs).tocsr()
        matrix = gram(histories[:, items])
        # r and a would change what lambda means: entries are rescaled so that a pair's mean square is 1.
        matrix *= histories.nnz / max(np.square(histories.data, dtype=np.float64).sum(), 1e-30)
        mean = counts[counts > 0].mean()
        penalty = settings.regularization * (counts[items] / mean) ** settings.frequency_exponent
        matrix.flat[:: len(items) + 1] *= 1 / (1 - settings.dropout)  # G + p / (1 - p) * G
        matrix.flat[:: len(items) + 1] += penalty
        return cls(items, weights_of(matrix), settings.weight_exponent, int((counts > 0).sum()) - items.size)

    @property
    def notes(self) -> dict[str, int]:
        """What training had to leave out."""
        return {"items_left_out": self.left_out}

    def candidates(self, users: Users, n: int) -> Candidates:
        """The sum of B's rows over the history. Who has none of the model's items gets no candidates."""
        rows, size = users.weights.shape
        found = empty(rows, min(n, size))
        allowed = users.eligible[self.items]
        histories = powered(users.weights, self.weight_exponent)[:, self.items]
        for start in range(0, rows, BLOCK):
            block = slice(start, start + BLOCK)
            history, excluded = histories[block], users.excluded[block]
            scores = np.full((history.shape[0], size), -np.inf, np.float32)
            scores[:, self.items[allowed]] = (history @ self.between)[:, allowed]
            scores[rows_of(excluded), excluded.indices] = -np.inf
            scores[np.diff(history.indptr) == 0] = -np.inf
            found.items[block], found.scores[block] = top_n(scores, n)
        return found

    def lists(self, eligible: NDArray[np.bool_], n: int) -> Iterator[ItemList]:
        """None of other kinds: item-to-item lists are the model `similar`'s."""
        return iter(())

    def save(self, folder: Path) -> None:
        """Arrays as .npy."""
        np.save(folder / "items.npy", self.items)
        np.save(folder / "between.npy", self.between)
        np.save(folder / "weight_exponent.npy", np.float64(self.weight_exponent))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """B is memory-mapped, so that the workers of a node share it."""
        items, between = np.load(folder / "items.npy"), np.load(folder / "between.npy", mmap_mode="r")
        return cls(items, between, float(np.load(folder / "weight_exponent.npy")))


def most_used(counts: NDArray[np.int64], size: int) -> NDArray[np.int32]:
    """At most `size` items, those with most users (the lower number first on a tie); ascending. None without a user."""
    known = np.flatnonzero(counts)
    order = np.lexsort((known, -counts[known]))[:size]
    return np.sort(known[order]).astype(np.int32)


def gram(histories: csr_matrix) -> NDArray[np.float32]:
    """X'X, items x items, made a block of rows at a time."""
    by_item = histories.T.tocsr()
    size = by_item.shape[0]
    matrix = np.empty((size, size), np.float32)
    for start in range(0, size, BLOCK):
        block = slice(start, start + BLOCK)
        (by_item[block] @ histories).toarray(out=matrix[block])
    return matrix


def weights_of(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """B of G + L, in its place. Raises InputError where lambda is too small for these histories."""
    try:
        invert(matrix)
    except ValueError as error:
        raise InputError(f"ease: {error}; set a larger ease.regularization") from error
    matrix /= -matrix.diagonal()
    np.fill_diagonal(matrix, 0)
    return matrix
