"""The best n items of each user: scores and selection, block by block. What a night spends its time on.

The rule: higher score first, then the lower item number; -inf is never taken, NaN is refused. `_top_reference.py` says
the same in plain numpy.

A tile of scores, USERS x ITEMS, is a product of factors that fits a core's cache, and is looked through while it is there.
Each user's best so far are a heap of integer keys, the worst on top: the score's order above, the item's below, so that one
comparison settles ties too. A score gets further than one comparison only if it reaches the worst of the n.

Items come longest vector first. No score is above the product of the two lengths (Cauchy-Schwarz), so a user is done as
soon as the next item is too short to reach the worst of the n: with factors of a real catalogue, where most items are
seldom watched and short, nine tenths of the product are never computed, and the result is still exact (as LENGTH in Teflioudi,
Gemulla, Mykytiuk, "LEMP: Fast Retrieval of Large Entries in a Matrix Product", SIGMOD 2015).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from jobs.models import NONE, Candidates

USERS, ITEMS = 2_048, 256
"""Shape of a tile: 2 MB of float32 at first, and less with every user who is done."""
BLOCK = 4_096
"""Items whose lengths are taken at once."""
STRIPE = 64
"""Scores that are compared at once; a constant that divides ITEMS, so that the compiler makes vector instructions of it."""
NOTHING = np.iinfo(np.int64).min
"""A key below that of every score: a free place."""
LOWEST = np.finfo(np.float32).min
"""What a score has to reach where a place is free."""
SLACK = np.float32(1.0001)
"""A computed score may be above the product of the lengths by rounding, by less than this."""


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
        items: items x factors, of any dtype that float32 holds; may be memory-mapped. A tile's share of it is copied.
        excluded: users x items; every stored entry counts.
        allowed: per item, whether anybody may get it; the others cost nothing.

    Memory: one tile, and 8 n bytes a user. Raises ValueError where a score is NaN.
    """
    numbers, lengths = _longest_first(items, allowed)
    place = np.full(len(items), -1, np.int32)
    place[numbers] = np.arange(numbers.size)
    keys = np.full((len(users), min(n, len(items))), NOTHING, np.int64)
    if keys.size:
        room = np.empty((USERS, ITEMS), np.float32)
        for start in range(0, len(users), USERS):
            block = slice(start, start + USERS)
            _scan(users[block], items, numbers, lengths, _Excluded.of(excluded[block], place), room, keys[block])
    return decoded(keys)


def top_n(scores: NDArray[np.float32], n: int) -> Candidates:
    """The best n of each row.

    Args:
        scores: rows x items, float32; NaN is refused with ValueError, since it would order by accident.
    """
    rows, items = scores.shape
    keys = np.full((rows, min(n, items)), NOTHING, np.int64)
    if keys.size:
        room, numbers = np.empty((rows, ITEMS), np.float32), np.arange(items, dtype=np.int32)
        everybody, floors = np.arange(rows), np.full(rows, LOWEST)
        for first in range(0, items, ITEMS):
            _tile(room, rows, min(ITEMS, items - first))[:] = scores[:, first : first + ITEMS]
            _keep_best(_striped(room), numbers[first : first + ITEMS], everybody, keys, floors)
    return decoded(keys)


def empty(rows: int, n: int) -> Candidates:
    """No candidates for so many users."""
    return Candidates(np.full((rows, n), NONE, np.int32), np.full((rows, n), -np.inf, np.float32))


class _Excluded(NamedTuple):
    """A block's excluded items by their place in the order of the scan: those of user u are places[starts[u] : starts[u + 1]]."""

    starts: NDArray[np.int64]
    places: NDArray[np.int32]

    @classmethod
    def of(cls, excluded: csr_matrix, place: NDArray[np.int32]) -> "_Excluded":
        """Ascending; items that are not scanned have the place -1 and are left out."""
        found = place[excluded.indices]
        kept = found >= 0
        starts = np.r_[0, np.cumsum(kept)][excluded.indptr]
        ordered = csr_matrix((np.ones(starts[-1], np.int8), found[kept], starts), shape=excluded.shape)
        ordered.sort_indices()
        return cls(starts.astype(np.int64), ordered.indices.astype(np.int32))


