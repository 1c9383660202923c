"""The best n items of each user: scores and selection, block by block. What a night spends its time on.

The rule: higher score first, then the lower item number; -inf is never taken, NaN is refused. `_top_reference.py` says
the same in plain numpy.

A tile of scores, USERS x ITEMS, is a product of factors that fits a core's cache, and is looked through while it is there.
Each user's best so far are a heap of integer keys, the worst on top: the score's order above, the item's below, so that one
comparison settles ties too. A score gets further than one comparison only if it beats the worst of the n, which few do: of
items in random order n * (1 + ln(items / n)).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from jobs.models import NONE, Candidates

USERS, ITEMS = 512, 512
"""Shape of a tile: 1 MB of float32."""
STRIPE = 64
"""Scores that are compared at once; a constant that divides ITEMS, so that the compiler makes vector instructions of it."""
NOTHING = np.iinfo(np.int64).min
"""A key below that of every score: a free place."""


def best_of_product(
    users: NDArray[np.float32],
    items: NDArray[np.floating],
    excluded: csr_matrix,
    allowed: NDArray[np.bool_],
    n: int,
) -> Candidates:
    """The n items with the largest inner product for each user, none of them excluded for the user, all of them allowed.

    Args:
        users: users x factors.
        items: items x factors, of any float dtype; may be memory-mapped. A tile's share of it is copied where needed.
        excluded: users x items; every stored entry counts.
        allowed: per item, whether anybody may get it; the others cost nothing.

    Memory: one tile and 8 n bytes a user. Raises ValueError where a score is NaN.
    """
    if not excluded.has_sorted_indices:
        excluded = excluded.sorted_indices()
    columns = np.flatnonzero(allowed).astype(np.int32)
    place = np.cumsum(allowed, dtype=np.int32) - 1
    keys = np.full((len(users), min(n, items.shape[0])), NOTHING, np.int64)
    if keys.size and columns.size:
        room = np.empty((USERS, ITEMS), np.float32)
        for start in range(0, len(users), USERS):
            block = slice(start, start + USERS)
            _scan(users[block], items, columns, *_places(excluded[block], allowed, place), room, keys[block])
    return _decoded(keys, columns)


def top_n(scores: NDArray[np.float32], n: int) -> Candidates:
    """The best n of each row.

    Args:
        scores: rows x items, float32; NaN is refused with ValueError, since it would order by accident.
    """
    rows, items = scores.shape
    keys = np.full((rows, min(n, items)), NOTHING, np.int64)
    if keys.size:
        room = np.empty((rows, ITEMS), np.float32)
        for first in range(0, items, ITEMS):
            tile = _tile(room, rows, min(ITEMS, items - first))
            tile[:] = scores[:, first : first + ITEMS]
            _keep_best(_striped(room), first, keys)
    return _decoded(keys, np.arange(items, dtype=np.int32))


def empty(rows: int, n: int) -> Candidates:
    """No candidates for so many users."""
    return Candidates(np.full((rows, n), NONE, np.int32), np.full((rows, n), -np.inf, np.float32))


def _scan(
    users: NDArray[np.float32],
    items: NDArray[np.floating],
    columns: NDArray[np.int32],
    ends: NDArray[np.int64],
    places: NDArray[np.int32],
    room: NDArray[np.float32],
    keys: NDArray[np.int64],
) -> None:
    """Look through all tiles of one block of users; `room` is that of one tile."""
    next_place = np.r_[0, ends[:-1]]
    whole = columns.size == items.shape[0]
    for first in range(0, columns.size, ITEMS):
        chosen = slice(first, first + ITEMS)
        factors = np.asarray(items[chosen] if whole else items[columns[chosen]], np.float32)
        scores = _tile(room, len(users), len(factors))
        np.matmul(users, factors.T, out=scores)
        _blank(scores, first, next_place, ends, places)
        _keep_best(_striped(room[: len(users)]), first, keys)


def _tile(room: NDArray[np.float32], users: int, items: int) -> NDArray[np.float32]:
    """The part of the room that gets scores; what is beside it counts for nothing."""
    room[:users, items:] = -np.inf
    return room[:users, :items]


def _striped(room: NDArray[np.float32]) -> NDArray[np.float32]:
    """Users x stripes x STRIPE, the same memory."""
    return room.reshape(len(room), -1, STRIPE)


def _places(
    excluded: csr_matrix, allowed: NDArray[np.bool_], place: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Where each row's excluded items end, and their places among the allowed items."""
    kept = allowed[excluded.indices]
    ends = np.r_[0, np.cumsum(kept)][excluded.indptr[1:]]
    return ends, place[excluded.indices[kept]]


