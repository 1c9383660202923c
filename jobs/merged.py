"""Several models' candidates of a user as one list, each item once."""

import numpy as np
from numpy.typing import NDArray

from jobs.models._top import compiled, key_of, score_of


def merged(
    starts: NDArray[np.int64],
    items: NDArray[np.int32],
    parts: NDArray[np.float64],
    sources: NDArray[np.int32],
    size: int,
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Each user's items by the sum of their parts, the largest first, then the lower number; as one flat list.

    Args:
        starts: user u's entries are starts[u] : starts[u + 1].
        items, parts, sources: one an entry; items are below `size`, sources below 63.

    Returns items, sums as float32, which sources each has (bit s: source s), and where each user's end.
    """
    return _merged(starts, items, parts, sources, size)


@compiled
def _merged(starts, items, parts, sources, size):
    sums, masks, met = np.empty(size), np.empty(size, np.int64), np.full(size, -1, np.int64)
    keys = np.empty(items.size, np.int64)
    found, scores = np.empty(items.size, np.int32), np.empty(items.size, np.float32)
    proposers, ends = np.empty(items.size, np.int64), np.empty(starts.size - 1, np.int64)
    count = 0
    for user in range(starts.size - 1):
        begin = count
        for entry in range(starts[user], starts[user + 1]):
            item = items[entry]
            if met[item] != user:
                met[item], sums[item], masks[item] = user, 0.0, 0
                found[count] = item
                count += 1
            sums[item] += parts[entry]
            masks[item] |= 1 << sources[entry]
        for place in range(begin, count):
            keys[place] = key_of(np.float32(sums[found[place]]), found[place])
        keys[begin:count].sort()
        for place in range(begin, count):
            key = keys[begin + count - 1 - place]
            item = 0x7FFFFFFF - (key & 0x7FFFFFFF)
            found[place], scores[place], proposers[place] = item, score_of(key), masks[item]
        ends[user] = count
    return found[:count], scores[:count], proposers[:count], ends