def _longest_first(
    items: NDArray[np.floating], allowed: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The numbers of the allowed items, longest vector first, and their lengths."""
    numbers = np.flatnonzero(allowed).astype(np.int32)
    lengths = np.empty(numbers.size, np.float32)
    for start in range(0, numbers.size, BLOCK):
        block = slice(start, start + BLOCK)
        lengths[block] = np.linalg.norm(items[numbers[block]].astype(np.float32), axis=1)
    order = np.argsort(-_without_nan(lengths), kind="stable")
    return numbers[order], lengths[order]


def _scan(
    users: NDArray[np.float32],
    items: NDArray[np.floating],
    numbers: NDArray[np.int32],
    lengths: NDArray[np.float32],
    excluded: _Excluded,
    room: NDArray[np.float32],
    keys: NDArray[np.int64],
) -> None:
    """Look through the tiles of one block of users, as long as anybody's list may change; `room` is that of one tile."""
    reach, floors = _without_nan(np.linalg.norm(users, axis=1)) * SLACK, np.full(len(users), LOWEST)
    rows, next_place = np.arange(len(users)), excluded.starts[:-1].copy()
    for first in range(0, numbers.size, ITEMS):
        rows = rows[reach[rows] * lengths[first] >= floors[rows]]
        if not rows.size:
            return
        chosen = numbers[first : first + ITEMS]
        scores = _tile(room, rows.size, chosen.size)
        np.matmul(users[rows], items[chosen].astype(np.float32, copy=False).T, out=scores)
        _blank(scores, first, rows, next_place, excluded.starts[1:], excluded.places)
        _keep_best(_striped(room[: rows.size]), chosen, rows, keys, floors)


def _without_nan(lengths: NDArray[np.float32]) -> NDArray[np.float32]:
    if np.isnan(lengths).any():
        raise ValueError("factors hold NaN: train again")
    return lengths


def _tile(room: NDArray[np.float32], users: int, items: int) -> NDArray[np.float32]:
    """The part of the room that gets scores; what is beside it counts for nothing."""
    room[:users, items:] = -np.inf
    return room[:users, :items]


def _striped(room: NDArray[np.float32]) -> NDArray[np.float32]:
    """Users x stripes x STRIPE, the same memory."""
    return room.reshape(len(room), -1, STRIPE)


def decoded(keys: NDArray[np.int64]) -> Candidates:
    """Keys as items and scores, best first."""
    found = empty(*keys.shape)
    keys = np.sort(keys, axis=1)[:, ::-1]
    taken = keys != NOTHING
    order = (keys[taken] >> 32).astype(np.int32)
    found.scores[taken] = (order ^ ((order >> 31) & 0x7FFFFFFF)).view(np.float32)
    found.items[taken] = 0x7FFFFFFF - (keys[taken] & 0x7FFFFFFF)
    return found


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Machine code that lets other threads run, kept on disk where there is a place to write."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither beside the source nor in the user's cache
        return njit(nogil=True)(function)


@compiled
def _blank(scores, first, rows, next_place, ends, places):
    """-inf for the excluded items of this tile; each user goes on in the own list where the last tile ended."""
    width = scores.shape[1]
    for row in range(rows.size):
        user = rows[row]
        at = next_place[user]
        while at < ends[user] and places[at] < first + width:
            scores[row, places[at] - first] = -np.inf
            at += 1
        next_place[user] = at


@compiled
def _keep_best(scores, numbers, rows, keys, floors):
    """Put each user's scores that reach the worst of the heap in there, where they beat it.

    Args:
        scores: rows x stripes x STRIPE, float32, -inf behind the last item.
        numbers: of the items.
        rows: whose scores they are, as rows of `keys` and `floors`.
        keys: users x n, int64.
        floors: of each user, float32: the worst score of the n, LOWEST where a place is free.
    """
    places = np.empty(STRIPE + 1, np.int64)
    for row in range(rows.size):
        heap, floor = keys[rows[row]], floors[rows[row]]
        for stripe in range(scores.shape[1]):
            reaching = 0
            for place in range(STRIPE):
                reaching += not (scores[row, stripe, place] < floor)  # so that NaN counts
            if reaching:
                found = 0
                for place in range(STRIPE):  # without a branch: nobody could foresee where it goes
                    places[found] = place
                    found += not (scores[row, stripe, place] < floor)
                for place in places[:found]:
                    _offer(heap, scores[row, stripe, place], numbers[stripe * STRIPE + place])
                if heap[0] != NOTHING:
                    floor = score_of(heap[0])
        floors[rows[row]] = floor


@compiled
def _offer(heap, score, number):
    """Take the item where it beats the worst of the heap."""
    if score != score:
        raise ValueError("scores hold NaN: the factors they come from are broken; train again")
    key = key_of(score, number)
    if key > heap[0]:
        replace_worst(heap, key)


@compiled
def replace_worst(heap, key):
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


@compiled
def key_of(score, item):
    """An integer that is larger for a larger score, and for a lower item where scores are equal (-0.0 equals 0.0)."""
    bits = np.float32(score + np.float32(0.0)).view(np.int32)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (np.int64(order) << 32) | (0x7FFFFFFF - item)


@compiled
def score_of(key):
    """The score in a key."""
    order = np.int32(key >> 32)
    return np.int32(order ^ ((order >> 31) & 0x7FFFFFFF)).view(np.float32)