def _decoded(keys: NDArray[np.int64], columns: NDArray[np.int32]) -> Candidates:
    """Keys as items and scores, best first."""
    found = empty(*keys.shape)
    keys = np.sort(keys, axis=1)[:, ::-1]
    taken = keys != NOTHING
    order = (keys[taken] >> 32).astype(np.int32)
    found.scores[taken] = (order ^ ((order >> 31) & 0x7FFFFFFF)).view(np.float32)
    found.items[taken] = columns[0x7FFFFFFF - (keys[taken] & 0x7FFFFFFF)]
    return found


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Machine code that lets other threads run, kept on disk where there is a place to write."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither beside the source nor in the user's cache
        return njit(nogil=True)(function)


@_compiled
def _blank(scores, first, next_place, ends, places):  # type: ignore[no-untyped-def]  # numba infers types
    """-inf for the excluded items of this tile; each row goes on in its own list where it stopped in the last tile."""
    width = scores.shape[1]
    for row in range(scores.shape[0]):
        at = next_place[row]
        while at < ends[row] and places[at] < first + width:
            scores[row, places[at] - first] = -np.inf
            at += 1
        next_place[row] = at


@_compiled
def _keep_best(scores, first, keys):  # type: ignore[no-untyped-def]
    """Put each user's scores that beat the worst of the heap in there; the first one is item `first`'s.

    Args:
        scores: users x stripes x STRIPE, float32.
        keys: users x n, int64.
    """
    places = np.empty(STRIPE + 1, np.int64)
    for user in range(scores.shape[0]):
        floor = _score_of(keys[user, 0])
        for stripe in range(scores.shape[1]):
            above = 0
            for place in range(STRIPE):
                above += not (scores[user, stripe, place] <= floor)  # so that NaN counts
            if above:
                found = 0
                for place in range(STRIPE):  # without a branch: nobody could foresee where it goes
                    places[found] = place
                    found += not (scores[user, stripe, place] <= floor)
                for place in places[:found]:
                    score = scores[user, stripe, place]
                    if not (score <= floor):  # it has risen meanwhile
                        if score != score:
                            raise ValueError("scores hold NaN: the factors they come from are broken; train again")
                        _replace_worst(keys[user], _key_of(score, first + stripe * STRIPE + place))
                        floor = _score_of(keys[user, 0])


@_compiled
def _replace_worst(heap, key):  # type: ignore[no-untyped-def]
    """The key takes the top's place in a heap whose least is on top."""
    at, child = 0, 1
    while child < heap.size:
        if child + 1 < heap.size:
            child += heap[child + 1] < heap[child]
        if heap[child] >= key:
            break
        heap[at] = heap[child]
        at, child = child, 2 * child + 1
    heap[at] = key


@_compiled
def _key_of(score, item):  # type: ignore[no-untyped-def]
    """An integer that is larger for a larger score, and for a lower item where scores are equal (-0.0 equals 0.0)."""
    bits = np.float32(score + np.float32(0.0)).view(np.int32)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (np.int64(order) << 32) | (0x7FFFFFFF - item)


@_compiled
def _score_of(key):  # type: ignore[no-untyped-def]
    """The score in a key; -inf in a free place."""
    if key == NOTHING:
        return np.float32(-np.inf)
    order = np.int32(key >> 32)
    return np.int32(order ^ ((order >> 31) & 0x7FFFFFFF)).view(np.float32)
